"""Lays a contact sheet out in pages: a page shows clips of one class and split, or files rejected for one reason.

A page is at most 2,000 px high. What does not fit goes on the next page of the same class and split, or reason.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from packer.inspection.clips import Cell, equally_spaced
from packer.inspection.rejections import KINDS, Kind, kind_of
from packer.shards.sample import SampleRow

ItemT = TypeVar("ItemT")

MAX_PAGE_PX = 2000
MIN_FRAME_PX, MAX_FRAME_PX = 160, 240
"""Width of a frame: as wide as the window allows between these. Upright frames keep the smaller one."""
MAX_FRAME_HEIGHT_PX = 360
"""Frames that would be higher are shown smaller."""
REJECTED_COLUMNS = ("source", "class_name", "split", "reason", "message")
MAX_REJECTED = 100
"""Most rows of one reason."""
_HEAD_PX, _GAP_PX, _LINE_PX = 140, 40, 24
"""Together with the frames, upper bounds of what sheet.css gives in a window of 1,280 px or more."""
_SOURCE_CHARACTERS, _MESSAGE_CHARACTERS, _CLASS_CHARACTERS, _TITLE_CHARACTERS = 34, 52, 14, 100
"""How many characters of a rejected file's columns, and of a clip's title, fit in a line."""


@dataclass(frozen=True)
class RejectedRow:
    """A file, or a row of the labels, that gave no clip."""

    source: str
    class_name: str
    split: str
    message: str


@dataclass(frozen=True)
class Rejections:
    """What gave no clip for one reason."""

    kind: Kind
    reason: str
    num_rows: int
    """How many there are."""
    rows: tuple[RejectedRow, ...]
    """Those that are shown."""


@dataclass(frozen=True)
class ClipPage:
    """Clips of one class and split."""

    cell: Cell
    clips: tuple[SampleRow, ...]
    number: int
    """From 1, within the class and split."""
    num_pages: int

    @property
    def anchor(self) -> str:
        """The page's id in the document."""
        return f"{self.cell.split}-{self.cell.class_index}-{self.number}"


@dataclass(frozen=True)
class RejectedPage:
    """Files that were rejected for one reason."""

    rejections: Rejections
    rows: tuple[RejectedRow, ...]
    number: int
    num_pages: int

    @property
    def anchor(self) -> str:
        """The page's id in the document."""
        return f"{self.rejections.kind}-{self.rejections.reason}-{self.number}".replace(" ", "-")


Page = ClipPage | RejectedPage


def rejections_of(table: pa.Table) -> list[Rejections]:
    """Returns what gave no clip, by kind and reason, the commonest reason first; `table` has `REJECTED_COLUMNS`."""
    found: dict[tuple[Kind, str], list[RejectedRow]] = {}
    for row in table.to_pylist():
        shown = RejectedRow(row["source"], row["class_name"], row["split"], row["message"])
        found.setdefault((kind_of(row), row["reason"]), []).append(shown)
    order = sorted(found, key=lambda key: (KINDS.index(key[0]), -len(found[key]), key[1]))
    return [_rejections(*key, found[key]) for key in order]


def _rejections(kind: Kind, reason: str, rows: list[RejectedRow]) -> Rejections:
    by_source = sorted(rows, key=lambda row: (row.source, row.message))
    return Rejections(kind, reason, len(rows), tuple(equally_spaced(by_source, MAX_REJECTED)))


def lay_out(cells: Sequence[Cell], rejections: Sequence[Rejections]) -> list[Page]:
    """Returns the pages of a sheet, in the order in which they are turned."""
    pages: list[Page] = []
    for cell in cells:
        parts = list(_cut(cell.clips, _clip_height_px))
        pages += [ClipPage(cell, clips, number, len(parts)) for number, clips in enumerate(parts, 1)]
    for rejected in rejections:
        cuts = list(_cut(rejected.rows, _row_height_px))
        pages += [RejectedPage(rejected, rows, number, len(cuts)) for number, rows in enumerate(cuts, 1)]
    return pages


def _cut(items: Sequence[ItemT], height_px: Callable[[ItemT], int]) -> Iterator[tuple[ItemT, ...]]:
    part: list[ItemT] = []
    free_px = MAX_PAGE_PX - _HEAD_PX
    for item in items:
        free_px -= height_px(item)
        if part and free_px < 0:
            yield tuple(part)
            part, free_px = [], MAX_PAGE_PX - _HEAD_PX - height_px(item)
        part.append(item)
    if part:
        yield tuple(part)


def _clip_height_px(clip: SampleRow) -> int:
    width_px = MIN_FRAME_PX if is_upright(clip) else MAX_FRAME_PX
    frame_px = min(MAX_FRAME_HEIGHT_PX, -(-width_px * clip.height_px // clip.width_px))
    return frame_px + _GAP_PX + _LINE_PX * (1 + _num_lines(clip.source, _TITLE_CHARACTERS))


def is_upright(clip: SampleRow) -> bool:
    """Tells whether a clip's frames are higher than wide."""
    return clip.height_px > clip.width_px


def _row_height_px(row: RejectedRow) -> int:
    num_lines = max(
        _num_lines(row.source, _SOURCE_CHARACTERS),
        _num_lines(row.message, _MESSAGE_CHARACTERS),
        _num_lines(row.class_name, _CLASS_CHARACTERS),
    )
    return _GAP_PX + _LINE_PX * num_lines


def _num_lines(text: str, num_characters: int) -> int:
    return max(1, -(-len(text) // num_characters))
