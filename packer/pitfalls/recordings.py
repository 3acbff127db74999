"""Tells which clips of different splits look alike, as parts of one recording do, and how to keep them together."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from configs.pack import SplitConfig
from packer.labels.splits import SPLITS
from packer.pitfalls.name_patterns import find_pattern
from packer.planning.alike import Look, looks_across
from packer.video.catalog import Video
from packer.video.picture_hash import hash_words
from packer.video.segment import file_of

COLUMNS = ("source", "split", "class_name", "frame_hashes")
"""The columns of the index that are needed."""
MOST_OF_CLASS = 1 / 3
"""Share of a class above which a group of videos that look alike is told."""

_NUM_NAMED = 3


def look_pitfalls(table: pa.Table, config: SplitConfig) -> Iterator[tuple[str, str]]:
    """Yields what clips that look alike spoil, as (label, text); nothing if no two splits hold such clips.

    Args:
        table: The index of a pack, with `COLUMNS`. Packs of earlier versions lack the hashes, and give nothing.
        config: How the clips are split.
    """
    if "frame_hashes" not in table.column_names:
        return
    rows = [row for row in table.to_pylist() if row["frame_hashes"]]
    splits = [row["split"] for row in rows]
    looks = looks_across(
        hash_words([row["frame_hashes"] for row in rows]),
        [SPLITS.index(split) for split in splits],
        [file_of(row["source"]) for row in rows],
    )
    if not looks:
        return
    num_held_out = sum(split != "train" for split in splits)
    yield (
        "alike",
        f"{len(looks)} of {num_held_out} val and test clips look like a clip of another split, as parts of one "
        "recording do:",
    )
    for look in sorted(looks, key=lambda look: (not look.are_neighbours, look.num_bits, look.video))[:_NUM_NAMED]:
        yield "", " and ".join(f"{rows[at]['source']} ({splits[at]})" for at in (look.video, look.other))
    if num_neighbours := sum(look.are_neighbours for look in looks):
        yield "", f"{num_neighbours} of them also have the next number in their names"
    videos = [Video("", file_of(row["source"]), row["class_name"], 0) for row in rows]
    yield "", _way_out(videos, looks, config)


def crowd_pitfalls(videos: Sequence[Video]) -> Iterator[tuple[str, str]]:
    """Yields the groups of videos that look alike that hold more than a third of a class, as (label, text)."""
    alike = {video.file_source: video.alike for video in videos if video.alike}
    num_of_class = Counter(video.class_name for video in videos)
    sizes = Counter((video.class_name, _root(video.file_source, alike)) for video in videos)
    for (class_name, root), size in sizes.most_common():
        if size > max(1, MOST_OF_CLASS * num_of_class[class_name]) and root in alike.values():
            yield (
                "alike",
                f"{size} of the {num_of_class[class_name]} videos of class {class_name!r} are one group, because they "
                f"look like {root} or like each other: if that is a fixed camera, group by --split.group-regex instead",
            )


def _root(source: str, alike: Mapping[str, str]) -> str:
    while source in alike:
        source = alike[source]
    return source


def _way_out(videos: Sequence[Video], looks: Sequence[Look], config: SplitConfig) -> str:
    if not config.is_stratified:
        return "the given splits have them so"
    by_pictures = "--split.group-similar keeps together what looks alike"
    if config.group_similar:
        by_pictures = "they were packed before the others came, or another video stands between them"
    pattern = find_pattern(videos, [(look.video, look.other) for look in looks], config.group_regex)
    if pattern is None:
        return by_pictures
    return (
        f"--split.group-regex '{pattern.regex}' keeps {pattern.num_kept} of these {len(looks)} together; {by_pictures}"
    )
