"""MMAction2: lists of videos (`path label`) and of frame folders (`folder num_frames label`).

The labels are numbers, which a class file names. Source: `VideoDataset` and `RawframeDataset` of MMAction2 1.2.0,
mmaction/datasets/.
"""

import re
from collections.abc import Sequence

from configs.section import UsageError
from packer.labels.class_file import ClassNames
from packer.labels.label_file import LabelFile
from packer.labels.path_list import Line
from packer.labels.row_list import RowList
from packer.labels.rows import Labels
from packer.video.catalog import has_video_extension

_WITH_DELIMITER = re.compile(r"([^,;]*[^,;\s])\s*[,;]\s*(\d+)")
"""`VideoDataset` has an argument for another delimiter. Lists with more values, such as those of AVA, are none."""


def fits(file: LabelFile) -> bool:
    """Tells whether every line of a text is a path with one number, or a folder with more; `read` refuses some."""
    if file.kind != "text" or not file.ends_with_numbers:
        return False
    lines = [_without_delimiter(line) for line in file.path_lines]
    if not all(line.numbers and line.numbers[-1].isdigit() for line in lines):
        return False
    has_videos = any(has_video_extension(line.path) for line in lines)
    counts = {len(line.numbers) for line in lines}
    return counts == {1} or (1 not in counts and not has_videos)


def read(file: LabelFile, classes: ClassNames | None) -> Labels:
    """Returns the labels of a list.

    Raises:
        UsageError: A line has no label or several, or the class file does not name its number.
    """
    rows = RowList(file.name)
    lines = [_without_delimiter(line) for line in file.path_lines]
    for line in lines:
        path, label = _path_and_label(line)
        rows.add(line.where, path, classes.name(label, line.where) if classes else label)
    if classes is None and all(line.numbers for line in lines):
        rows.note("classes", "the labels are numbers: --labels-classes FILE gives the classes their names")
    return rows.finish("mmaction2")


def _path_and_label(line: Line) -> tuple[str, str]:
    numbers: Sequence[str] = line.numbers
    is_video = has_video_extension(line.path)
    if not numbers:  # a label that is a name
        path, _, label = line.text.rpartition(" ")
        if path and has_video_extension(path.strip()):
            return path.strip(), label
        raise UsageError(
            f"{line.where} has no label: a line must be `path label` or `folder num_frames label`; lists for inference "
            "have none"
        )
    if len(numbers) > (1 if is_video else 2):
        raise UsageError(
            f"{line.where} has several numbers ({' '.join(numbers)}): labels of several classes, and folders with an "
            "offset, cannot be read as mmaction2; give a table with a row per clip and the columns path, label, "
            "start_frame, end_frame"
        )
    return line.path, numbers[-1]


def _without_delimiter(line: Line) -> Line:
    found = _WITH_DELIMITER.fullmatch(line.text)
    if found and has_video_extension(found[1]):
        return Line(line.where, line.text, found[1], (found[2],))
    return line
