"""Turns the segments of one video into clips, in one pass over the video.

A segment's clip is what a full decode of the whole file gives. It depends on the file, the segment and the settings
alone, never on the other segments of the pass: a pack that goes on later, or repairs a shard, reads other segments
together and must get the same bytes. Memory stays flat: each wanted frame is compressed as it comes and waits on disk.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import NamedTuple

import av

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import Clip, Picked, decode_choices, duration_of, make_clip, sampled
from packer.video.clock import FrameTimes
from packer.video.container import VideoError, kept_still, reachable, source_sha256, translated_errors
from packer.video.decode import Decoded
from packer.video.frame_folder import FrameFolder
from packer.video.jpeg import encode
from packer.video.planes import PixelShape, Resizer, common_size, matrix_of
from packer.video.segment import Segment, text_of
from packer.video.spool import Spool


class _Frame(NamedTuple):
    """A frame that was kept."""

    place: int
    """Of its JPEG in the spool."""
    size: tuple[int, int]
    """Height and width as decoded."""
    is_colour_approximate: bool


_Kept = _Frame | VideoError
"""A frame, or why it cannot be turned into a JPEG."""


class _Cut(NamedTuple):
    """The frames of one segment."""

    frames: tuple[_Frame, ...]
    first: _Frame
    """Frame 0 of the video."""
    within: range
    """Indices of all frames of the segment."""
    picked: Picked[_Kept]


def read_segments(
    source: str | Path | bytes,
    segments: Sequence[Segment],
    clip: ClipConfig,
    limits: DecodeLimits,
    before_decode: Callable[[int], None] | None = None,
) -> Iterator[Clip | VideoError]:
    """Yields, for each segment of one video in order, its clip or the reason why it has none.

    The whole video has been decoded when the first one comes. See `read_clip` for the arguments.

    Raises:
        OSError: The video's storage fails, or the disk for temporary files is full.
    """
    with Spool() as spool:
        try:
            with reachable(source) as here, kept_still(here):
                sha256 = source_sha256(here)
                cuts = _Pass(here, clip, limits, spool).cuts_of(segments, before_decode)
        except VideoError as error:
            yield from (error for _ in segments)
            return
        for segment, cut in zip(segments, cuts, strict=True):
            yield cut if isinstance(cut, VideoError) else _clip(segment, cut, clip, spool, sha256)


def frames_of(segment: Segment, times: FrameTimes) -> range:
    """Returns the indices of the frames that are shown in a segment; empty if there are none, or no way to tell."""
    num_frames = len(times.ticks)
    if segment.fault or (segment.unit == "seconds" and times.seconds_per_tick is None):
        return range(0)

    def index_of(bound: Fraction) -> int:
        return min(ceil(bound), num_frames) if segment.unit == "frames" else times.first_at(bound)

    return range(index_of(segment.start), num_frames if segment.end is None else index_of(segment.end))


@dataclass(frozen=True)
class _Pass:
    """Reads the frames of the segments of one video."""

    source: str | Path | bytes | FrameFolder
    clip: ClipConfig
    limits: DecodeLimits
    spool: Spool

    def cuts_of(
        self, segments: Sequence[Segment], before_decode: Callable[[int], None] | None
    ) -> list[_Cut | VideoError]:
        cuts = self._decode(segments, None, before_decode)
        other_sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, cut in enumerate(cuts):
            if isinstance(cut, _Cut) and (size := common_size([frame.size for frame in cut.frames])) != cut.first.size:
                other_sizes[size].append(number)
        for size, numbers in other_sizes.items():  # known only now; such videos are rare
            again = self._decode([segments[number] for number in numbers], size, None)
            for number, cut in zip(numbers, again, strict=True):
                cuts[number] = cut
        return cuts

    def _decode(
        self,
        segments: Sequence[Segment],
        reference_size: tuple[int, int] | None,
        before_decode: Callable[[int], None] | None,
    ) -> list[_Cut | VideoError]:
        resizer = Resizer(self.clip.short_side_px, reference_size)

        def keep(frame: av.VideoFrame, stream: PixelShape, index: int) -> _Kept:
            try:
                with translated_errors():
                    jpeg = encode(resizer(frame, stream, index), self.clip.jpeg_quality)
            except VideoError as error:
                if error.reason == "out_of_memory":
                    raise
                return error
            size = (frame.height, frame.width)
            return _Frame(self.spool.add(jpeg), size, matrix_of(frame).is_approximate)

        def chooser(segment: Segment) -> Callable[[FrameTimes], tuple[int, ...]]:
            return lambda times: self._indices(segment, times)

        choices = [chooser(segment) for segment in segments]
        outcomes = decode_choices(self.source, self.clip, self.limits, choices, keep, before_decode)
        return [
            outcome if isinstance(outcome, VideoError) else self._cut(segment, outcome)
            for segment, outcome in zip(segments, outcomes, strict=True)
        ]

    def _indices(self, segment: Segment, times: FrameTimes) -> tuple[int, ...]:
        within = frames_of(segment, times)
        return sampled(times, self.clip, within) if within else ()

    def _cut(self, segment: Segment, video: Decoded[_Kept]) -> _Cut | VideoError:
        indices = self._indices(segment, video.times)
        if not indices:
            return _bad_segment(segment, video)
        first, *frames = (video.kept[index] for index in (0, *indices))
        good = [frame for frame in frames if isinstance(frame, _Frame)]
        if isinstance(first, VideoError) or len(good) < len(frames):
            return next(frame for frame in (first, *frames) if isinstance(frame, VideoError))
        return _Cut(tuple(good), first, frames_of(segment, video.times), Picked((), indices, video))


def _bad_segment(segment: Segment, video: Decoded[_Kept]) -> VideoError:
    fault = segment.fault
    if not fault and segment.unit == "seconds" and video.times.seconds_per_tick is None:
        sentence = "the segment is in seconds, but the video has neither times nor a rate: give it in frames"
        return VideoError("bad_segment", sentence)
    end = "the end" if segment.end is None else text_of(segment.end)
    what = fault or f"({text_of(segment.start)} to {end} {segment.unit}) holds no frame"
    seconds = duration_of(video)
    length = f"{video.num_frames} frames" + (f", {seconds:.3f} seconds" if seconds else "")
    return VideoError("bad_segment", f"the segment {what}; the video has {length}: correct the segment or remove it")


def _clip(segment: Segment, cut: _Cut, clip: ClipConfig, spool: Spool, sha256: str) -> Clip:
    times, indices = cut.picked.video.times, cut.picked.frame_indices
    whole = make_clip(
        clip,
        cut.picked,
        [spool.read(frame.place) for frame in cut.frames],
        [cut.first.size, *(frame.size for frame in cut.frames)],
        any(frame.is_colour_approximate for frame in (cut.first, *cut.frames)),
        sha256,
    )
    start, end = _bounds(segment, cut)
    shown_at = [times.seconds_of(index) for index in indices]
    return replace(
        whole,
        sampled_by=whole.sampled_by if times.are_own or segment.unit == "frames" else "rate",
        start_seconds=start,
        end_seconds=end,
        num_segment_frames=len(cut.within),
        frame_times_seconds=tuple(float(time) for time in shown_at if time is not None),
    )


def _bounds(segment: Segment, cut: _Cut) -> tuple[float | None, float | None]:
    """Returns when a segment starts and ends, in seconds; None: not known, or at the end of the video."""
    if segment.unit == "seconds":
        return float(segment.start), None if segment.end is None else float(segment.end)
    video, within = cut.picked.video, cut.within
    start, last = video.times.seconds_of(within.start), video.times.seconds_of(within[-1])
    if start is None or last is None:
        return None, None
    if segment.end is None:
        return float(start), None
    after = video.times.seconds_of(within.stop) if within.stop < video.num_frames else None
    return float(start), float(after) if after is not None else float(last) + (1 / video.fps if video.fps else 0.0)
