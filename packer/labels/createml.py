"""Apple Create ML: the annotation file of an action classifier.

CSV or JSON with `video`, `label` and, if a video holds several actions, `start` and `end`: seconds, mm:ss or hh:mm:ss.
Source: https://developer.apple.com/documentation/createml/building-an-action-classifier-data-source
"""

from packer.labels import table
from packer.labels.label_file import LabelFile
from packer.labels.rows import Labels
from packer.labels.table_file import objects_of


def fits(file: LabelFile) -> bool:
    """Tells whether a file is JSON as Create ML reads it; its CSV is a table like others."""
    rows = objects_of(file.json) if file.kind == "json" and isinstance(file.json, list) else None
    if not rows:
        return False
    return {"video", "label"} <= set(rows[0]) <= {"video", "label", "start", "end"}


def read(file: LabelFile) -> Labels:
    """Returns the labels of an annotation file.

    Raises:
        UsageError: See `table.read`.
    """
    return table.read(file, None, None, "createml")
