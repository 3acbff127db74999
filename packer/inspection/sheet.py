"""Writes the contact sheet of a complete pack: an HTML file with a page per class and split, and what was rejected.

The frames are the stored JPEGs; nothing is decoded. The file is written clip by clip, so that memory does not grow with
the number of clips.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from configs.section import UsageError
from packer.inspection.classes import shown_classes
from packer.inspection.clips import choose_clips
from packer.inspection.document import (
    OPENING,
    class_links,
    clip_article,
    document,
    page_end,
    page_start,
    rejected_links,
    rejected_table,
)
from packer.inspection.pages import (
    MAX_FRAME_HEIGHT_PX,
    MAX_FRAME_PX,
    REJECTED_COLUMNS,
    ClipPage,
    Page,
    RejectedPage,
    lay_out,
    rejections_of,
)
from packer.progress import Progress
from packer.shards.manifest import read_manifest, read_rejected_columns, read_samples
from packer.shards.sample import SampleRow, read_members
from packer.shards.stored_plan import read_plan_notes
from packer.storage.files import read_many, read_range, write_atomically
from packer.storage.location import Location, RemotePath
from packer.video.sampling import frame_indices

_FRAMES_PER_CLIP = 5
_MOST_PX = (2 * MAX_FRAME_PX, 2 * MAX_FRAME_HEIGHT_PX)
"""Larger frames are shrunk to this, which is sharp on every screen: a pack may hold frames of any size."""
_JPEG_QUALITY = 85
_NUM_AHEAD = 64
"""How many clips of a remote pack are read ahead."""


@dataclass(frozen=True)
class Sheet:
    """What a sheet shows."""

    num_clips: int
    num_pages: int
    num_bytes: int


def check_sheet(path: Path) -> None:
    """Checks that a sheet can be written and harms nothing.

    Raises:
        UsageError: The folder does not exist, or something that is not a sheet has this name.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}, the folder for the sheet, does not exist: create it, or give another one")
    if path.exists() and not _is_sheet(path):
        raise UsageError(f"{path} exists and is no contact sheet, so it is not overwritten: give --sheet another name")


def _is_sheet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(OPENING)) == OPENING.encode()


def write_sheet(folder: Location, path: Path, num_clips: int, show_all: bool = False) -> Sheet:
    """Writes the contact sheet of a pack, and returns what it shows.

    Args:
        folder: A complete pack.
        path: The file to write; it replaces an older sheet.
        num_clips: Most clips of a class in a split; `choose_clips` says which.
        show_all: Show every class; otherwise those of `shown_classes`.

    Raises:
        ManifestError: There is no complete pack.
        UsageError: See `check_sheet`.
        ValueError: A sample is damaged.
    """
    check_sheet(path)
    manifest = read_manifest(folder)
    first, last = shown_classes(manifest, show_all)
    class_names = [*first, *last]
    table = read_samples(folder, None, tuple(SampleRow.model_fields))
    cells = choose_clips(manifest, read_plan_notes(folder), table, class_names, num_clips)
    rejected = read_rejected_columns(folder, REJECTED_COLUMNS)
    rejections = None if rejected is None else rejections_of(rejected)
    pages = lay_out(cells, rejections or ())
    num_hidden = len(manifest.class_names) - len(class_names)
    navigation = class_links(class_names, list(manifest.splits), cells, num_hidden) + rejected_links(rejections)
    with write_atomically(path) as file:
        for text in document(folder.name, navigation, _sections(folder, pages)):
            file.write(text.encode())
        num_bytes = file.tell()
    return Sheet(sum(len(cell.clips) for cell in cells), len(pages), num_bytes)


def _sections(folder: Location, pages: Sequence[Page]) -> Iterator[str]:
    clips = [clip for page in pages if isinstance(page, ClipPage) for clip in page.clips]
    frames = read_many(partial(_read_frames, folder), clips, isinstance(folder, RemotePath), _NUM_AHEAD)
    with Progress(len(clips), "clip", "sheet") as progress:
        for page, before, after in zip(pages, [None, *pages], [*pages[1:], None], strict=False):
            yield page_start(page, before, after)
            if isinstance(page, RejectedPage):
                yield rejected_table(page)
            else:
                for clip in page.clips:
                    yield clip_article(clip, next(frames))
                    progress.update()
            yield page_end()


def _read_frames(folder: Location, clip: SampleRow) -> list[tuple[int, bytes]]:
    """Returns the shown frames of a clip, each as its number in the video and its JPEG."""
    shard = folder / clip.shard
    try:
        stored = read_members(read_range(shard, clip.offset, clip.num_bytes))
    except ValueError as error:
        raise ValueError(f"{shard} is damaged: the place of {clip.key} {error}") from error
    if stored.key != clip.key:
        raise ValueError(f"{shard} is damaged: the place of {clip.key} holds {stored.key}")
    num_frames = len(stored.jpegs)
    shown = frame_indices(num_frames, _FRAMES_PER_CLIP) if num_frames > _FRAMES_PER_CLIP else range(num_frames)
    return [(clip.frame_indices[number], _small_enough(stored.jpegs[number], clip)) for number in shown]


def _small_enough(jpeg: bytes, clip: SampleRow) -> bytes:
    if clip.width_px <= _MOST_PX[0] and clip.height_px <= _MOST_PX[1]:
        return jpeg
    file = io.BytesIO()
    with Image.open(io.BytesIO(jpeg)) as frame:
        frame.thumbnail(_MOST_PX)
        frame.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
