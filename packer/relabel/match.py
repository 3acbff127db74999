"""Finds the packed video that each row of labels is about."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from configs.section import UsageError
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
    """Returns which row is about which video.

    A row's path may be the file's path below the data folder, end with it, or be its end, down to the name alone; or it
    is the stem of the file's name, if the row says so. A row with a segment is about that segment alone, a row without
    one about the whole video.

    Raises:
        UsageError: A row may mean several files, or two rows give one video different labels.
    """
    files = _Files(videos)
    sources = {video.source for video in videos}
    row_of: dict[str, LabelRow] = {}
    absent = []
    for row in rows:
        fragment = row.segment.fragment if row.segment else ""
        found = [source for file in files.find(row) if (source := f"{file}{fragment}") in sources]
        found = [source for source in found if row.label in source.split("/")[:-1]] or found if found[1:] else found
        if len(found) > 1:
            raise UsageError(
                f"{row.where} names {row.path}, which may be {found[0]} or {found[1]}: give the path below the data "
                "folder, as the column source of samples.parquet has it"
            )
        if not found:
            absent.append(row)
        elif (other := row_of.setdefault(found[0], row)).label != row.label:
            raise UsageError(
                f"{other.where} says {other.label!r} of {found[0]}, {row.where} says {row.label!r}: keep one of them"
            )
    return Match(row_of, tuple(absent))


class _Files:
    """The files of a pack, by all that a row may call them."""

    def __init__(self, videos: Iterable[Video]) -> None:
        self._by_path = {_nfc(source): source for source in dict.fromkeys(video.file_source for video in videos)}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self._by_path:
            name = path.rpartition("/")[2]
            self._by_name[name].append(path)
            self._by_stem[name.rpartition(".")[0] or name].append(path)

    def find(self, row: LabelRow) -> list[str]:
        """Returns the files that a row may mean."""
        if row.is_id:
            return [self._by_path[path] for path in self._by_stem.get(_nfc(row.path), ())]
        for path in dict.fromkeys((row.path, row.path.replace("\\", "/"), unquote(row.path))):
            if found := self._named(_nfc(path)):
                return [self._by_path[path] for path in found]
        return []

    def _named(self, path: str) -> list[str]:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            if (end := "/".join(parts[start:])) in self._by_path:
                return [end]
        end = "/".join(parts)
        return [other for other in self._by_name.get(parts[-1], ()) if other.endswith(f"/{end}")] if parts else []


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
