"""Finds videos that look alike, as parts of one recording do, by the hashes of their first and last frames.

Two videos look alike if a frame of one is near a frame of the other: the last of one part of a recording and the
first of the next part, or any two frames of a camera that does not move. So videos of one fixed camera look alike too,
whenever they were recorded: the pictures alone cannot tell.

All pairs are compared, in blocks of bounded memory, and no list of the pairs is kept: a fixed camera has billions.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from packer.video.catalog import Video
from packer.video.picture_hash import hash_words

MOST_COARSE_BITS, MOST_BITS = 10, 48
"""Two frames are near if at most this many of the 64 coarse bits differ, and of the 256 fine ones: see docs/videos.md
for what that finds and misses."""
MOST_COARSE_BITS_BY_NAME, MOST_BITS_BY_NAME = 16, 64
"""The same, for videos whose names differ in a number by one."""

_ROWS, _COLUMNS = 64, 4096
"""How many videos are compared with how many at once, at most: blocks that fit into a processor's cache."""
_LAST_NUMBER = re.compile(r"(.*?)(\d{1,18})(\D*)")
_FAR = np.iinfo(np.uint16).max

_Words = NDArray[np.uint64]
"""`(N, 2, 5)`: the hashes of the first and of the last frame of each video."""
_Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Look:
    """A video that looks like one of another split."""

    video: int
    """Its position."""
    other: int
    """Position of a video that it looks like."""
    num_bits: int
    """How many of the 256 fine bits of their nearest frames differ."""
    are_neighbours: bool
    """Whether their names differ in a number by one."""


def looks_across(words: _Words, splits: Sequence[int], sources: Sequence[str]) -> list[Look]:
    """Returns the videos that look like one of a lower split, each once, with one that it looks like.

    Args:
        words: The hashes of the videos, as `hash_words` gives them.
        splits: The number of each video's split.
        sources: Where each video lies.
    """
    of = np.asarray(splits, np.int64)
    found: dict[int, Look] = {}
    for split in sorted(set(splits)):
        rows, columns = np.flatnonzero(of == split), np.flatnonzero(of < split)
        for at, other, num_bits in _near(words, rows, columns):
            found[at] = Look(at, other, num_bits, False)
    for pair in neighbours(sources):
        low, high = sorted(pair, key=lambda at: splits[at])
        by_name = _num_bits_by_name(words, low, high)
        if splits[low] != splits[high] and by_name is not None:
            found[high] = Look(high, low, by_name, True)
    return [found[at] for at in sorted(found)]


def mark_alike(
    videos: Sequence[Video], groups: Sequence[int], hashes: Mapping[str, Sequence[str]], decided: Mapping[str, str]
) -> list[Video]:
    """Returns the videos, those marked that look like another one (`Video.alike`).

    Videos that look alike, and chains of them, are marked with the first of them; or, if their split is open and one
    looks like a video whose split is decided, with that one. A video whose group has a decided split is not marked.

    Args:
        videos: The videos.
        groups: The group of each video, without regard to looks.
        hashes: Those of the first and last frame, by source; a video that is missing here is not marked.
        decided: Splits by source that stay.
    """
    known = [at for at, video in enumerate(videos) if video.source in hashes]
    words = hash_words([hashes[videos[at].source] for at in known])
    is_settled = {group for video, group in zip(videos, groups, strict=True) if video.source in decided}
    free, fixed = (
        np.array([at for at, place in enumerate(known) if (groups[place] in is_settled) == settled], np.int64)
        for settled in (False, True)
    )
    parents = {groups[known[at]]: groups[known[at]] for at in free}
    for at, other in (*_chains(words, free), *_chains_by_name(words, free, [videos[at].source for at in known])):
        first, second = sorted(_root(parents, groups[known[at]]) for at in (at, other))
        parents[second] = first  # groups are numbered in the order of their first videos
    head: dict[int, Video] = {}
    for at, other, _ in sorted(_near(words, free, fixed), key=lambda look: look[2]):
        head.setdefault(_root(parents, groups[known[at]]), videos[known[other]])
    marked = list(videos)
    for at in free:
        place = known[at]
        first_video = head.setdefault(_root(parents, groups[place]), videos[place])
        if first_video.file_source != videos[place].file_source:
            marked[place] = replace(videos[place], alike=first_video.file_source)
    return marked


