"""Label Studio: its JSON and JSON-MIN exports of `TimelineLabels` (segments) and `Choices` (whole videos).

`ranges` count frames from 1, at the rate of the tag `Video` (24 unless it is set) and not of the file; the last frame
is included. The export does not state the rate. Source: the tags TimelineLabels and Video of the Label Studio 1.x
documentation, its task format, and web/libs/editor/src/regions/TimelineRegion.js.
"""

import re
from collections.abc import Mapping, Sequence
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
_UPLOADED = re.compile(r"(?:.*/)?upload/(?:\d+/)?([0-9a-f]{8})-([^/]+)")
"""An uploaded file: eight digits of a UUID come before its own name."""


def fits(file: LabelFile) -> bool:
    """Tells whether a file is an export of Label Studio."""
    tasks = _tasks(file)
    return bool(tasks) and (_annotations_of(tasks[0]) is not None or len(_MIN_KEYS & tasks[0].keys()) > 1)


def read(file: LabelFile, frame_rate: Fraction | None) -> Labels:
    """Returns the labels of an export.

    Args:
        file: The export.
        frame_rate: The frame rate of the tag `Video`.

    Raises:
        UsageError: It is no export, there are segments but no frame rate, or a region has several labels.
    """
    tasks = _tasks(file)
    if not tasks:
        raise UsageError(f"{file.name} is no list of tasks: export the project as JSON or JSON-MIN")
    reader = _Reader(RowList(file.name), frame_rate)
    for index, task in enumerate(tasks):
        where = f"{file.name}: [{index}]"
        if _annotations_of(task) is not None:
            reader.read_task(task, where)
        else:
            reader.read_min(task, where)
    return reader.finish()


class _Reader:
    """Turns tasks into rows."""

    def __init__(self, rows: RowList, frame_rate: Fraction | None) -> None:
        self._rows = rows
        self._frame_rate = frame_rate
        self._num_ignored = 0
        self._unlabelled: list[str] = []
        self._several: list[str] = []

    def read_task(self, task: Mapping[str, Any], where: str) -> None:
        """Reads a task of a JSON export: the annotations that were not skipped, or those marked as ground truth."""
        data = task.get("data")
        if not isinstance(data, dict):
            raise UsageError(f"{where} has no data: export the project as JSON or JSON-MIN")
        annotations = [object_at(item, f"{where}.annotations") for item in _annotations_of(task) or ()]
        annotations = [item for item in annotations if not item.get("was_cancelled")]
        annotations = [item for item in annotations if item.get("ground_truth")] or annotations
        if len(annotations) > 1:
            self._several.append(where)
        num_found = 0
        for number, annotation in enumerate(annotations):
            of_annotation = f"{where}.annotations[{number}].result"
            for place, region in enumerate(list_at(annotation.get("result"), of_annotation)):
                of_region = f"{of_annotation}[{place}]"
                value = object_at(object_at(region, of_region).get("value"), of_region)
                num_found += self._read_region(data, value, of_region)
        if not num_found:
            self._unlabelled.append(where)

    def read_min(self, task: Mapping[str, Any], where: str) -> None:
        """Reads a task of a JSON-MIN export, whose fields are its data and the tags' values."""
        num_found = 0
        outputs = _outputs_of(task)
        for name, value in outputs.items():
            for place, region in enumerate(value if isinstance(value, list) else ()):
                num_found += self._read_region(task, object_at(region, f"{where}.{name}"), f"{where}.{name}[{place}]")
        choices = [name for name, value in outputs.items() if isinstance(value, str | dict)]
        if len(choices) > 1:
            raise UsageError(
                f"{where} has several fields that may be its label ({', '.join(choices)}): export the project as JSON"
            )
        if choices and not num_found:
            self._add(task, outputs[choices[0]], None, f"{where}.{choices[0]}")
            num_found = 1
        if not num_found:
            self._unlabelled.append(where)

    def _read_region(self, data: Mapping[str, Any], value: Mapping[str, Any], where: str) -> bool:
        """Adds the rows of a region, and tells whether there are any."""
        ranges, choices = value.get("ranges"), value.get("choices")
        if isinstance(ranges, list):
            for span in ranges:
                segment = self._segment(data, object_at(span, where), where)
                self._add(data, value.get("timelinelabels"), segment, where)
            return bool(ranges)
        if isinstance(choices, list):
            self._add(data, choices, None, where)
            return True
        # Boxes and texts; a box also stands there as `timelinelabels` without ranges (an error of Label Studio 1.x).
        self._num_ignored += 1
        return False

    def _segment(self, data: Mapping[str, Any], span: Mapping[str, Any], where: str) -> Segment | None:
        if self._frame_rate is None:
            rates = [f"{name} {data[name]}" for name in data if re.fullmatch("(?i)fps|frame_?rate", name)]
            stated = f"the tasks say {rates[0]}, " if rates else ""
            raise UsageError(
                f"{where} counts frames at the rate of the tag Video, which the export does not state: give "
                f"--labels-frame-rate ({stated}otherwise it is frameRate of the labeling configuration, or 24 if that "
                "is not set)"
            )
        try:
            first = to_frame(span.get("start"))
            return frames_segment(first - 1, span.get("end"), self._frame_rate)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error

    def _add(self, data: Mapping[str, Any], labels: object, segment: Segment | None, where: str) -> None:
        if isinstance(labels, dict):  # several choices in JSON-MIN
            labels = labels.get("choices", labels)
        label = labels[0] if isinstance(labels, list) and len(labels) == 1 else labels
        path, other = _path_of(_video_of(data, where))
        self._rows.add(where, path, label or "", segment=segment, other_path=other)

    def finish(self) -> Labels:
        if self._unlabelled:
            self._rows.note(
                "unlabelled", f"left out: {len(self._unlabelled)} without labels ({named(self._unlabelled)})"
            )
        if self._several:
            self._rows.note(
                "annotators",
                f"all annotations count where there are several ({named(self._several)}); mark one as ground truth to "
                "choose it",
            )
        if self._num_ignored:
            self._rows.note("regions", f"left out: {self._num_ignored} that are neither segments nor choices")
        return self._rows.finish("label-studio")


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
