"""VGG Image Annotator (VIA) 3: temporal segments of videos, from a project's JSON or from either of its CSV exports.

A segment has two times in seconds and the value of one attribute; attributes with options store the option's number.
The CSV of segments alone does not name the options. Source: VIA 3.0.10 (ox-vgg/via at aa9b87f), CodeDoc.md and
via-3.x.y/src/js/_via_import_export.js.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from configs.section import UsageError
from packer.labels.delimited import Delimited
from packer.labels.label_file import LabelFile
from packer.labels.row_list import RowList
from packer.labels.rows import Labels
from packer.labels.shape import list_at, object_at
from packer.labels.times import seconds_segment

_PARTS = frozenset({"project", "attribute", "file", "metadata", "view"})
_HEADER, _ATTRIBUTES = "# CSV_HEADER = ", "# ATTRIBUTE = "
_UNSET = ("", "_DEFAULT")
_TEXT, _CHECKBOX = 1, 2
"""Types of attributes (`_VIA_ATTRIBUTE_TYPE`); the others have one option."""
_LOCAL, _INLINE = 1, 4
"""Where a file lies (`_VIA_FILE_LOC`); `src` names the others."""


@dataclass(frozen=True)
class _Region:
    """One entry of the metadata."""

    where: str
    files: Sequence[str]
    times: Sequence[object]
    is_spatial: bool
    values: Mapping[str, object]
    """By the attribute's id, or by its name in the CSV of segments."""


def fits(file: LabelFile) -> bool:
    """Tells whether a file is a project or an export of VIA 3."""
    if file.kind == "json":
        return isinstance(file.json, dict) and file.json.keys() >= _PARTS
    return file.kind == "text" and any(line.startswith(_HEADER) for line in _comments(file))


def read(file: LabelFile) -> Labels:
    """Returns the labels of a project or an export.

    Raises:
        UsageError: It is none, or segments have values of several attributes or of several options.
    """
    if not fits(file):
        raise UsageError(
            f"{file.name} is no project or export of VIA 3: save the project as JSON, or export its annotations as CSV"
        )
    attributes, found = _of_json(file) if file.kind == "json" else _of_csv(file)
    regions = list(found)
    segments = [region for region in regions if len(region.times) == 2 and not region.is_spatial]
    whole = [region for region in regions if not region.times and not region.is_spatial]
    rows = RowList(file.name)
    used = segments or whole
    chosen = _attribute_of(used, file, attributes)
    for region in used:
        if len(region.files) != 1:
            raise UsageError(f"{region.where} is about {len(region.files)} files: a label must be about one video")
        try:
            bounds = seconds_segment(*region.times) if region.times else None
        except ValueError as error:
            raise UsageError(f"{region.where}: {error}") from error
        label = _label(region, chosen, attributes)
        rows.add(region.where, region.files[0], label, segment=bounds)
    if num_left := len(regions) - len(used):
        rows.note("regions", f"left out: {num_left} without two times (boxes, still frames, files)")
    if chosen and not attributes and all(str(region.values.get(chosen, "")).isdigit() for region in used):
        rows.note("classes", "the labels are numbers of options: save the project as JSON to have their names")
    return rows.finish("via")


