"""Finds the candidate videos: every file below a class folder, whatever its name.

Whether a file is a video is found by decoding it, not by its extension. What is passed over (hidden files, files beside
the class folders, sockets and the like) is counted, so that the report can say so.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.load import UsageError


@dataclass(frozen=True)
class Video:
    """One candidate file."""

    path: str
    """Where it lies; may hold surrogate escapes where the name is not UTF-8."""
    source: str
    """The path relative to the data folder, with / between folders, as valid text."""
    class_name: str
    num_bytes: int


@dataclass(frozen=True)
class Catalog:
    """The classes in index order, the candidates ordered by `source`, and how many entries were passed over, by why."""

    class_names: tuple[str, ...]
    videos: tuple[Video, ...]
    num_skipped: dict[str, int]


def find_videos(folder: Path) -> Catalog:
    """Returns the catalog of a folder that has one folder per class; folders within a class folder are searched too.

    Raises:
        UsageError: There is no such folder, or no candidate in it.
    """
    skipped: Counter[str] = Counter()
    class_names = []
    videos = []
    for entry in _entries(folder, skipped):
        if not entry.is_dir():
            skipped["file beside the class folders"] += 1
            continue
        class_name = _text(entry.name)
        class_names.append(class_name)
        for file in _files(Path(entry.path), skipped, frozenset()):
            source = _text(os.path.relpath(file.path, folder)).replace(os.sep, "/")
            videos.append(Video(file.path, source, class_name, _num_bytes(file)))
    if not videos:
        raise UsageError(f"{folder} holds no videos: it must hold one folder per class, and those the videos")
    if len(set(class_names)) < len(class_names):
        raise UsageError(f"{folder} has class folders whose names differ only in bytes that are not text: rename them")
    return Catalog(tuple(sorted(class_names)), tuple(sorted(videos, key=lambda video: video.source)), dict(skipped))


def _files(folder: Path, skipped: Counter[str], above: frozenset[str]) -> Iterator[os.DirEntry[str]]:
    above |= {os.path.realpath(folder)}
    for entry in _entries(folder, skipped):
        if entry.is_dir():
            if os.path.realpath(entry.path) in above:
                skipped["link to a folder above it"] += 1
            else:
                yield from _files(Path(entry.path), skipped, above)
        elif entry.is_file() or entry.is_symlink():  # a dangling link is a candidate, and rejected as unreadable
            yield entry
        else:
            skipped["neither file nor folder"] += 1


def _entries(folder: Path, skipped: Counter[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{_text(str(folder))} cannot be read: {error.strerror}") from error
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    if len(visible) < len(entries):
        skipped["hidden"] += len(entries) - len(visible)
    return visible


def _num_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
