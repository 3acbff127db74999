"""Writes the tables of what files hold from the code that writes them.

In a page, `<!-- columns: samples.parquet -->` becomes the columns of that file, and `<!-- fields: Manifest -->` the
fields of that model.
"""

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import griffe
import pyarrow.parquet as pq

from configs.section import Section
from packer.shards.manifest import (
    REJECTED,
    SAMPLES,
    Manifest,
    RejectedRow,
    ShardSummary,
    SplitSummary,
    write_rejected,
    write_samples,
)
from packer.shards.sample import SampleRow
from trainer.model.contract import ModelContract

MARK = re.compile(r"<!-- (columns|fields): ([\w.]+) -->")
MODELS: dict[str, type[Section]] = {
    model.__name__: model for model in (Manifest, SplitSummary, ShardSummary, ModelContract)
}
PLAIN = {
    "key": "Unique name of the sample, at most 80 bytes of `a-z 0-9 _ -`: class, file name, hash of the path.",
    "split": "`train`, `val` or `test`; empty for a file that was rejected before the split.",
    "class_index": "Place of the class in the manifest's `class_names`, from 0.",
    "class_name": "Name of the class folder.",
    "source": "Path of the video below the data folder.",
    "member_sizes": "Bytes of each member.",
    "duration_seconds": "As the container states it; otherwise frames divided by `fps`.",
    "width_px": "Width of the stored frames.",
    "height_px": "Height of the stored frames.",
    "source_width_px": "Width of the first frame as coded.",
    "reason": "Stable code of the reason, see [When something fails](failures.md#why-a-video-was-rejected).",
    "message": "One sentence for people.",
    "name": "File name.",
    "num_samples": "Number of samples.",
    "num_bytes": "Bytes of the file.",
    "sha256": "Digest of the file.",
    "num_per_class": "Samples of each class, by name.",
    "shards": "The tar files, see below.",
    "format_version": "Version of this format.",
    "class_names": "In the order of the class indices.",
    "sampling_rule": "The rule that chose the frames, as a formula.",
    "config": "The options that decide the bytes: clip, limits, split, shards, duplicates, seed.",
    "splits": "By name of the split, see below.",
}
"""What needs no docstring beside its name in the code."""


def on_page_markdown(markdown: str, **ignored: Any) -> str:
    """Puts the tables in place of their marks."""
    return MARK.sub(lambda mark: columns(mark[2]) if mark[1] == "columns" else model_fields(mark[2]), markdown)


def columns(name: str) -> str:
    """Returns the columns of a Parquet file of a pack, as the packer writes them."""
    described: Mapping[str, str | None] = {
        SAMPLES: _described(SampleRow) | _clip_docstrings(),
        f"{REJECTED}.parquet": _described(RejectedRow),
    }[name]
    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder), [])
        write_rejected(Path(folder), [])
        schema = pq.read_schema(Path(folder) / name)
    kinds = {field.name: f"`{field.type}`".replace("element: ", "") for field in schema}
    return _table("column", ((column, kind, described.get(column)) for column, kind in kinds.items()))


def model_fields(name: str) -> str:
    """Returns the fields of a stored model."""
    model = MODELS[name]
    described = _described(model)
    return _table(
        "field", ((field, _kind(info.annotation), described[field]) for field, info in model.model_fields.items())
    )


def _described(model: type[Section]) -> dict[str, str | None]:
    return {name: field.description for name, field in model.model_fields.items()}


def _clip_docstrings() -> dict[str, str | None]:
    members = griffe.load("packer.video.clip", try_relative_path=False)["Clip"].members
    return {name: member.docstring.value for name, member in members.items() if member.docstring and name != "jpegs"}


def _table(head: str, rows: Iterable[tuple[str, str, str | None]]) -> str:
    lines = [f"| {head} | type | what it holds |", "|---|---|---|"]
    for name, kind, description in rows:
        text = " ".join((description or PLAIN[name]).split())
        lines.append(f"| `{name}` | {kind} | {text} |")
    return "\n".join(lines)


def _kind(annotation: Any) -> str:
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if annotation in plain:
        return plain[annotation]
    if get_origin(annotation) is tuple:
        return f"list of {_kind(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"object of {_kind(get_args(annotation)[1])}"
    if isinstance(annotation, type):
        return f"`{annotation.__name__}`"
    return " or ".join(f"`{value}`" for value in get_args(annotation))