def _attribute_of(regions: Sequence[_Region], file: LabelFile, attributes: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the attribute whose values are the labels; empty if none has a value."""
    used = sorted({name for region in regions for name, value in region.values.items() if value not in _UNSET})
    if len(used) > 1:
        names = [str(attributes.get(name, {}).get("aname", name)) for name in used]
        raise UsageError(
            f"{file.name} labels its segments by several attributes ({', '.join(names)}): delete all but the class"
        )
    return used[0] if used else ""


def _label(region: _Region, chosen: str, attributes: Mapping[str, Mapping[str, Any]]) -> object:
    value = region.values.get(chosen, "")
    if value in _UNSET:
        return ""
    attribute = attributes.get(chosen)
    if attribute is None or attribute.get("type") == _TEXT:
        return value
    options = object_at(attribute.get("options"), f"{region.where}: the attribute's options")
    if attribute.get("type") == _CHECKBOX and "," in str(value):
        raise UsageError(f"{region.where} has several options ({value}): a segment has one class; give it one")
    if str(value) not in options:
        raise UsageError(f"{region.where} has the option {value}, which the attribute {attribute.get('aname')} lacks")
    return options[str(value)]


def _of_json(file: LabelFile) -> tuple[Mapping[str, Mapping[str, Any]], Iterator[_Region]]:
    content = file.json

    def regions() -> Iterator[_Region]:
        for name, entry in object_at(content["metadata"], f"{file.name}: metadata").items():
            where = f"{file.name}: metadata.{name}"
            try:
                file_ids = content["view"][str(entry["vid"])]["fid_list"]
                files = [_file_name(object_at(content["file"][str(file_id)], where)) for file_id in file_ids]
                times, values = list_at(entry["z"], f"{where}.z"), object_at(entry["av"], f"{where}.av")
                yield _Region(where, files, times, bool(entry["xy"]), values)
            except (KeyError, TypeError) as error:
                raise UsageError(f"{where} lacks {error}, or names a file that is not there: save it again") from error

    return _attributes(content["attribute"], f"{file.name}: attribute"), regions()


def _attributes(value: object, where: str) -> Mapping[str, Mapping[str, Any]]:
    return {name: object_at(entry, f"{where}.{name}") for name, entry in object_at(value, where).items()}


def _file_name(entry: Mapping[str, Any]) -> str:
    if entry.get("loc") in (_LOCAL, _INLINE) or not entry.get("src"):
        return str(entry["fname"])
    return unquote(str(entry["src"]))


def _of_csv(file: LabelFile) -> tuple[Mapping[str, Mapping[str, Any]], Iterator[_Region]]:
    comments = list(_comments(file))
    header = next(line for line in comments if line.startswith(_HEADER)).removeprefix(_HEADER)
    names = [name.strip() for name in header.strip(" ,\t").split("," if "," in header else "\t")]
    attributes = next((line for line in comments if line.startswith(_ATTRIBUTES)), "").removeprefix(_ATTRIBUTES)
    body = re.sub(r"^#.*", "", file.text[: _head_chars(file)], flags=re.MULTILINE) + file.text[_head_chars(file) :]
    table = Delimited(LabelFile(file.name, body.encode()), "," if "," in header else "\t")

    def regions() -> Iterator[_Region]:
        for where, values in table.rows():
            row = dict(zip(names, values, strict=False))
            try:
                yield _csv_region(row, where)
            except (KeyError, ValueError, TypeError) as error:
                raise UsageError(f"{where} is no line of VIA 3 ({error}): export the annotations again") from error

    try:
        described = json.loads(attributes or "{}")
    except ValueError as error:
        raise UsageError(f"{file.name} has a damaged line # ATTRIBUTE: export the annotations again") from error
    return _attributes(described, f"{file.name}: # ATTRIBUTE"), regions()


def _csv_region(row: Mapping[str, str], where: str) -> _Region:
    if "temporal_coordinates" in row:
        times = json.loads(row["temporal_coordinates"], parse_float=Decimal)
        is_spatial = bool(json.loads(row["spatial_coordinates"]))
    else:
        times = [time for time in (row["temporal_segment_start"], row["temporal_segment_end"]) if time]
        is_spatial = False
    files = [unquote(name) if "://" in name else name for name in json.loads(row["file_list"])]
    return _Region(where, files, times, is_spatial, object_at(json.loads(row["metadata"]), where))


def _head_chars(file: LabelFile) -> int:
    """Returns how many characters the comments take that the file begins with."""
    head = re.match(r"(?:#[^\r\n]*[\r\n]*)*", file.text)
    return head.end() if head else 0


def _comments(file: LabelFile) -> Iterator[str]:
    for _, line in file.lines():
        if not line.startswith("#"):
            return
        yield line
