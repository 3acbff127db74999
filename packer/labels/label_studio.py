"""Label Studio: its JSON and JSON-MIN exports of `TimelineLabels` (segments) and `Choices` (whole videos).

`ranges` count frames from 1, at the rate of the tag `Video` (24 unless it is set) and not of the file; the last frame
is included. The export does not state the rate. Source: the tags TimelineLabels and Video of the Label Studio 1.x
documentation, its task format, and web/libs/editor/src/regions/TimelineRegion.js.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from configs.section import UsageError
from packer.labels.label_file import LabelFile
from packer.labels.row_list import RowList, named
from packer.labels.rows import Labels
from packer.labels.shape import list_at, object_at
from packer.labels.times import frames_segment, to_frame
from packer.video.catalog import has_video_extension
from packer.video.segment import Segment

_ANNOTATIONS = ("annotations", "completions")
"""The second is the name before Label Studio 1.0."""
_MIN_KEYS = frozenset({"annotation_id", "annotator", "lead_time"})
"""What JSON-MIN adds to the data of a task."""
_RATE = re.compile(r"fps|frame_?rate", re.IGNORECASE)
_UPLOADED = re.compile(r"(?:.*/)?upload/(?:\d+/)?([0-9a-f]{8})-([^/]+)")
"""An uploaded file: eight digits of a UUID come before its own name."""


def fits(file: LabelFile) -> bool:
    """Tells whether a file is an export of Label Studio."""
    tasks = _tasks(file)
    return bool(tasks) and (_annotations_of(tasks[0]) is not None or len(_MIN_KEYS & tasks[0].keys()) > 1)


@dataclass(frozen=True)
class _Region:
    """A label that a task has."""

    where: str
    data: Mapping[str, Any]
    """Of the task."""
    tag: str
    """Name of the control tag, such as that of `TimelineLabels`."""
    labels: object
    span: Mapping[str, Any] | None
    """`start` and `end`; None: the whole video."""


def read(file: LabelFile, frame_rate: Fraction | None) -> Labels:
    """Returns the labels of an export: its segments or, if it has none, the choices for whole videos.

    Args:
        file: The export.
        frame_rate: The frame rate of the tag `Video`.

    Raises:
        UsageError: It is no export, there are segments but no frame rate, several tags give labels, or a region has
            several labels.
    """
    tasks = _tasks(file)
    if not tasks:
        raise UsageError(f"{file.name} is no list of tasks: export the project as JSON or JSON-MIN")
    rows = RowList(file.name)
    regions: list[_Region] = []
    unlabelled: list[str] = []
    several: list[str] = []
    for index, task in enumerate(tasks):
        where = f"{file.name}: [{index}]"
        found = list(_of_min(task, where)) if _annotations_of(task) is None else list(_of_task(task, where, several))
        regions += found
        unlabelled += [where] * (not found)
    segments = [region for region in regions if region.span is not None]
    used = segments or regions
    tags = sorted({region.tag for region in used})
    if len(tags) > 1:
        raise UsageError(
            f"{file.name} has labels of several tags ({', '.join(tags)}): export a project, or a view, with one of them"
        )
    for region in used:
        path, other = _path_of(_video_of(region.data, region.where))
        rows.add(region.where, path, _label_of(region), segment=_segment(region, frame_rate), other_path=other)
    if num_left := len(regions) - len(used):
        rows.note("choices", f"left out: {num_left} about whole videos, because there are segments")
    if unlabelled:
        rows.note("unlabelled", f"left out: {len(unlabelled)} without labels ({named(unlabelled)})")
    if several:
        rows.note("annotators", f"all annotations of a task count ({named(several)}); ground truth would come first")
    return rows.finish("label-studio")


def _of_task(task: Mapping[str, Any], where: str, several: list[str]) -> Iterator[_Region]:
    """Yields the regions of a task of a JSON export: of its ground truth or, otherwise, all that was not skipped.

    Adds the task to `several` if it has several annotations.
    """
    annotations = [object_at(item, f"{where}.annotations") for item in _annotations_of(task) or ()]
    annotations = [item for item in annotations if not item.get("was_cancelled")]
    annotations = [item for item in annotations if item.get("ground_truth")] or annotations
    if len(annotations) > 1:
        several.append(where)
    for number, annotation in enumerate(annotations):
        of_annotation = f"{where}.annotations[{number}].result"
        for place, item in enumerate(list_at(annotation.get("result"), of_annotation)):
            of_region = f"{of_annotation}[{place}]"
            region = object_at(item, of_region)
            value = object_at(region.get("value"), of_region)
            yield from _of_value(value, str(region.get("from_name", "")), task["data"], of_region)


def _of_min(task: Mapping[str, Any], where: str) -> Iterator[_Region]:
    """Yields the regions of a task of a JSON-MIN export, whose fields are its data and the values of tags."""
    for tag, value in _outputs_of(task).items():
        of_tag = f"{where}.{tag}"
        if isinstance(value, str):
            yield _Region(of_tag, task, tag, value, None)
        elif isinstance(value, dict):  # several choices
            yield from _of_value(value, tag, task, of_tag)
        elif isinstance(value, list):
            for place, item in enumerate(value):
                yield from _of_value(object_at(item, of_tag), tag, task, f"{of_tag}[{place}]")


def _of_value(value: Mapping[str, Any], tag: str, data: Mapping[str, Any], where: str) -> Iterator[_Region]:
    """Yields the labels of a region; boxes and texts give none.

    A box also stands there as `timelinelabels` without `ranges`, an error of Label Studio 1.x.
    """
    if isinstance(ranges := value.get("ranges"), list):
        for span in ranges:
            yield _Region(where, data, tag, value.get("timelinelabels"), object_at(span, where))
    elif isinstance(choices := value.get("choices"), list):
        yield _Region(where, data, tag, choices, None)


def _label_of(region: _Region) -> object:
    labels = region.labels
    return labels[0] if isinstance(labels, list) and len(labels) == 1 else labels or ""


def _segment(region: _Region, frame_rate: Fraction | None) -> Segment | None:
    if region.span is None:
        return None
    if frame_rate is None:
        rates = [f"{name} {value}" for name, value in region.data.items() if _RATE.fullmatch(name)]
        stated = f"the tasks say {rates[0]}, " if rates else ""
        raise UsageError(
            f"{region.where} counts frames at the rate of the tag Video, which the export does not state: give "
            f"--labels-frame-rate ({stated}otherwise it is frameRate of the labeling configuration, or 24 if that is "
            "not set)"
        )
    try:
        start = to_frame(region.span.get("start"))
        # Some converters count from 0, and then without the last frame: the end is the same number, and so is start 0.
        return frames_segment(start - 1 if start else 0, region.span.get("end"), frame_rate)
    except ValueError as error:
        raise UsageError(f"{region.where}: {error}") from error


def _tasks(file: LabelFile) -> list[dict[str, Any]]:
    content: Any = file.json if file.kind == "json" else None
    if isinstance(content, list) and all(isinstance(task, dict) for task in content):
        return content
    return []


def _annotations_of(task: Mapping[str, Any]) -> Sequence[object] | None:
    if not isinstance(task.get("data"), dict):
        return None
    return next((task[name] for name in _ANNOTATIONS if isinstance(task.get(name), list)), None)


def _outputs_of(task: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the annotations of a JSON-MIN task; its other data come before `id`, and its bookkeeping after them.

    Source: `convert_to_json_min` in src/label_studio_sdk/converter/converter.py of label-studio-sdk 2.1.3.
    """
    names = list(task)
    if "id" not in names or "annotator" not in names:
        return {}
    return {name: task[name] for name in names[names.index("id") + 1 : names.index("annotator")]}


