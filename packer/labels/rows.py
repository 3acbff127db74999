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
    """`path`, `other_path` and `trimmed_path` lack the extension, as in Kinetics: `x` names b/a/x.webm, and so does
    `a/x`. A folder of frames has no extension, so its whole name counts."""
    other_path: str = ""
    """Another name that the file may have; `path` wins if both exist. Empty: there is none."""
    trimmed_path: str = ""
    """Name of a file that holds nothing but the segment. If it exists, it wins, and is packed whole: without
    `segment`. Empty: there is none."""


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
