"""Opens a table, whatever it is stored as: CSV, TSV, JSON lines, a JSON list of objects, or Parquet."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.section import UsageError
from packer.labels.delimited import possible_tables
from packer.labels.label_file import LabelFile


@dataclass(frozen=True)
class Table:
    """A table whose rows are read when they are asked for, once."""

    file_name: str
    names: tuple[str, ...]
    """Of the columns, as the file spells them."""
    values: Callable[[Sequence[int]], Iterable[tuple[str, Sequence[object]]]]
    """Gives the place and the values of each row, of the columns with these indices."""
    has_decimal_commas: bool = False
    """Whether 12,5 means 12.5: Excel writes semicolons between values because decimals follow a comma."""


def open_table(file: LabelFile) -> Table:
    """Returns the table that a file holds.

    Raises:
        UsageError: It holds none.
    """
    if file.kind == "parquet":
        return _parquet(file)
    if file.kind == "text":
        return _delimited(file)
    if file.kind == "json_lines":
        objects = list(_json_lines(file))
    else:
        objects = [(f"{file.name}: [{index}]", row) for index, row in enumerate(objects_of(file.json) or ())]
    if not objects:
        raise UsageError(f"{file.name} is no table: as JSON it must be a list of objects, one for each clip")
    if len(objects) == 1 and all(isinstance(value, dict) for value in objects[0][1].values()):
        raise UsageError(
            f"{file.name} is a table column by column, as pandas writes JSON by default: write it row by row, by "
            'to_json(PATH, orient="records")'
        )
    return _of_objects(file, objects)


def _delimited(file: LabelFile) -> Table:
    tables = possible_tables(file)
    best = max(tables, key=lambda table: len(table.header))
    rows = best.rows()
    header = next(rows)[1]

    def values(indices: Sequence[int]) -> Iterator[tuple[str, Sequence[object]]]:
        num_columns = len(header)
        for where, row in rows:
            if len(row) > num_columns and any(row[num_columns:]):
                raise UsageError(
                    f"{where} has {len(row)} values for {num_columns} columns: put quotes around a value that holds "
                    f"{'a tab' if best.delimiter == chr(9) else best.delimiter!r}"
                )
            row += [""] * (num_columns - len(row))
            yield where, [row[index] for index in indices]

    return Table(file.name, tuple(header), values, has_decimal_commas=best.delimiter == ";")


def _json_lines(file: LabelFile) -> Iterator[tuple[str, dict[str, Any]]]:
    decoder = json.JSONDecoder(parse_float=Decimal)
    for where, line in file.lines():
        try:
            row = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not valid JSON ({error}): each line must be one object") from error
        if not isinstance(row, dict):
            raise UsageError(f'{where} is no object: each line must be one, such as {{"path": ..., "label": ...}}')
        yield where, row


def objects_of(content: Any) -> list[dict[str, Any]] | None:
    """Returns the rows of a JSON list of objects, or of one object alone; None if it is neither."""
    rows = content if isinstance(content, list) else [content]
    return rows if all(isinstance(row, dict) for row in rows) else None


def _of_objects(file: LabelFile, objects: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    names = tuple(dict.fromkeys(name for _, row in objects for name in row))

    def values(indices: Sequence[int]) -> Iterator[tuple[str, Sequence[object]]]:
        wanted = [names[index] for index in indices]
        return ((where, [row.get(name) for name in wanted]) for where, row in objects)

    return Table(file.name, names, values)


def _parquet(file: LabelFile) -> Table:
    try:
        source = pq.ParquetFile(pa.BufferReader(file.data))
        names = tuple(source.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{file.name} is a damaged Parquet file ({error}): write it again") from error

    def values(indices: Sequence[int]) -> Iterator[tuple[str, Sequence[object]]]:
        wanted = [names[index] for index in indices]
        table = source.read(columns=wanted)
        columns = [_python_values(table.column(name)) for name in wanted]
        for number, row in enumerate(zip(*columns, strict=True), start=1):
            yield f"{file.name}: row {number}", row

    return Table(file.name, names, values)


def _python_values(column: Any) -> list[object]:
    """Returns a column's values; floats of 32 and 16 bits by their shortest text: 12.3 instead of 12.300000191."""
    values: list[object] = column.to_pylist()
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        kind = column.type.to_pandas_dtype()
        return [None if value is None else float(str(kind(value))) for value in values]
    return values
