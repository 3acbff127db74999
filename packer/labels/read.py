"""Reads the labels of videos from a file, in whichever of the known formats it is."""

from dataclasses import replace
from fractions import Fraction
from typing import get_args

from configs.pack import LabelsFormat
from configs.section import UsageError
from packer.labels import (
    activitynet,
    createml,
    dali,
    fiftyone,
    kinetics,
    label_studio,
    mmaction2,
    something_something,
    table,
    via,
)
from packer.labels.class_file import ClassNames, read_class_file
from packer.labels.detect import fitting_formats
from packer.labels.label_file import LabelFile, read_label_file
from packer.labels.rows import Labels
from packer.storage.location import Location

FORMATS = get_args(LabelsFormat)[1:]
"""The names of the formats, beside auto."""
_WITH_NUMBERS = frozenset({"table", "mmaction2", "dali", "dali-frames"})
"""Formats whose labels may be the numbers of classes."""


def read_labels(
    location: Location, format_name: str, *, classes: Location | None, frame_rate: Fraction | None
) -> Labels:
    """Returns the rows of a file of labels.

    Args:
        location: The file.
        format_name: One of `FORMATS`, or auto: the content decides.
        classes: The file with the names of the classes, if the labels are numbers.
        frame_rate: Frames per second at which the tool counted frames that it gives; None: the video's own frames.

    Raises:
        UsageError: The file cannot be read, is of no known format or of several, or a row of it is wrong.
    """
    file = read_label_file(location)
    names = read_class_file(classes, read_label_file(classes)) if classes is not None else None
    if format_name == "auto":
        return _read_detected(file, names, frame_rate)
    if format_name not in FORMATS:
        raise UsageError(f"labels format {format_name!r} is unknown: it must be auto, {', '.join(FORMATS)}")
    return _read(file, format_name, names, frame_rate)


def _read_detected(file: LabelFile, classes: ClassNames | None, frame_rate: Fraction | None) -> Labels:
    found = fitting_formats(file)
    if not found:
        if file.kind == "json":
            raise UsageError(
                f"{file.name} is JSON of no known form ({_outline(file.json)}): it must be one of {', '.join(FORMATS)}"
            )
        return _read(file, "table", classes, frame_rate)  # it says what a table lacks
    if len(found) == 1:
        return _read(file, found[0], classes, frame_rate)
    labels = [_read(file, name, classes, frame_rate) for name in found]
    if len({reading.rows for reading in labels}) > 1:
        raise UsageError(
            f"{file.name} may be of the format {' or '.join(found)}, which read it differently: give "
            f"{' or '.join(f'--labels-format {name}' for name in found)}"
        )
    note = ("format", f"{' and '.join(found)} fit, and give the same rows")
    return replace(labels[0], notes=(*labels[0].notes, note))


def _read(file: LabelFile, format_name: str, classes: ClassNames | None, frame_rate: Fraction | None) -> Labels:
    if classes is not None and format_name not in _WITH_NUMBERS:
        raise UsageError(
            f"{file.name}, read as {format_name}, names its classes itself: leave --labels-classes out, which is for "
            f"{', '.join(name for name in FORMATS if name in _WITH_NUMBERS)}"
        )
    if frame_rate is not None and not (
        format_name == "label-studio" or (format_name == "table" and table.counts_frames(file))
    ):
        raise UsageError(
            f"{file.name}, read as {format_name}, does not count frames at a rate of its own: leave "
            "--labels-frame-rate out, which is for label-studio and for tables with start_frame and end_frame"
        )
    match format_name:
        case "table":
            return table.read(file, classes, frame_rate)
        case "mmaction2":
            return mmaction2.read(file, classes)
        case "kinetics":
            return kinetics.read(file)
        case "activitynet":
            return activitynet.read(file)
        case "something-something":
            return something_something.read(file)
        case "createml":
            return createml.read(file)
        case "label-studio":
            return label_studio.read(file, frame_rate)
        case "fiftyone":
            return fiftyone.read(file)
        case "via":
            return via.read(file)
        case _:
            return dali.read(file, classes, in_frames=format_name == "dali-frames")


def _outline(content: object) -> str:
    """Returns what JSON holds at its top: `an object with videos, version`."""
    if isinstance(content, dict):
        return f"an object with {', '.join(map(str, list(content)[:5]))}"
    if isinstance(content, list):
        return f"a list; its first item is {_outline(content[0])}" if content else "an empty list"
    return type(content).__name__
