"""The formats of a table of predictions: Parquet, CSV and JSON lines, with the same columns and values.

CSV holds text in quotes and numbers without; an empty cell without quotes is null. A line of JSON is one object with
every column. A Parquet file also holds the metadata that says what decided its rows; a file of another format has that
metadata in a second file beside it.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedRandom, TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq


class TableFormat(Protocol):
    """How a table is written and read."""

    holds_metadata: bool
    """Whether the file itself keeps the metadata of the schema."""

    def write(self, file: BufferedRandom, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Writes tables of this schema, one after another."""

    def read(self, path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yields the rows with these columns, which are strings; None stands for null."""


class ParquetFormat:
    """Parquet."""

    holds_metadata = True

    def write(self, file: BufferedRandom, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Writes tables of this schema, one after another."""
        with pq.ParquetWriter(file, schema) as writer:
            for table in tables:
                writer.write_table(table)

    def read(self, path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yields the rows with these columns."""
        yield from pq.ParquetFile(path).read(columns=list(columns)).to_pylist()


class CsvFormat:
    """CSV as of RFC 4180, in UTF-8, with a header."""

    holds_metadata = False

    def write(self, file: BufferedRandom, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Writes tables of this schema, one after another."""
        with pyarrow.csv.CSVWriter(file, schema) as writer:
            for table in tables:
                writer.write_table(table)

    def read(self, path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yields the rows with these columns."""
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield {name: row[name] or None for name in columns}


class JsonLinesFormat:
    """One JSON object per line, in UTF-8."""

    holds_metadata = False

    def write(self, file: BufferedRandom, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Writes tables of this schema, one after another."""
        text = TextIOWrapper(file, encoding="utf-8", newline="\n")
        for table in tables:
            text.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist())
        text.detach()

    def read(self, path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yields the rows with these columns."""
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                row = json.loads(line)
                yield {name: row[name] for name in columns}


FORMATS: Mapping[str, TableFormat] = {".parquet": ParquetFormat(), ".csv": CsvFormat(), ".jsonl": JsonLinesFormat()}
"""By the ending of the file's name; `configs.score.OUT_ENDINGS` are its keys."""
