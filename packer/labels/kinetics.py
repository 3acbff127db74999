"""Kinetics-400, -600 and -700: lists of segments of YouTube videos, as CSV or as the JSON beside it.

The videos are downloaded trimmed (`<id>_<start>_<end>.mp4`, six digits each) or whole (`<id>.mp4`); a row names both.
Columns differ between the editions and are read by name. Source: Crawler/Kinetics of activitynet/ActivityNet at
82304fa, and cvdfoundation/kinetics-dataset at e6bea42.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from configs.section import UsageError
from packer.labels.delimited import column_name, possible_tables
from packer.labels.label_file import LabelFile
from packer.labels.row_list import RowList, to_text
from packer.labels.rows import Labels
from packer.labels.table_file import open_table
from packer.labels.times import seconds_segment
from packer.video.segment import Segment

_NEEDED = ("youtube_id", "time_start", "time_end")
_COLUMNS = ("youtube_id", "time_start", "time_end", "label", "split")


def fits(file: LabelFile) -> bool:
    """Tells whether a file has the columns of Kinetics, or its JSON form."""
    if file.kind == "text":
        return any(set(_NEEDED) <= set(table.header) for table in possible_tables(file))
    if file.kind == "json" and isinstance(file.json, dict):
        entry = next(iter(file.json.values()), None)
        return isinstance(entry, dict) and isinstance(entry.get("annotations"), dict)
    return False


def read(file: LabelFile) -> Labels:
    """Returns the labels of a list.

    Raises:
        UsageError: It is a list of a test set, which has no labels, or a value is wrong.
    """
    rows = RowList(file.name)
    for where, values in _of_json(file) if file.kind == "json" else _of_columns(file):
        video_id, start, end, label, split = values
        try:
            segment = seconds_segment(start, end)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error
        name = to_text(video_id, where, "youtube_id")
        rows.add(where, name, label, split=split, segment=segment, is_id=True, trimmed_path=_trimmed(name, segment))
    return rows.finish("kinetics")


def _trimmed(video_id: str, segment: Segment | None) -> str:
    """Returns the name of a trimmed video without its extension: `-3B32lodo2M_000059_000069`."""
    if segment is None or segment.end is None or segment.start.denominator * segment.end.denominator != 1:
        return ""
    return f"{video_id}_{int(segment.start):06d}_{int(segment.end):06d}"


def _of_columns(file: LabelFile) -> Iterator[tuple[str, list[object]]]:
    table = open_table(file)
    names = [column_name(name) for name in table.names]
    if missing := [name for name in _NEEDED if name not in names]:
        raise UsageError(
            f"{file.name} has no column {' and '.join(missing)}: Kinetics has label, youtube_id, time_start, time_end "
            f"and split; its columns are: {', '.join(table.names[:10])}"
        )
    if "label" not in names:
        raise UsageError(
            f"{file.name} has no column label: it is the list of a test set whose labels are not given; take the list "
            "of train or val"
        )
    indices = [names.index(name) if name in names else -1 for name in _COLUMNS]
    for where, values in table.values([index for index in indices if index >= 0]):
        yield where, [*values, None][: len(_COLUMNS)]


def _of_json(file: LabelFile) -> Iterable[tuple[str, list[object]]]:
    content: Any = file.json
    if not isinstance(content, dict):
        raise UsageError(f"{file.name} is no Kinetics JSON, which is an object with an entry for each video")
    for video_id, entry in content.items():
        where = f"{file.name}: {video_id}"
        annotations = entry.get("annotations") if isinstance(entry, dict) else None
        segment = annotations.get("segment") if isinstance(annotations, dict) else None
        if not isinstance(annotations, dict) or not isinstance(segment, list) or len(segment) != 2:
            raise UsageError(f"{where} has no annotations with a segment: export or download the file again")
        if "label" not in annotations:
            raise UsageError(
                f"{where} has no label: it is the list of a test set whose labels are not given; take the list of "
                "train or val"
            )
        yield where, [video_id, *segment, annotations["label"], entry.get("subset")]
