"""Finds the candidate videos: every file below a class folder, whatever its name, and every folder of frames there.

A file is a video if it can be opened as one; its extension does not matter. A folder below a class folder is one too if
it holds at least two numbered pictures and no video: the pictures are its frames. Annotations and pictures among the
videos are set aside here, so that they take no place in a split. Skipped entries (hidden files, files beside the class
folders, sockets and the like) are counted for the report.
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
from packer.video.frame_folder import is_picture_name, numbered_pictures

_MAX_CLASS, _MAX_STEM, _HASH = 24, 40, 12
"""A key has at most 24 + 1 + 40 + 1 + 12 = 78 bytes: a tar member's name has room for 100."""
_HEAD_BYTES = 512
_VIDEO_NAME = re.compile(
    r".*\.(3gp|asf|avi|dav|divx|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|mxf|ogv|ts|vob|webm|wmv)", re.IGNORECASE | re.DOTALL
)
_PICTURE_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Video:
    """One candidate file."""

    path: str
    """Its path or address; a folder of pictures ends with /. Holds surrogate escapes if the name is not UTF-8."""
    source: str
    """The path relative to the data folder, with / between folders, as valid text."""
    class_name: str
    num_bytes: int

    @property
    def is_frame_folder(self) -> bool:
        """Whether it is a folder of numbered pictures instead of a file."""
        return self.path.endswith("/")

    @property
    def key(self) -> str:
        """The sample's key: unique, ASCII [a-z0-9_-], and independent of the other videos.

        Real file names hold dots, and WebDataset cuts a member's name at the first one:
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
    """Number of skipped entries, by the reason."""


def find_videos(folder: Location, splits: Sequence[str] = ()) -> Catalog:
    """Returns the catalog of a folder that holds one folder per class; subfolders of a class folder are searched too.

    Args:
        folder: The data folder.
        splits: Names of the folders that hold the class folders, such as train and val; empty: there are none.

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
            source = _text(relative_name(file.path.rstrip("/"), folder))
            videos.append(Video(file.path, source, class_name, file.num_bytes))
    catalog = _set_aside_non_videos(folder, tuple(sorted(class_names)), videos, skipped)
    if not catalog.videos:
        raise UsageError(
            f"{folder} holds no videos: it must hold one folder per class, and those the videos; pictures are frames "
            "only if they are numbered and have a folder of their own below the class"
        )
    return catalog


def find_unlabelled(folder: Location) -> Catalog:
    """Returns the catalog of a folder whose videos lie anywhere in it; their class names are empty.

    Raises:
        UsageError: The folder cannot be read, or no file in it can be a video.
    """
    skipped: Counter[str] = Counter()
    files = _files(folder, skipped, frozenset())
    videos = [
        Video(file.path, _text(relative_name(file.path.rstrip("/"), folder)), "", file.num_bytes) for file in files
    ]
    catalog = _set_aside_non_videos(folder, (), videos, skipped)
    if not catalog.videos:
        raise UsageError(f"{folder} holds no videos")
    return catalog


def _set_aside_non_videos(
    folder: Location, class_names: tuple[str, ...], videos: list[Video], skipped: Counter[str]
) -> Catalog:
    videos.sort(key=lambda video: video.source)
    errors = read_many(_not_a_video, videos, is_remote=isinstance(folder, RemotePath))
    found = list(zip(videos, errors, strict=True))
    return Catalog(
        class_names=class_names,
        videos=tuple(video for video, error in found if error is None),
        non_videos=tuple((video, error) for video, error in found if error is not None),
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
    """Returns why the file is no video, or None; to be fast, opens only files that look like a text or a picture."""
    if video.is_frame_folder:
        return None
    try:
        if video.num_bytes and not _is_suspect(read_range(at(video.path), 0, _HEAD_BYTES)):
            return None
        with fetched(video.path) as source, open_source(source) as file, open_container(file):
            return None
    except OSError:
        return None  # packing rejects it as unreadable
    except VideoError as error:
        return error if error.reason == "not_a_video" else None


def _holds_video(entries: Sequence[Entry]) -> bool:
    """Tells whether a folder with pictures holds a video as well, by name or by content."""
    others = [entry for entry in entries if entry.kind == "file" and not is_picture_name(entry.name)]
    return any(_VIDEO_NAME.fullmatch(entry.name) for entry in others) or any(map(_opens_as_video, others))


def _opens_as_video(entry: Entry) -> bool:
    try:
        if _is_suspect(read_range(at(entry.path), 0, _HEAD_BYTES)):
            return False
        with fetched(entry.path) as source, open_source(source) as file, open_container(file) as container:
            return bool(container.streams.video)
    except (OSError, VideoError):
        return False


def _is_suspect(head: bytes) -> bool:
    return b"\0" not in head or head.startswith(_PICTURE_HEADS)


def _files(
    folder: Location, skipped: Counter[str], above: frozenset[str], may_be_clip: bool = False
) -> Iterator[Entry]:
    """Yields the files below a folder, and each folder of numbered pictures as one entry whose path ends with /."""
    above |= {os.path.realpath(folder)} if isinstance(folder, Path) else set()
    entries = _entries(folder, skipped)
    if may_be_clip and (frames := numbered_pictures(folder, entries)) and not _holds_video(entries):
        yield Entry(folder.name, f"{folder}/", "file", frames.num_bytes)
        is_file = [entry.kind == "file" for entry in entries]
        if num_others := sum(is_file) - len(frames.files):
            skipped["file beside the numbered pictures of a clip"] += num_others
        entries = [entry for entry in entries if entry.kind != "file"]
    for entry in entries:
        if entry.kind == "folder":
            if os.path.realpath(entry.path) in above:
                skipped["link to a folder above it"] += 1
            else:
                yield from _files(at(entry.path), skipped, above, may_be_clip=True)
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
