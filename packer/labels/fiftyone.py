"""FiftyOne: labels.json of a temporal detection dataset, and samples.json of a FiftyOne dataset.

`support` is the first and the last frame, which count from 1 and are both included; `timestamps` are seconds. Source:
FiftyOneTemporalDetectionDataset and FiftyOneDataset in the user guide of FiftyOne 1.x, "Exporting datasets".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.section import UsageError
from packer.labels.label_file import LabelFile
from packer.labels.row_list import RowList, named
from packer.labels.rows import Labels
from packer.labels.shape import list_at, object_at
from packer.labels.splits import SPLIT_OF_FOLDER
from packer.labels.times import frames_segment, seconds_segment, to_frame
from packer.video.catalog import has_video_extension
from packer.video.segment import Segment

_BOUNDS = frozenset({"support", "timestamps"})
_LABEL_TYPES = frozenset({"Classification", "TemporalDetection", "TemporalDetections"})


def fits(file: LabelFile) -> bool:
    """Tells whether a file is an export of FiftyOne."""
    if file.kind != "json" or not isinstance(file.json, dict):
        return False
    return _is_labels(file.json) or _is_samples(file.json)


def read(file: LabelFile) -> Labels:
    """Returns the labels of an export.

    Raises:
        UsageError: It is no export, several fields hold labels, or a segment is wrong.
    """
    if not fits(file):
        raise UsageError(
            f"{file.name} is no FiftyOne export: it must be labels.json of a FiftyOneTemporalDetectionDataset, or "
            "samples.json of a FiftyOneDataset"
        )
    rows = RowList(file.name)
    unlabelled = (_read_labels if _is_labels(file.json) else _read_samples)(file, rows)
    if unlabelled:
        rows.note("unlabelled", f"left out: {len(unlabelled)} without labels ({named(unlabelled)})")
    return rows.finish("fiftyone")


def _is_labels(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("labels"), dict) and "classes" in content


def _is_samples(content: Mapping[str, Any]) -> bool:
    samples = content.get("samples")
    return isinstance(samples, list) and all(isinstance(sample, dict) and "filepath" in sample for sample in samples)


def _read_labels(file: LabelFile, rows: RowList) -> list[str]:
    """Adds the rows of labels.json; returns the videos without labels."""
    class_names = list_at(file.json["classes"], f"{file.name}: classes")
    unlabelled = []
    for video, entry in file.json["labels"].items():
        where = f"{file.name}: labels.{video}"
        detections = entry if isinstance(entry, list) else [] if entry is None else [{"label": entry}]
        if not detections:
            unlabelled.append(video)
        for index, detection in enumerate(detections):
            place = f"{where}[{index}]" if isinstance(entry, list) else where
            if not isinstance(detection, dict) or (place != where and detection.keys().isdisjoint(_BOUNDS)):
                raise UsageError(f"{place} is no temporal detection, which has label, and support or timestamps")
            label = _class_name(detection.get("label"), class_names, place)
            rows.add(place, video, label, segment=_segment(detection, place), is_id=not has_video_extension(video))
    return unlabelled


def _class_name(label: object, class_names: Sequence[object], where: str) -> object:
    """Returns a label, or the class that it is the index of."""
    if not isinstance(label, int) or isinstance(label, bool) or not class_names:
        return label
    if not 0 <= label < len(class_names):
        last = len(class_names) - 1
        raise UsageError(f"{where} has label {label}, but `classes` names 0 to {last}: correct one of them")
    return class_names[label]


def _read_samples(file: LabelFile, rows: RowList) -> list[str]:
    """Adds the rows of samples.json; returns the videos without labels."""
    samples = file.json["samples"]
    fields = sorted({name for sample in samples for name in sample if _is_label(sample[name])})
    if len(fields) > 1:
        raise UsageError(
            f"{file.name} has labels in several fields ({', '.join(fields)}): export the dataset with one of them"
        )
    unlabelled = []
    for index, sample in enumerate(samples):
        video = str(sample["filepath"])
        place = f"{file.name}: samples[{index}]"
        found = list(_labels_of(sample.get(fields[0]), f"{place}.{fields[0]}")) if fields else []
        if not found:
            unlabelled.append(video)
        tags = map(str, list_at(sample.get("tags"), f"{place}.tags"))
        splits = {tag for tag in tags if tag.casefold() in SPLIT_OF_FOLDER}
        split = next(iter(splits)) if len(splits) == 1 else ""
        for where, label in found:
            rows.add(where, video, label.get("label"), split=split, segment=_segment(label, where))
    return unlabelled


def _is_label(value: object) -> bool:
    return isinstance(value, dict) and str(value.get("_cls")) in _LABEL_TYPES


def _labels_of(value: object, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the place and the content of each label of a field."""
    field = object_at(value, where)
    if field.get("_cls") == "TemporalDetections":
        for index, item in enumerate(list_at(field.get("detections"), f"{where}.detections")):
            yield f"{where}.detections[{index}]", object_at(item, f"{where}.detections[{index}]")
    elif field:
        yield where, field


def _segment(detection: Mapping[str, Any], where: str) -> Segment | None:
    support, timestamps = detection.get("support"), detection.get("timestamps")
    bounds = timestamps if support is None else support
    if bounds is None:
        return None
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise UsageError(f"{where} must give two bounds, the first and the last, not {bounds!r}")
    try:
        if support is None:
            return seconds_segment(*bounds)
        return frames_segment(to_frame(bounds[0]) - 1, bounds[1], None)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
