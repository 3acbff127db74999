"""A file of labels as bytes, text or JSON: what kind it is shows in its content, not in its name."""

import codecs
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

from configs.section import UsageError
from packer.labels.path_list import Line, parse_lines
from packer.storage.location import Location

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PARQUET = b"PAR1"
_NOT_TEXT = (
    (b"PK\3\4", "an Excel workbook or a ZIP archive: save the sheet as CSV UTF-8, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: save the sheet as CSV UTF-8"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"SQLite format 3\0", "a SQLite database: export the table as CSV"),
    (b"\x80", "a Python pickle: export the labels as CSV or JSON"),
)


@dataclass(frozen=True)
class LabelFile:
    """The content of a file of labels."""

    name: str
    """The file's name, for messages."""
    data: bytes

    @cached_property
    def kind(self) -> Literal["parquet", "json", "json_lines", "text"]:
        """What it holds; text is anything between a table and a list of paths.

        Raises:
            UsageError: It holds none of these, or damaged JSON.
        """
        if self.data.startswith(_PARQUET):
            return "parquet"
        first = self.text.lstrip()[:1]
        if first not in ("{", "["):
            return "text"
        try:
            _ = self.json
        except json.JSONDecodeError as error:
            if first == "{" and error.msg == "Extra data":
                return "json_lines"
            if self.name.lower().endswith((".jsonl", ".ndjson")):
                return "json_lines"  # its reader names the damaged line
            if self.name.lower().endswith(".json"):
                raise UsageError(
                    f"{self.name}:{error.lineno} is not valid JSON ({error.msg}): export the labels again"
                ) from error
            return "text"
        return "json"

    @cached_property
    def text(self) -> str:
        """Its text, without a byte order mark.

        Raises:
            UsageError: It is no text, or neither UTF-8 nor UTF-16.
        """
        for mark, encoding in _MARKS:
            if self.data.startswith(mark):
                return self._decoded(encoding).removeprefix("\ufeff")
        for head, what in _NOT_TEXT:
            if self.data.startswith(head):
                raise UsageError(f"{self.name} is {what}")
        if b"\0" in self.data[:4096]:
            raise UsageError(
                f"{self.name} is no text: labels come as CSV, TSV, JSON, JSON lines or Parquet; text in UTF-16 must "
                "begin with a byte order mark, so save it as UTF-8"
            )
        return self._decoded("utf-8")

    @cached_property
    def json(self) -> Any:
        """The JSON value that the text is; numbers with a decimal point are exact (`Decimal`)."""
        try:
            return json.loads(self.text, parse_float=Decimal)
        except json.JSONDecodeError:
            raise
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
            raise UsageError(f"{self.name} is no JSON of labels: {error}") from error

    @cached_property
    def path_lines(self) -> tuple[Line, ...]:
        """Its lines, read as a list of paths and numbers."""
        return parse_lines(self.lines())

    @property
    def ends_with_numbers(self) -> bool:
        """Whether the first line of a text ends with a number, as in a list of paths; a table has a header there."""
        first = next(iter(self.lines()), None)
        return first is not None and first[1][-1].isdigit()

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields the place (`list.txt:17`) and the text of each line that is not blank, spaces at the ends removed."""
        for number, line in enumerate(io.StringIO(self.text, newline=None), start=1):
            if stripped := line.strip():
                yield f"{self.name}:{number}", stripped

    def _decoded(self, encoding: str) -> str:
        try:
            return self.data.decode(encoding)
        except UnicodeDecodeError as error:
            line = self.data.count(b"\n", 0, error.start) + 1
            raise UsageError(
                f"{self.name}:{line} is not {encoding.upper()} (byte {error.start}): save the file as UTF-8 (in Excel: "
                "CSV UTF-8)"
            ) from error


def read_label_file(location: Location) -> LabelFile:
    """Returns the content of a file of labels.

    Raises:
        UsageError: It cannot be read, or is empty.
    """
    try:
        data = location.read_bytes()
    except OSError as error:
        raise UsageError(f"{location} cannot be read: {error.strerror or error}") from error
    if not data.strip():
        raise UsageError(f"{location} is empty: it must hold the labels of the videos")
    return LabelFile(location.name, data)
