"""Makes segments of what no label is about, so that a model learns what the classes are not.

The unlabelled stretches of each file that has labelled segments are cut into pieces as long as the median of the
labelled segments. Files without a label are left alone: nobody may have looked at them yet.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from statistics import median_low

from configs.section import UsageError
from packer.storage.files import read_many
from packer.storage.location import is_url
from packer.video.catalog import Video
from packer.video.length import Length, header_length
from packer.video.segment import Segment

_Stretch = tuple[Fraction, Fraction]
_MILLISECOND = Fraction(1, 1000)
"""Bounds in seconds are rounded to it."""


def background_segments(videos: Sequence[Video], class_name: str, seed: int, earlier: Sequence[Video]) -> list[Video]:
    """Returns segments of the unlabelled stretches: at most as many as the commonest class has, chosen by the seed.

    Args:
        videos: The labelled videos.
        class_name: Class of the new segments. If labels use it too, theirs count.
        seed: Decides which segments are kept.
        earlier: Videos of an earlier pack that is extended. Of their files, the background segments are those that
            are packed, so that nothing that is packed changes.

    Raises:
        UsageError: No label is about a segment, or there is no unlabelled stretch that is long enough.
        OSError: A file's storage fails.
    """
    labelled: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        if video.segment:
            labelled[video.file_source].append(video)
    if not labelled:
        raise UsageError("labels_background is for labels with start and end: these labels are about whole videos")
    known = {video.source for video in videos}
    kept = [video for video in earlier if video.class_name == class_name and video.source not in known]
    full = {video.file_source for video in earlier} | {video.source for video in videos if video.segment is None}
    counts = Counter(video.class_name for video in (*videos, *kept))
    num_wanted = max(count for name, count in counts.items() if name != class_name or len(counts) == 1)
    files = [of_file for source, of_file in labelled.items() if source not in full]
    paths = [of_file[0].path for of_file in files]
    lengths = read_many(header_length, paths, is_remote=any(map(is_url, paths)))
    medians = _medians(videos)
    found = [
        replace(of_file[0], source=of_file[0].file_source + segment.fragment, class_name=class_name, segment=segment)
        for of_file, length in zip(files, lengths, strict=True)
        for segment in _of_file([video.segment for video in of_file if video.segment], length, medians)
    ]
    found.sort(key=lambda video: hashlib.sha256(f"{seed}/{video.source}".encode()).digest())
    chosen = [*kept, *found[: max(0, num_wanted - counts[class_name])]]
    if not chosen and not counts[class_name]:
        raise UsageError(
            f"no file has an unlabelled stretch as long as the median segment ({_say(medians)}): leave "
            "--labels-background out"
        )
    return chosen


def _medians(videos: Sequence[Video]) -> Mapping[str, Fraction]:
    lengths: dict[str, list[Fraction]] = defaultdict(list)
    for video in videos:
        if video.segment and video.segment.end is not None:
            lengths[video.segment.unit].append(video.segment.end - video.segment.start)
    return {unit: median_low(of_unit) for unit, of_unit in lengths.items()}


def _say(medians: Mapping[str, Fraction]) -> str:
    return " or ".join(f"{float(length):g} {unit}" for unit, length in medians.items()) or "none has an end"


def _of_file(segments: Sequence[Segment], length: Length, medians: Mapping[str, Fraction]) -> Iterator[Segment]:
    """Yields segments of one file, in the unit of its labels; none if it has labels in both units."""
    unit = segments[0].unit
    if any(segment.unit != unit for segment in segments) or unit not in medians:
        return
    step = _MILLISECOND if unit == "seconds" else Fraction(1)
    num_steps = max(1, int(medians[unit] / step))  # of one piece
    total = length.seconds if unit == "seconds" else Fraction(length.num_frames)
    for start, end in _unlabelled(segments, total):
        first, last = math.ceil(start / step), int(end / step)
        num_pieces, left_over = divmod(last - first, num_steps)
        for number in range(num_pieces):  # spread evenly: what is left over lies around them
            begin = first + number * num_steps + left_over * (number + 1) // (num_pieces + 1)
            yield Segment(begin * step, (begin + num_steps) * step, unit)


def _unlabelled(segments: Sequence[Segment], total: Fraction) -> Iterator[_Stretch]:
    """Yields the stretches before, between and after the segments; if the file's length is known, none goes beyond it.

    Labels may lie behind the end of their file: of a stretch before such a label, just what the file has counts.
    """
    at = Fraction(0)
    for segment in sorted(segments, key=lambda segment: segment.start):
        start = min(segment.start, total) if total else segment.start
        if start > at:
            yield at, start
        if segment.end is None:
            return
        at = max(at, segment.end)
    if total > at:
        yield at, total
