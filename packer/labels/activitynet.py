"""ActivityNet 1.2 and 1.3, and datasets in its form such as THUMOS14 and FineAction: JSON of segments in seconds.

`database` maps video ids to `subset` and `annotations` of `segment` and `label`; MMAction2's lists for ActivityNet are
the same without `database`. Files are called `v_<id>` or `<id>`. Source: activitynet/ActivityNet at 82304fa,
Evaluation/data/activity_net.v1-3.min.json.
"""

from typing import Any

from configs.section import UsageError
from packer.labels.label_file import LabelFile
from packer.labels.row_list import RowList, named
from packer.labels.rows import Labels
from packer.labels.times import seconds_segment

_PREFIX = "v_"


def fits(file: LabelFile) -> bool:
    """Tells whether a file is JSON with a database of annotated videos."""
    database = _database(file)
    entry = next(iter(database.values()), None) if database else None
    return isinstance(entry, dict) and isinstance(entry.get("annotations"), list)


def read(file: LabelFile) -> Labels:
    """Returns the labels of a database; videos without annotations, such as those of testing, are left out.

    Raises:
        UsageError: It is none, or a segment is wrong.
    """
    database = _database(file)
    if database is None:
        raise UsageError(f"{file.name} is no ActivityNet JSON, which holds `database` with an entry for each video")
    place = f"{file.name}: {'database.' if 'database' in file.json else ''}"
    rows = RowList(file.name)
    unlabelled: dict[str, list[str]] = {}
    for video_id, entry in database.items():
        annotations = entry.get("annotations") if isinstance(entry, dict) else None
        if not isinstance(annotations, list):
            raise UsageError(f"{place}{video_id} has no list of annotations: download the file again")
        if not annotations:
            unlabelled.setdefault(str(entry.get("subset", "")), []).append(video_id)
        for index, annotation in enumerate(annotations):
            _add(rows, f"{place}{video_id}.annotations[{index}]", video_id, entry.get("subset"), annotation)
    for subset, ids in unlabelled.items():
        rows.note("unlabelled", f"left out: {len(ids)} of {subset or 'no subset'} without annotations ({named(ids)})")
    return rows.finish("activitynet")


def _add(rows: RowList, where: str, video_id: str, subset: object, annotation: Any) -> None:
    segment = annotation.get("segment") if isinstance(annotation, dict) else None
    if not isinstance(segment, list) or len(segment) != 2:
        raise UsageError(f"{where} has no segment of two times in seconds: correct it, or remove it")
    try:
        bounds = seconds_segment(*segment)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    other = video_id.removeprefix(_PREFIX) if video_id.startswith(_PREFIX) else _PREFIX + video_id
    rows.add(where, video_id, annotation.get("label"), split=subset, segment=bounds, is_id=True, other_path=other)


def _database(file: LabelFile) -> dict[str, Any] | None:
    if file.kind != "json" or not isinstance(file.json, dict):
        return None
    database = file.json.get("database", file.json)
    return database if isinstance(database, dict) else None
