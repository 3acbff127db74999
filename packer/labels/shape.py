"""Checks that JSON has the shape that a format gives it, so that a damaged file is refused in a sentence."""

from typing import Any

from configs.section import UsageError


def object_at(value: object, where: str) -> dict[str, Any]:
    """Returns a JSON value that must be an object; null counts as an empty one.

    Raises:
        UsageError: It is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be an object, but is {str(value)[:40]!r}: export the labels again")
    return value


def list_at(value: object, where: str) -> list[Any]:
    """Returns a JSON value that must be a list; null counts as an empty one.

    Raises:
        UsageError: It is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise UsageError(f"{where} must be a list, but is {str(value)[:40]!r}: export the labels again")
    return value