def _video_of(data: Mapping[str, Any], where: str) -> str:
    """Returns the field of a task's data that names the video.

    Raises:
        UsageError: None does, or several.
    """
    texts = {name: value for name, value in data.items() if isinstance(value, str) and value}
    found = {name: value for name, value in texts.items() if _is_path(value)}
    for name in ("video", "video_url", "url"):
        if name in texts and (name in found or len(found) != 1):
            return texts[name]
    if len(found) != 1:
        what = f"several ({', '.join(found)})" if found else "none"
        raise UsageError(f"{where} must have one field that names the video, but has {what}: call it video")
    return next(iter(found.values()))


def _is_path(value: str) -> bool:
    return has_video_extension(urlsplit(value).path) or "/local-files/" in value


def _path_of(value: str) -> tuple[str, str]:
    """Returns the path that a task's video names, and the name that an uploaded file has on the server.

    `/data/local-files/?d=cam%201/a.mp4` gives `cam 1/a.mp4`, and `/data/upload/3/0a1b2c3d-a.mp4` gives `a.mp4` and
    `0a1b2c3d-a.mp4`.
    """
    if "/local-files/" in value:
        return next(iter(parse_qs(urlsplit(value).query).get("d", [value]))), ""
    if uploaded := _UPLOADED.fullmatch(unquote(value)):
        return uploaded[2], f"{uploaded[1]}-{uploaded[2]}"
    return value, ""
