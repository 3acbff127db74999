"""Finds the packed video that each row of labels is about."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from configs.section import UsageError
from packer.labels.match import Finder, check_names
from packer.labels.rows import LabelRow
from packer.video.catalog import Video


@dataclass(frozen=True)
class Match:
    """Which row is about which video of a pack."""

    row_of: Mapping[str, LabelRow]
    """The row by the video's `source`."""
    absent: tuple[LabelRow, ...]
    """Rows about videos or segments that the pack lacks."""


def match_rows(videos: Sequence[Video], rows: Iterable[LabelRow]) -> Match:
    """Returns which row is about which video; a row finds its file as it does for packing.

    A row with a segment is about that segment alone, a row without one about the whole video.

    Raises:
        UsageError: A row may mean several files, or two rows give one video different labels.
    """
    files: dict[str, Video] = {}
    for video in videos:
        if (path := video.file_source) not in files:
            files[path] = replace(video, source=path, segment=None)
    finder = Finder(files.values())
    matched = [finder.match(row) for row in rows]
    check_names(matched)
    sources = {video.source for video in videos}
    row_of: dict[str, LabelRow] = {}
    absent = []
    for row, file in matched:
        source = f"{file.source if file else row.path}{row.segment.fragment if row.segment else ''}"
        if source not in sources:
            absent.append(row)
        elif (other := row_of.setdefault(source, row)).label != row.label:
            raise UsageError(
                f"{other.where} says {other.label!r} of {source}, {row.where} says {row.label!r}: keep one of them"
            )
    return Match(row_of, tuple(absent))
