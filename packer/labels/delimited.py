"""Reads text whose lines hold values between commas, semicolons or tabs, as Excel, pandas and tools write it."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from configs.section import UsageError
from packer.labels.label_file import LabelFile

_DELIMITERS = (",", "\t", ";")
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
"""Excel's own first line, which names the delimiter."""


@dataclass(frozen=True)
class Delimited:
    """Text with a delimiter; a value in quotes may hold the delimiter and line ends."""

    file: LabelFile
    delimiter: str

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Yields the place (`labels.csv:17`) and the values of each row that is not blank, spaces at the ends removed.

        Raises:
            UsageError: The quotes do not match.
        """
        lines = io.StringIO(self.file.text, newline="")
        reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True, strict=True)
        line = 1
        try:
            for values in reader:
                if any(values) and not (line == 1 and _SEPARATOR_LINE.fullmatch(self.delimiter.join(values))):
                    yield f"{self.file.name}:{line}", [value.strip() for value in values]
                line = reader.line_num + 1
        except csv.Error as error:
            raise UsageError(
                f"{self.file.name}:{line} cannot be read ({error}): a value with quotes needs them at both ends, and "
                "twice inside"
            ) from error

    @cached_property
    def header(self) -> tuple[str, ...]:
        """The values of the first row, as `column_name` writes them; empty if it cannot be read."""
        try:
            return tuple(map(column_name, next(self.rows(), ("", []))[1]))
        except UsageError:
            return ()


def possible_tables(file: LabelFile) -> list[Delimited]:
    """Returns the text read with each delimiter that its first line holds; with a comma if it holds none."""
    first = next((line for line in io.StringIO(file.text) if line.strip()), "")
    if stated := _SEPARATOR_LINE.match(first):
        return [Delimited(file, stated[1])]
    return [Delimited(file, delimiter) for delimiter in _DELIMITERS if delimiter in first] or [Delimited(file, ",")]


def column_name(text: str) -> str:
    """Returns how a column is called, whatever its spelling: ` File-Name ` and `file name` give `file_name`."""
    return re.sub(r"[\s_-]+", "_", text.strip()).strip("_").casefold()
