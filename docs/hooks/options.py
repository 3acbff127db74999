"""Writes the tables of options from the configuration models, so that no option is described by hand.

In a page, `<!-- options: python -m packer -->` becomes the tables of that command.
"""

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_settings import CliPositionalArg

from configs.explain import ExplainConfig, ReviewConfig
from configs.pack import InspectConfig, PackConfig, RelabelConfig, RepairConfig, VerifyConfig
from configs.score import ScoreConfig
from configs.section import Section
from configs.serve import ServeCommand
from configs.train import AuditConfig, CvConfig, PromoteConfig, TrainConfig, UiConfig

MARK = re.compile(r"<!-- options: (python -m [\w ]+) -->")
POSITIONAL = get_args(CliPositionalArg[str])[1]
SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


@dataclass(frozen=True)
class Command:
    """A command and the model of what it can be told."""

    model: type[Section]
    env_prefix: str
    yaml_prefix: str = ""
    """Where a YAML file holds the fields."""
    yaml_places: tuple[tuple[str, str], ...] = ()
    """Fields that a YAML file holds elsewhere."""
    listed: type[Section] | None = None
    """A model whose fields another command lists; they are left out if they are the same."""


COMMANDS = {
    "python -m packer": Command(PackConfig, "CLIPSTREAM_PACK_"),
    "python -m packer inspect": Command(InspectConfig, "CLIPSTREAM_PACK_"),
    "python -m packer relabel": Command(RelabelConfig, "CLIPSTREAM_PACK_"),
    "python -m packer verify": Command(VerifyConfig, "CLIPSTREAM_PACK_"),
    "python -m packer repair": Command(RepairConfig, "CLIPSTREAM_PACK_"),
    "python -m trainer": Command(TrainConfig, "CLIPSTREAM_TRAIN_"),
    "python -m trainer cv": Command(CvConfig, "CLIPSTREAM_TRAIN_", listed=TrainConfig),
    "python -m trainer ui": Command(UiConfig, "CLIPSTREAM_TRAIN_"),
    "python -m trainer promote": Command(PromoteConfig, "CLIPSTREAM_TRAIN_"),
    "python -m trainer audit": Command(AuditConfig, "CLIPSTREAM_TRAIN_"),
    "python -m trainer explain": Command(ExplainConfig, "CLIPSTREAM_TRAIN_"),
    "python -m trainer review": Command(ReviewConfig, "CLIPSTREAM_TRAIN_"),
    "python -m serve": Command(
        ServeCommand,
        "CLIPSTREAM_SERVE_",
        "applications[0].args.",
        (("host", "http_options.host"), ("port", "http_options.port")),
    ),
    "python -m serve score": Command(ScoreConfig, "CLIPSTREAM_SCORE_"),
}


def on_page_markdown(markdown: str, **ignored: Any) -> str:
    """Puts the tables in place of their marks."""
    return MARK.sub(lambda mark: tables(COMMANDS[mark[1]]), markdown)


def tables(command: Command) -> str:
    """Returns a command's options as Markdown: a table of its own fields, then one for each group of fields."""
    listed = command.listed.model_fields if command.listed else {}
    new = {name: field for name, field in command.model.model_fields.items() if repr(listed.get(name)) != repr(field)}
    own = [(name, field) for name, field in new.items() if not section_of(field)]
    parts = [_table(command, sorted(own, key=lambda one: not _is_positional(one[1])))]
    for name, field in new.items():
        if group := section_of(field):
            parts += [f"#### {name}", inspect.cleandoc(group.__doc__ or "")]
            parts.append(_table(command, list(fields(group, f"{name}."))))
    return "\n\n".join(parts)


def fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields the dotted path and the field of everything that can be set in a model."""
    for name, field in model.model_fields.items():
        group = section_of(field)
        if group:
            yield from fields(group, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def section_of(field: FieldInfo) -> type[Section] | None:
    """Returns the model of a field that is a group of fields, also if the group may be left out."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _is_positional(field: FieldInfo) -> bool:
    return POSITIONAL in field.metadata


def _table(command: Command, rows: list[tuple[str, FieldInfo]]) -> str:
    lines = ["| option, YAML, environment | type | default | what it does |", "|---|---|---|---|"]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in _row(command, path, field)) + " |"
        for path, field in rows
    ]
    return "\n".join(lines)


def _row(command: Command, path: str, field: FieldInfo) -> list[str]:
    description = " ".join((field.description or "").split())
    if _is_positional(field):
        end = "" if description.endswith(".") else "."
        return [f"`{path.upper()}`", _type(field), "required", f"{description[:1].upper()}{description[1:]}{end}"]
    option = f"--{path.replace('_', '-')}"
    names = [option, *([f"--no-{option[2:]}"] if field.annotation is bool else [])]
    yaml = dict(command.yaml_places).get(path, f"{command.yaml_prefix}{path}")
    variable = f"{command.env_prefix}{path.upper().replace('.', '__')}"
    first = f"{', '.join(f'`{name}`' for name in names)}<br>`{yaml}`<br>`{variable}`"
    return [first, _type(field), _default(path, field), description]


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {_limit(bound)}" for kind, sign in SIGNS.items() for bound in field.metadata if isinstance(bound, kind)
    ]
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in {Union, types.UnionType}:
        return _kind(next(kind for kind in get_args(annotation) if kind is not type(None)))
    return {str: "text", int: "whole number", float: "number", bool: "on or off"}[annotation]


def _limit(bound: Any) -> str:
    return next(str(getattr(bound, name)) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name))


def _default(path: str, field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return "required"
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`{_in_units(value)}" if path.endswith("bytes") else f"`{value}`"


def _in_units(num_bytes: int) -> str:
    units = ((2**30, "GiB"), (2**20, "MiB"), (10**9, "GB"))
    return next((f" ({num_bytes // unit} {name})" for unit, name in units if num_bytes % unit == 0), "")
