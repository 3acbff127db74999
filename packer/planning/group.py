"""Tells which videos belong together: of one recording, or of equal content. Each split has all or none."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from packer.storage.files import read_many
from packer.storage.location import is_url
from packer.video.catalog import Video, has_video_extension
from packer.video.container import VideoError, reachable, source_sha256

_HMDB51 = re.compile(r"(.+)_[hulf]_(?:cm|nm)_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+")
_UCF101 = re.compile(r"v_(.+_g\d+)_c\d+")
"""Source: the READMEs of both datasets. Each class of UCF101 has its own g01, so the class is part of the group."""


def content_digests(videos: Sequence[Video], known_sha256: Mapping[str, str]) -> dict[str, str]:
    """Returns the sha256, by source, of each video that may have a copy: another video has the same size.

    Args:
        videos: The videos. A file whose size no other has is not read; one with several segments is read once.
        known_sha256: Digests by source; these videos are not read again.
    """
    files = {video.file_source: video for video in videos}
    known = {video.file_source: digest for video in videos if (digest := known_sha256.get(video.source))}
    by_size = Counter(video.num_bytes for video in files.values())
    alike = {source: video for source, video in files.items() if video.num_bytes and by_size[video.num_bytes] > 1}
    paths = [video.path for source, video in alike.items() if source not in known]
    read = read_many(_sha256, paths, is_remote=any(map(is_url, paths)))
    digests = {source: known.get(source) or next(read) for source in alike}
    return {video.source: digest for video in videos if (digest := digests.get(video.file_source))}


def video_groups(
    videos: Sequence[Video], group_regex: str, digests: Mapping[str, str], by_looks: bool = True
) -> list[int]:
    """Returns a group number per video, in order of first appearance.

    Videos of one group have a name's recording, a file, a stated group or their content in common, or one is marked as
    alike to another; a chain of these is one group.

    Args:
        videos: The videos.
        group_regex: `split.group_regex` of the configuration.
        digests: sha256 of contents, by source.
        by_looks: Whether videos that are marked as alike are of one group.
    """
    pattern = re.compile(group_regex) if group_regex else None
    first: dict[str, int] = {}
    parents = list(range(len(videos)))
    for position, video in enumerate(videos):
        stem = None if pattern else stem_group(video)
        file = f"file:{video.file_source}"  # of whole videos too: the same file may have labelled segments
        stated = f"stated:{video.group}" if video.group else None
        alike = f"file:{video.alike}" if video.alike and by_looks else None
        for key in (_name_group(video, pattern), stem, file, stated, alike, digests.get(video.source)):
            if key is not None:
                parents[_root(parents, position)] = _root(parents, first.setdefault(key, position))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(_root(parents, position), len(numbers)) for position in range(len(videos))]


def stem_group(video: Video) -> str | None:
    """Returns what files of one folder share whose names differ in a video's extension alone; None without one.

    `a/clip1.avi` and `a/clip1.MP4` are one recording, as it was recorded and as it was converted.
    """
    stem = video.file_source.rpartition(".")[0]
    return f"stem:{stem.casefold()}" if has_video_extension(video.file_source) else None


def _root(parents: list[int], position: int) -> int:
    while parents[position] != position:
        parents[position] = position = parents[parents[position]]
    return position


def _name_group(video: Video, pattern: re.Pattern[str] | None) -> str | None:
    """Returns the recording that a video was cut from, by its name; None if the name does not tell.

    `wave/RATRACE_wave_f_nm_np1_fr_goo_37.avi` is cut from the film RATRACE, from which clips of other classes may be
    cut too; `SoccerJuggling/v_SoccerJuggling_g23_c01.avi` is cut from SoccerJuggling_g23.
    """
    if pattern is not None:
        match = pattern.search(video.file_source)
        return None if match is None else "name:" + "\n".join(group or "" for group in match.groups() or [match[0]])
    name = video.file_source.rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    if match := _UCF101.fullmatch(stem):
        return f"ucf101:{match[1]}"
    if match := _HMDB51.fullmatch(stem):
        return f"hmdb51:{match[1].removesuffix(f'_{video.class_name}')}"
    return None


def content_digest(video: Video) -> str:
    """Returns the sha256 of a video's file; empty if it cannot be read. An error of the storage is raised."""
    return _sha256(video.path)


def _sha256(path: str) -> str:
    try:
        with reachable(path) as source:
            return source_sha256(source)
    except VideoError:
        return ""
