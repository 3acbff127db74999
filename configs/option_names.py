"""How the fields of a configuration are typed on the command line: `view.size_px` as `--view.size-px`.

Docstrings and errors name a field as a YAML file does. Whoever reads `--help`, or why a command was refused, is told
the option instead.
"""

import re
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import CliPositionalArg

_, _POSITIONAL = get_args(CliPositionalArg)
_NAME = re.compile(r"(?<![\w./{=-])`?[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*`?(?![\w/=-]|\.\w)")
"""A word that may be the name of a field: no part of a path, of an address or of an option that is typed already."""


class OptionNames:
    """The names of one command's fields.

    Example:
        names = OptionNames(TrainConfig)
        names.as_typed("view.size_px (96) is more than the 64 px")  # "--view.size-px (96) is more than the 64 px"

    Args:
        model: The command's configuration.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._typed = typed_names(model)

    def option(self, name: str) -> str | None:
        """Returns how the field of a dotted name is typed; None if there is no such field, or it is a group."""
        return self._typed.get(name)

    def is_group(self, name: str) -> bool:
        """Tells whether fields of a dotted name exist below it; the empty name is the group of all fields."""
        return not name or any(field.startswith(f"{name}.") for field in self._typed)

    def as_typed(self, text: str, group: str = "") -> str:
        """Returns a text in which the names of fields are replaced by those of the options.

        A name that is also a plain word, such as `run`, is replaced only in backticks, or if the text begins with it
        and its value or a colon follows: "run (first) ...", "run: ...".

        Args:
            text: For people.
            group: Group whose fields the text may name without it, such as `model`.
        """
        return _NAME.sub(lambda found: self._replacement(found, group), text)

    def _replacement(self, found: re.Match[str], group: str) -> str:
        name = found[0].strip("`")
        typed = self._typed.get(f"{group}.{name}" if group else name) or self._typed.get(name)
        if typed is None:
            return found[0]
        is_first = not found.start() and found.string[found.end() :].startswith((" (", ": "))
        is_name = "_" in name or "." in name or found[0] != name or is_first
        return found[0].replace(name, typed) if is_name else found[0]


def typed_names(model: type[BaseModel]) -> Mapping[str, str]:
    """Returns how each field is typed, by its dotted name."""
    return dict(_typed_names(model, ""))


def _typed_names(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    """Yields the dotted name of each field and how it is typed: as an option, or, in capitals, at its place."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        group = _group(field)
        if group is not None:
            yield from _typed_names(group, f"{path}.")
        else:
            yield path, name.upper() if _POSITIONAL in field.metadata else f"--{path.replace('_', '-')}"


def _group(field: FieldInfo) -> type[BaseModel] | None:
    """Returns the model of a field that is a group of fields, or None."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
