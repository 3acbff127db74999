"""NVIDIA DALI: the `file_list` of its video readers, `file label [start [end]]`.

Start and end are seconds; with `file_list_frame_num=True` they are frames from 0, without the last. The file does not
say which, so frames have a format name of their own. Source: `get_file_label_pair` in
dali/operators/reader/loader/video_loader.cc, and the arguments of `fn.readers.video`, DALI 1.x to 2.4.
"""

from configs.section import UsageError
from packer.labels.class_file import ClassNames
from packer.labels.label_file import LabelFile
from packer.labels.path_list import Line
from packer.labels.row_list import RowList
from packer.labels.rows import Labels
from packer.labels.times import frames_segment, seconds_segment
from packer.video.catalog import has_video_extension
from packer.video.segment import Segment

_MOST_NUMBERS = 3


def fits(file: LabelFile) -> bool:
    """Tells whether every line of a text is a video, a label and at most two bounds."""
    return (
        file.kind == "text"
        and file.ends_with_numbers
        and all(
            has_video_extension(line.path)
            and not any(map(str.isspace, line.path))
            and 1 <= len(line.numbers) <= _MOST_NUMBERS
            and line.numbers[0].isdigit()
            for line in file.path_lines
        )
    )


def fits_frames(file: LabelFile) -> bool:
    """Tells whether a list has bounds that may be frames as well."""
    bounds = [bound for line in file.path_lines for bound in line.numbers[1:]] if fits(file) else []
    return bool(bounds) and all(map(str.isdigit, bounds))


def read(file: LabelFile, classes: ClassNames | None, *, in_frames: bool) -> Labels:
    """Returns the labels of a file list.

    Args:
        file: The list.
        classes: The names of its classes.
        in_frames: Start and end are frame numbers.

    Raises:
        UsageError: A line is not of this form, or has a bound that counts from the end.
    """
    rows = RowList(file.name)
    for line in file.path_lines:
        if not line.numbers or len(line.numbers) > _MOST_NUMBERS or not line.numbers[0].isdigit():
            raise UsageError(
                f"{line.where} is {line.text!r}: it must be a file, a label (a whole number) and, for a part of the "
                "video, start and end"
            )
        label = classes.name(line.numbers[0], line.where) if classes else line.numbers[0]
        rows.add(line.where, line.path, label, segment=_segment(line, in_frames))
    if classes is None:
        rows.note("classes", "the labels are numbers: --labels-classes FILE gives the classes their names")
    return rows.finish("dali-frames" if in_frames else "dali")


def _segment(line: Line, in_frames: bool) -> Segment | None:
    bounds = line.numbers[1:]
    if not bounds:
        return None
    if any(bound.startswith("-") for bound in bounds):
        raise UsageError(
            f"{line.where} has a bound below 0, which DALI counts from the end of the video: write it from the start"
        )
    start, end = bounds[0], bounds[1] if len(bounds) > 1 else None
    try:
        return frames_segment(start, end, None) if in_frames else seconds_segment(start, end)
    except ValueError as error:
        raise UsageError(f"{line.where}: {error}") from error
