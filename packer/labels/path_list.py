"""Lists of paths: text with a path, numbers and a label on each line, between spaces or tabs, and no header."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

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


def parse_lines(lines: Iterable[tuple[str, str]]) -> tuple[Line, ...]:
    """Returns the lines of a list from their places and texts; `a b.mp4 3 1.5` gives `a b.mp4` and 3, 1.5."""
    return tuple(_parse(where, text) for where, text in lines)


def _parse(where: str, text: str) -> Line:
    words = text.split()
    first = len(words)
    while first > 1 and _NUMBER.fullmatch(words[first - 1]):
        first -= 1
    path = text.rsplit(maxsplit=len(words) - first)[0] if first < len(words) else text
    return Line(where, text, path, tuple(words[first:]))