def neighbours(sources: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields the positions of files whose names differ, if at all, in their last number, and there by one at most.

    `a/cam1_009.mp4` and `b/cam1_010.mp4` are neighbours, in whatever folders they lie.
    """
    numbered: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for at, source in enumerate(sources):
        name = source.rpartition("/")[2]
        if match := _LAST_NUMBER.fullmatch(name.rpartition(".")[0] or name):
            numbered[match[1], match[3]].append((int(match[2]), at))
    for of_name in numbered.values():
        for (number, at), (next_number, next_at) in pairwise(sorted(of_name)):
            if next_number - number <= 1:
                yield at, next_at


def _near(words: _Words, rows: _Positions, columns: _Positions) -> Iterator[tuple[int, int, int]]:
    """Yields (row, column, number of bits) for each row that is near a column: the nearest of the first block with one.

    A row that has one is not compared with the other blocks: with a fixed camera, all are near. So the first blocks are
    small ones.
    """
    start, num_columns = 0, _ROWS
    while start < len(columns) and len(rows):
        of_block = columns[start : start + num_columns]
        start, num_columns = start + num_columns, min(_COLUMNS, 4 * num_columns)
        coarse = _coarse(words, of_block)
        still = []
        for some in np.array_split(rows, max(1, -(-len(rows) // _ROWS))):
            num_bits = _num_bits(words, some, of_block, coarse)
            best = num_bits.argmin(1)
            fewest = num_bits[np.arange(len(some)), best]
            is_near = fewest < _FAR
            found = some[is_near], of_block[best[is_near]], fewest[is_near]
            yield from zip(*(array.tolist() for array in found), strict=True)
            still.append(some[~is_near])
        rows = np.concatenate(still)


def _chains(words: _Words, positions: _Positions) -> Iterator[tuple[int, int]]:
    """Yields pairs that are near, as many as are needed to link all that are near each other, by others or directly."""
    left, coarse = positions, _coarse(words, positions)
    while len(left):
        waiting, left, coarse = left[:1].tolist(), left[1:], coarse[:, 1:]
        while waiting and len(left):
            at = waiting.pop()
            is_near = _num_bits(words, np.array([at]), left, coarse)[0] < _FAR
            if is_near.any():
                found = left[is_near].tolist()
                left, coarse = left[~is_near], coarse[:, ~is_near]
                waiting += found
                yield from ((at, other) for other in found)


def _chains_by_name(words: _Words, positions: _Positions, sources: Sequence[str]) -> Iterator[tuple[int, int]]:
    for at, other in neighbours([sources[position] for position in positions]):
        pair = int(positions[at]), int(positions[other])
        if _num_bits_by_name(words, *pair) is not None:
            yield pair


def _num_bits_by_name(words: _Words, first: int, second: int) -> int | None:
    """Returns how many bits of the nearest frames of two videos differ; None if too many do for neighbours."""
    other = np.array([second])
    limits = MOST_COARSE_BITS_BY_NAME, MOST_BITS_BY_NAME
    num_bits = int(_num_bits(words, np.array([first]), other, _coarse(words, other), *limits)[0, 0])
    return num_bits if num_bits < _FAR else None


def _coarse(words: _Words, positions: _Positions) -> NDArray[np.uint64]:
    """Returns the coarse words of some videos as `(2, N)`, so that those of one kind lie side by side."""
    return np.ascontiguousarray(words[positions, :, 0].T)


def _num_bits(
    words: _Words,
    rows: _Positions,
    columns: _Positions,
    coarse: NDArray[np.uint64],
    most_coarse: int = MOST_COARSE_BITS,
    most: int = MOST_BITS,
) -> NDArray[np.uint16]:
    """Returns, as `(R, C)`, how many fine bits of the nearest frames of two videos differ; 65,535 if they are not near.

    `coarse` holds the coarse words of the columns. The fine ones are compared only if the coarse ones are near.
    """
    fewest = np.full((len(rows), len(columns)), _FAR, np.uint16)
    for of_row, of_column in product((0, 1), (0, 1)):
        is_near = np.bitwise_count(words[rows, of_row, :1] ^ coarse[of_column]) <= most_coarse
        near = np.flatnonzero(is_near)  # 70 times as fast as nonzero of two dimensions
        if len(near):
            row, column = np.divmod(near, len(columns))
            differing = words[rows[row], of_row, 1:] ^ words[columns[column], of_column, 1:]
            num_bits = np.bitwise_count(differing).sum(1, np.uint16)
            num_bits[num_bits > most] = _FAR
            fewest[row, column] = np.minimum(fewest[row, column], num_bits)
    return fewest


def _root(parents: dict[int, int], group: int) -> int:
    while parents[group] != group:
        parents[group] = group = parents[parents[group]]
    return group
