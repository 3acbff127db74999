"""Fails the build if something public has no docstring."""

import logging
from typing import Any

import griffe

logger = logging.getLogger("mkdocs.hooks.docstrings")  # a warning below `mkdocs` fails a strict build


class PublicDocstrings(griffe.Extension):
    """Looks at every module, class and function of a package that mkdocstrings reads."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Warns of each public object without a docstring."""
        for name in sorted(missing(pkg)):
            logger.warning("%s is public and has no docstring", name)


def missing(scope: griffe.Module | griffe.Class) -> list[str]:
    """Returns the paths of the public objects in a module or class that have no docstring."""
    found = []
    for member in scope.members.values():
        if member.is_alias or (member.name.startswith("_") and not member.name.startswith("__")):
            continue
        if member.is_module or member.is_class or (member.is_function and member.name != "__init__"):
            if not member.docstring and not _is_override(member):
                found.append(member.path)
            if member.is_module or member.is_class:
                found += missing(member)
    return found


def _is_override(member: griffe.Object) -> bool:
    decorators = member.decorators if member.is_function else ()
    return any(getattr(decorator, "callable_path", "") == "typing.override" for decorator in decorators)
