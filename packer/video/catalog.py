"""Finds the candidate videos: every file below a class folder, whatever its name.

Whether a file is a video is found by opening it, not by its extension. Annotations and pictures that lie among the
videos are set aside here, so that they take no place in a split; what is passed over (hidden files, files beside the
class folders, sockets and the like) is counted, so that the report can say so.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.section import UsageError
from packer.storage.files import read_many, read_range
from packer.storage.location import Entry, Location, RemotePath, at, list_folder, relative_name
from packer.video.container import VideoError, fetched, open_container, open_source

_MAX_CLASS, _MAX_STEM, _HASH = 24, 40, 12
"""A key has at most 24 + 1 + 40 + 1 + 12 = 78 bytes: a tar member's name has room for 100."""
_HEAD_BYTES = 512
_PICTURE_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Video:
    """One candidate file."""

    path: str
    """Where it lies, a path or an address; may hold surrogate escapes where the name is not UTF-8."""
    source: str
    """The path relative to the data folder, with / between folders, as valid text."""
    class_name: str
    num_bytes: int

    @property
    def key(self) -> str:
        """The sample's key: unique, ASCII [a-z0-9_-], and the same whatever other videos there are.

        WebDataset cuts a member's name at its first dot, which real file names hold:
        `clap/Clap #2 (a.b).avi` gives `clap-clap_2_a_b-` and twelve digits of the path's hash.
        """
        stem = self.source.rpartition("/")[2].rpartition(".")[0] or self.source.rpartition("/")[2]
        digest = hashlib.sha256(self.source.encode()).hexdigest()
        return f"{_plain(self.class_name, _MAX_CLASS)}-{_plain(stem, _MAX_STEM)}-{digest[:_HASH]}"


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


def find_videos(folder: Location, splits: Sequence[str] = ()) -> Catalog:
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
        above = frozenset({os.path.realpath(str(folder)), os.path.realpath(Path(class_folder.path).parent)})
        for file in _files(at(class_folder.path), skipped, above):
            videos.append(Video(file.path, _text(relative_name(file.path, folder)), class_name, file.num_bytes))
    catalog = _judged(folder, tuple(sorted(class_names)), videos, skipped)
    if not catalog.videos:
        raise UsageError(f"{folder} holds no videos: it must hold one folder per class, and those the videos")
    return catalog


def find_unlabelled(folder: Location) -> Catalog:
    """Returns the catalog of a folder whose videos lie anywhere in it; their class names are empty.

    Raises:
        UsageError: The folder cannot be read, or no file in it can be a video.
    """
    skipped: Counter[str] = Counter()
    files = _files(folder, skipped, frozenset())
    videos = [Video(file.path, _text(relative_name(file.path, folder)), "", file.num_bytes) for file in files]
    catalog = _judged(folder, (), videos, skipped)
    if not catalog.videos:
        raise UsageError(f"{folder} holds no videos")
    return catalog


def _judged(folder: Location, class_names: tuple[str, ...], videos: list[Video], skipped: Counter[str]) -> Catalog:
    videos.sort(key=lambda video: video.source)
    errors = read_many(_not_a_video, videos, is_remote=isinstance(folder, RemotePath))
    verdicts = list(zip(videos, errors, strict=True))
    return Catalog(
        class_names=class_names,
        videos=tuple(video for video, error in verdicts if error is None),
        non_videos=tuple((video, error) for video, error in verdicts if error is not None),
        num_skipped=dict(skipped),
    )


def _class_folders(folder: Location, splits: Sequence[str], skipped: Counter[str]) -> Iterator[Entry]:
    for entry in _entries(folder, skipped):
        if entry.kind != "folder":
            skipped["file beside the class folders"] += 1
        elif not splits:
            yield entry
        elif entry.name in splits:
            yield from _class_folders(at(entry.path), (), skipped)
        else:
            raise UsageError(
                f"{folder} has the folder {_text(entry.name)} beside {', '.join(splits)}: rename or move it"
            )


def _not_a_video(video: Video) -> VideoError | None:
    """Returns why a file that looks like a text or a picture is none; only such files are opened, for speed."""
    try:
        if video.num_bytes and not _is_suspect(read_range(at(video.path), 0, _HEAD_BYTES)):
            return None
        with fetched(video.path) as source, open_source(source) as file, open_container(file):
            return None
    except OSError:
        return None  # rejected as unreadable when it is to be packed
    except VideoError as error:
        return error if error.reason == "not_a_video" else None


def _is_suspect(head: bytes) -> bool:
    return b"\0" not in head or head.startswith(_PICTURE_HEADS)


def _files(folder: Location, skipped: Counter[str], above: frozenset[str]) -> Iterator[Entry]:
    above |= {os.path.realpath(folder)} if isinstance(folder, Path) else set()
    for entry in _entries(folder, skipped):
        if entry.kind == "folder":
            if os.path.realpath(entry.path) in above:
                skipped["link to a folder above it"] += 1
            else:
                yield from _files(at(entry.path), skipped, above)
        elif entry.kind == "file":
            yield entry
        else:
            skipped["neither file nor folder"] += 1


def _entries(folder: Location, skipped: Counter[str]) -> list[Entry]:
    try:
        entries = list_folder(folder)
    except OSError as error:
        raise UsageError(f"{_text(str(folder))} cannot be read: {error.strerror}") from error
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    if len(visible) < len(entries):
        skipped["hidden"] += len(entries) - len(visible)
    return visible


def _plain(text: str, num_chars: int) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:num_chars].strip("_") or "x"


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
