"""Looks for a `split.group_regex` that keeps given pairs of videos together by their names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from packer.planning.group import video_groups
from packer.video.catalog import Video

_DATE = r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d"
_PATTERNS = (
    r"([^/]+?)[ _.-]*\d+\.[^./]+$",  # the name without its last number: cam1_day2_003.mp4 -> cam1_day2
    r"([^/]+?)(?:[ _.-]+\d+)+\.[^./]+$",  # without all its last numbers: film_0001_0250.mp4 -> film
    r"([^/]+)[ _.-][^/ _.-]*\.[^./]+$",  # without its last part: film_a_end.mp4 -> film_a
    r"([^/ _.-]+)[ _.-][^/]*$",  # its first part: film_a_end.mp4 -> film
    rf"([^/]*?{_DATE}[-_T .]*\d\d)[^/]*$",  # up to the hour of its first date and time
    rf"([^/]*?{_DATE})[^/]*$",  # up to its first date
    r"([^/]*)\d\.[^./]+$",  # the numbers in tens: fi031.mp4 -> fi03
    r"([^/]*)\d\d\.[^./]+$",  # in hundreds
    r"^[^/]+/([^/]+)/",  # the folder below the class folder
)
_LEAST_KEPT = 0.8
"""Share of the pairs that a pattern must keep together."""
_MOST_IN_GROUP = 1 / 3
"""Share of all videos that one group may hold."""
_LEAST_GROUPS_OF_CLASS = 3
"""A class with fewer groups cannot be in train, val and test."""


@dataclass(frozen=True)
class NamePattern:
    """A regular expression that keeps pairs of videos together."""

    regex: str
    num_kept: int
    """How many of the pairs it keeps together."""


def find_pattern(videos: Sequence[Video], pairs: Sequence[tuple[int, int]], present: str) -> NamePattern | None:
    """Returns the pattern that keeps most of the pairs together, of several those with the most groups.

    None if each pattern tears more than a fifth of the pairs, or leaves too few groups to divide the videos.

    Args:
        videos: The videos.
        pairs: Positions of videos that belong together.
        present: `split.group_regex` of the pack.
    """
    best: tuple[int, int, str] | None = None
    for regex in _PATTERNS:
        groups = video_groups(videos, regex, {})
        num_kept = sum(groups[first] == groups[second] for first, second in pairs)
        if regex == present or num_kept < _LEAST_KEPT * len(pairs) or not _are_divisible(videos, groups):
            continue
        found = (num_kept, max(groups), regex)
        best = found if best is None or found[:2] > best[:2] else best
    return None if best is None else NamePattern(best[2], best[0])


def _are_divisible(videos: Sequence[Video], groups: Sequence[int]) -> bool:
    pairs = {(video.class_name, group) for video, group in zip(videos, groups, strict=True)}
    num_groups = Counter(class_name for class_name, _ in pairs)
    largest = max(Counter(groups).values())
    return largest <= _MOST_IN_GROUP * len(videos) and min(num_groups.values()) >= _LEAST_GROUPS_OF_CLASS
