"""Finds the candidate videos: every file below a class folder, whatever its name, and every folder of frames there.

A file is a video if it can be opened as one; its extension does not matter. A folder below a class folder is one too if
it holds at least two numbered pictures and no video: the pictures are its frames.

What holds no video by its header (texts, pictures, sound, archives, arrays of features) is set aside here, so that it
takes no place in a split. So are the proxies of cameras. If such a file has a video's extension, somebody took it for a
video: a pack counts it as a failed one. Skipped entries (hidden files, files beside the class folders, sockets and the
like) are counted for the report.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from configs.section import UsageError
from packer.storage.files import read_many, read_range
from packer.storage.location import Entry, Location, RemotePath, at, concerns_the_file, list_folder, relative_name
from packer.video.container import VideoError, choose_stream, fetched, open_container, open_source
from packer.video.frame_folder import is_picture_name, numbered_pictures
from packer.video.segment import Segment

_MAX_CLASS, _MAX_STEM, _HASH = 24, 40, 12
"""A key has at most 24 + 1 + 40 + 1 + 12 = 78 bytes: a tar member's name has room for 100."""
_HEAD_BYTES = 512
_BESIDE = "file beside the class folders"
_PICTURE_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
_DATA_HEADS = (
    *(b"\x93NUMPY", b"PK\3\4", b"\x89HDF", b"\x1f\x8b", b"%PDF", b"Rar!", b"7z\xbc\xaf", b"fLaC", b"ID3", b"PAR1"),
)
"""Arrays, archives and sound, which may be large and far away: they need not be read to know them."""
_STREAM_HEADS = (b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1", b"G@")
"""MPEG program, video and transport streams, and FLV: what recorders write, often under names of their own."""
_VIDEO_EXTENSIONS = frozenset(
    {
        *("264", "265", "3g2", "3gp", "3gpp", "asf", "av1", "avi", "dav", "divx", "dv", "f4v", "flv"),
        *("h261", "h263", "h264", "h265", "hevc", "insv", "ivf", "m1v", "m2t", "m2ts", "m2v", "m4v", "mjpeg"),
        *("mjpg", "mk3d", "mkv", "mod", "mov", "mp4", "mpe", "mpeg", "mpg", "mpv", "mts", "mxf", "nut"),
        *("nuv", "obu", "ogm", "ogv", "qt", "rm", "rmvb", "tod", "trp", "ts", "vob", "vro", "webm"),
        *("wmv", "wtv", "y4m"),
    }
)
_PROXY_EXTENSIONS = frozenset({"lrf", "lrv", "thm"})
"""Small copies and thumbnails that GoPro, DJI and Canon cameras write beside every recording."""
_NOT_HERE = frozenset({"not_a_video", "no_video_stream"})
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


@dataclass(frozen=True)
class Video:
    """One candidate file."""

    path: str
    """Its path or address; a folder of pictures ends with /. Holds surrogate escapes if the name is not UTF-8."""
    source: str
    """The path relative to the data folder, with / between folders, as valid text; for a segment of a video, followed
    by `Segment.fragment`. No two videos have the same."""
    class_name: str
    num_bytes: int
    segment: Segment | None = None
    """None: the whole video."""
    group: str = ""
    """Videos of one group come into one split; empty: names and contents alone decide."""
    alike: str = ""
    """The `file_source` of a video that it looks like, and with which it stays; empty: none, or nobody looked."""

    @cached_property
    def file_source(self) -> str:
        """The path relative to the data folder; all segments of a file have the same."""
        return self.source.removesuffix(self.segment.fragment) if self.segment else self.source

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
        name = self.file_source.rpartition("/")[2]
        stem = (name.rpartition(".")[0] or name) + (self.segment.fragment if self.segment else "")
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
    """Files in class folders that hold no video by their header, are empty, or are proxies of cameras."""
    num_skipped: dict[str, int]
    """Number of skipped entries, by the reason."""


def has_video_extension(source: str) -> bool:
    """Tells whether a file's name ends like a video's: `walk.MP4` does, `labels.txt` and `walk` do not."""
    return _extension(source) in _VIDEO_EXTENSIONS


def find_videos(folder: Location, split_folders: Collection[str] = ()) -> Catalog:
    """Returns the catalog of a folder that holds one folder per class; subfolders of a class folder are searched too.

    Args:
        folder: The data folder.
        split_folders: Names, in lower case, that the folders above the class folders may have, such as train and val;
            empty: the class folders lie in `folder` itself.

    Raises:
        UsageError: The folder cannot be read, or no file in it can be a video.
    """
    skipped: Counter[str] = Counter()
    class_names: dict[str, str] = {}
    videos = []
    for class_folder in _class_folders(folder, split_folders, skipped):
        class_name = _text(class_folder.name)
        if class_names.setdefault(class_name, class_folder.name) != class_folder.name:
            raise UsageError(
                f"{folder} has class folders whose names differ only in bytes that are not text: rename them"
            )
        above = frozenset({os.path.realpath(str(folder)), os.path.realpath(Path(class_folder.path).parent)})
        for file in _files(at(class_folder.path), skipped, above):
            source = _text(relative_name(file.path.rstrip("/"), folder))
            videos.append(Video(file.path, source, class_name, file.num_bytes))
    catalog = _set_aside_non_videos(folder, tuple(sorted(class_names)), videos, skipped, are_proxies_known=True)
    if not catalog.videos:
        if num_flat := skipped[_BESIDE]:
            raise UsageError(
                f"{folder} holds {num_flat} file{'s' * (num_flat != 1)} outside class folders, and no video in one: "
                f"put the videos of each class into a folder with its name ({folder}/CLASS/VIDEO), or give a table of "
                f"their classes (--labels); if {folder} is itself the folder of one class, give the folder above it"
            )
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
    catalog = _set_aside_non_videos(folder, (), videos, skipped, are_proxies_known=False)
    if not catalog.videos:
        raise UsageError(f"{folder} holds no videos")
    return catalog


def _set_aside_non_videos(
    folder: Location, class_names: tuple[str, ...], videos: list[Video], skipped: Counter[str], are_proxies_known: bool
) -> Catalog:
    videos.sort(key=lambda video: video.source)

    def why_not(video: Video) -> VideoError | None:
        return (_is_proxy(video) if are_proxies_known else None) or _not_a_video(video)

    errors = read_many(why_not, videos, is_remote=isinstance(folder, RemotePath))
    found = list(zip(videos, errors, strict=True))
    return Catalog(
        class_names=class_names,
        videos=tuple(video for video, error in found if error is None),
        non_videos=tuple((video, error) for video, error in found if error is not None),
        num_skipped=dict(skipped),
    )


def _class_folders(folder: Location, split_folders: Collection[str], skipped: Counter[str]) -> Iterator[Entry]:
    for entry in _entries(folder, skipped):
        if entry.kind != "folder":
            skipped[_BESIDE] += 1
        elif not split_folders:
            yield entry
        elif entry.name.casefold() in split_folders:
            yield from _class_folders(at(entry.path), (), skipped)
        else:
            raise UsageError(
                f"{folder} has the folder {_text(entry.name)}, which is no split: with --split.method folders it holds "
                "train, val and test alone (or training, validation, dev, testing ...); rename or move it"
            )


def _is_proxy(video: Video) -> VideoError | None:
    if _extension(video.source) not in _PROXY_EXTENSIONS:
        return None
    return VideoError("proxy", "a camera's small copy or thumbnail of another file: give it another ending to pack it")


def _not_a_video(video: Video) -> VideoError | None:
    """Returns why the file holds no video, or None; to be fast, opens only files that do not look like a video."""
    if video.is_frame_folder:
        return None
    is_named_so = has_video_extension(video.source)
    try:
        if video.num_bytes:
            head = read_range(at(video.path), 0, _HEAD_BYTES)
            if not is_named_so and head.startswith(_DATA_HEADS):
                return VideoError("not_a_video", "the file is an array, an archive, a document or sound")
            if not _is_suspect(video.source, head):
                return None
        with fetched(video.path) as source, open_source(source) as file, open_container(file) as container:
            if not is_named_so:
                choose_stream(container)
            return None
    except OSError as error:
        if concerns_the_file(error):
            return None  # packing rejects it as unreadable
        raise
    except VideoError as error:
        return error if error.reason in _NOT_HERE else None


def _holds_video(entries: Sequence[Entry]) -> bool:
    """Tells whether a folder with pictures holds a video as well, by name or by content."""
    others = [entry for entry in entries if entry.kind == "file" and not is_picture_name(entry.name)]
    return any(has_video_extension(entry.name) for entry in others) or any(map(_opens_as_video, others))


def _opens_as_video(entry: Entry) -> bool:
    try:
        head = read_range(at(entry.path), 0, _HEAD_BYTES)
        if b"\0" not in head or head.startswith(_PICTURE_HEADS + _DATA_HEADS):
            return False
        with fetched(entry.path) as source, open_source(source) as file, open_container(file) as container:
            return bool(container.streams.video)
    except (OSError, VideoError):
        return False


def _is_suspect(source: str, head: bytes) -> bool:
    if b"\0" not in head or head.startswith(_PICTURE_HEADS):
        return True
    is_mp4 = head[4:8] == b"ftyp" and not _extension(source)  # .m4a begins in the same way
    return not (has_video_extension(source) or is_mp4 or head.startswith(_STREAM_HEADS))


def _extension(source: str) -> str:
    _, dot, extension = source.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot else ""


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
    visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _SYSTEM_FOLDERS]
    if len(visible) < len(entries):
        skipped["hidden"] += len(entries) - len(visible)
    return visible


def _plain(text: str, num_chars: int) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:num_chars].strip("_") or "x"


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
