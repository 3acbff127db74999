"""The base of every configuration model, and how its fields and errors are written."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class UsageError(Exception):
    """A command that cannot be carried out as given; the text is what the user reads, one sentence per problem."""


class Section(BaseModel):
    """A frozen group of configuration fields that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields by their dotted names: `{"a": {"b": 1}}` gives `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def describe(error: ValidationError) -> str:
    """Returns a validation error as one readable line per field, with the field's dotted path."""
    return "\n".join(f"{field or 'configuration'}: {problem}" for field, problem in problems(error))


def problems(error: ValidationError) -> list[tuple[str, str]]:
    """Returns the dotted path of each field that is wrong, empty if it is the whole, and what is wrong with it."""
    found = []
    for detail in error.errors():
        is_told = detail["type"] in {"missing", "extra_forbidden"} or isinstance(detail["input"], Mapping)
        given = "" if is_told else f" (got {detail['input']!r})"
        is_missing = detail["type"] == "missing"
        message = "missing, and it has no default" if is_missing else detail["msg"].removeprefix("Value error, ")
        found.append((".".join(str(part) for part in detail["loc"]), f"{message}{given}"))
    return found
