"""Reads class files: the names of classes whose labels are numbers."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.section import UsageError
from packer.labels.label_file import LabelFile
from packer.storage.location import Location

_NUMBERED = re.compile(r"(\d{1,9})(?:[ \t]*[,;\t][ \t]*|[ \t]+)(.+)")
_HEADER = re.compile(r"(id|index|label|class_id|class)\s*[,;\t ]\s*(name|label|class|class_name)", re.IGNORECASE)


@dataclass(frozen=True)
class ClassNames:
    """The names of classes by their numbers."""

    file_name: str
    name_of: Mapping[int, str]

    def name(self, label: str, where: str) -> str:
        """Returns the name that a label stands for; a label that is a name already stays.

        Raises:
            UsageError: The class file has no such number or name.
        """
        if re.fullmatch(r"\d{1,9}", label):
            if (name := self.name_of.get(int(label))) is not None:
                return name
            first, last = min(self.name_of), max(self.name_of)
            raise UsageError(
                f"{where} has label {label}, but {self.file_name} names the classes {first} to {last}: give the class "
                "file that belongs to the list; lines without numbers count from 0"
            )
        if label in self.name_of.values():
            return label
        raise UsageError(f"{where} has label {label!r}, which {self.file_name} does not hold: correct one of them")


def read_class_file(location: Location, file: LabelFile) -> ClassNames:
    """Returns the names that a class file gives to numbers.

    It is text with a name a line, which count from 0, or with a number and a name a line (`1 ApplyEyeMakeup`,
    `0,abseiling`), or JSON: a list of names, or an object of names and numbers in either direction.

    Raises:
        UsageError: It is none of these, or two classes have one number or one name.
    """
    pairs = list(_of_json(file) if file.kind == "json" else _of_lines(file))
    name_of: dict[int, str] = {}
    number_of: dict[str, int] = {}
    for number, name in pairs:
        if name_of.setdefault(number, name) != name or number_of.setdefault(name, number) != number:
            raise UsageError(
                f"{location} gives the number {number} or the class {name!r} twice: each class needs one number"
            )
    if not name_of:
        raise UsageError(f"{location} names no class")
    return ClassNames(file.name, name_of)


def _of_lines(file: LabelFile) -> Iterator[tuple[int, str]]:
    lines = [line.strip('"') for _, line in file.lines()]
    if _HEADER.fullmatch(lines[0]) and len(lines) > 1 and _NUMBERED.fullmatch(lines[1]):
        lines = lines[1:]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if all(numbered):
        return ((int(match[1]), match[2].strip().strip('"')) for match in numbered if match)
    return iter(enumerate(lines))


def _of_json(file: LabelFile) -> Iterable[tuple[int, str]]:
    content: Any = file.json
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return enumerate(content)
    if isinstance(content, dict):
        if all(_is_number(number) for number in content.values()):
            return ((int(number), name) for name, number in content.items())
        if all(_is_number(number) and isinstance(name, str) for number, name in content.items()):
            return ((int(number), name) for number, name in content.items())
    raise UsageError(
        f"{file.name} is no class file: as JSON it must be a list of names, or an object of names and numbers"
    )


def _is_number(value: object) -> bool:
    return re.fullmatch(r"\d{1,9}", str(value)) is not None
