"""Finds the candidate videos: every file below a class folder, whatever its name.

Whether a file is a video is found by opening it, not by its extension. Annotations and pictures that lie among the
videos are set aside here, so that they take no place in a split; what is passed over (hidden files, files beside the
class folders, sockets and the like) is counted, so that the report can say so.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.load import UsageError
from packer.container import VideoError, open_container, open_source

_HEAD_BYTES = 512
_PICTURE_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


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
    """What a data folder holds."""

    class_names: tuple[str, ...]
    """In the order of the class indices."""
    videos: tuple[Video, ...]
    """The candidates, ordered by `source`."""
    non_videos: tuple[tuple[Video, VideoError], ...]
    """Files in class folders that are texts, pictures or empty."""
    num_skipped: dict[str, int]
    """How many entries were passed over, by why."""


def find_videos(folder: Path, splits: Sequence[str] = ()) -> Catalog:
    """Returns the catalog of a folder that has one folder per class; folders within a class folder are searched too.

    Args:
        folder: The data folder.
        splits: Where given, the class folders lie in folders of these names, of which one may be missing.

    Raises:
        UsageError: The folder cannot be read, or no file in it can be a video.
    """
    skipped: Counter[str] = Counter()
    class_names: dict[str, str] = {}
    videos = []
    for class_folder in _class_folders(folder, splits, skipped):
        class_name = _text(class_folder.name)
        if class_names.setdefault(class_name, class_folder.name) != class_folder.name:
            raise UsageError(
                f"{folder} has class folders whose names differ only in bytes that are not text: rename them"
            )
        for file in _files(class_folder, skipped, frozenset()):
            source = _text(os.path.relpath(file.path, folder)).replace(os.sep, "/")
            videos.append(Video(file.path, source, class_name, _num_bytes(file)))
    videos.sort(key=lambda video: video.source)
    verdicts = [(video, _not_a_video(video.path)) for video in videos]
    if all(error is not None for _, error in verdicts):
        raise UsageError(f"{folder} holds no videos: it must hold one folder per class, and those the videos")
    return Catalog(
        class_names=tuple(sorted(class_names)),
        videos=tuple(video for video, error in verdicts if error is None),
        non_videos=tuple((video, error) for video, error in verdicts if error is not None),
        num_skipped=dict(skipped),
    )


def _class_folders(folder: Path, splits: Sequence[str], skipped: Counter[str]) -> Iterator[Path]:
    for entry in _entries(folder, skipped):
        if not entry.is_dir():
            skipped["file beside the class folders"] += 1
        elif not splits:
            yield Path(entry.path)
        elif entry.name in splits:
            yield from _class_folders(Path(entry.path), (), skipped)
        else:
            raise UsageError(
                f"{folder} has the folder {_text(entry.name)} beside {', '.join(splits)}: rename or move it"
            )


def _not_a_video(path: str) -> VideoError | None:
    """Returns why a file that looks like a text or a picture is none; only such files are opened, for speed."""
    try:
        with open_source(path) as file:
            head = file.read(_HEAD_BYTES)
            if b"\0" not in head or head.startswith(_PICTURE_HEADS):
                with open_container(file):
                    pass
    except VideoError as error:
        return error if error.reason == "not_a_video" else None
    return None


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
