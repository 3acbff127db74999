"""What every reader of labels gives: one row per labelled video or segment."""

from dataclasses import dataclass

from packer.video.segment import Segment


@dataclass(frozen=True)
class LabelRow:
    """One label, as a file of labels states it."""

    where: str
    """The place in the file, for messages: `labels.csv:17`, or `labels.json: database.v_abc.annotations[2]`."""
    path: str
    """The video as the file names it, with / between folders: below the data folder, absolute, or a name alone."""
    label: str
    """The class name; never empty, without spaces at its ends."""
    split: str = ""
    """train, val or test; empty: not stated."""
    group: str = ""
    """Rows of one group never come into two splits; empty: not stated."""
    segment: Segment | None = None
    """None: the whole video. A segment that no video can have (`Segment.fault`) is rejected later, and listed."""
    is_id: bool = False
    """`path` is the stem of the file's name, whatever its folder and its extension, as in Kinetics."""


@dataclass(frozen=True)
class Labels:
    """What a file of labels holds."""

    format_name: str
    """The format it was read as, such as table or kinetics."""
    rows: tuple[LabelRow, ...]
    has_splits: bool
    """Whether the file states splits."""
    notes: tuple[tuple[str, str], ...] = ()
    """What the user should know about the file, as (label, text): rows that it leaves out, and why."""
