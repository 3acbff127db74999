"""Lists of paths: text with a path, numbers and a label on each line, between spaces or tabs, and no header."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from packer.labels.label_file import LabelFile

_NUMBER = re.compile(r"-?\d+(\.\d*)?|-?\.\d+")


@dataclass(frozen=True)
class Line:
    """One line of a list."""

    where: str
    text: str
    path: str
    """What stands before the numbers; it may hold spaces."""
    numbers: tuple[str, ...]
    """The numbers at the end of the line."""


def lines_of(file: LabelFile) -> Iterator[Line]:
    """Yields the lines of a list."""
    for where, text in file.lines():
        words = text.split()
        first = len(words)
        while first > 1 and _NUMBER.fullmatch(words[first - 1]):
            first -= 1
        path = text.rsplit(maxsplit=len(words) - first)[0] if first < len(words) else text
        yield Line(where, text, path, tuple(words[first:]))
