"""The frames' own times, against the rate and the duration that a container states."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from operator import sub
from statistics import median
from typing import Protocol

import av
from av.container import InputContainer
from av.video.stream import VideoStream

_TOLERANCE = 0.1
"""Share by which a stated rate may differ from the frames' own: roundings and a missing frame stay far below it."""
_END_TOLERANCE_SECONDS = 1.0
_STATES_DURATION = frozenset({"matroska,webm", "flv"})
"""Containers whose stated duration is neither counted from their index nor guessed from the size of the file."""


_COUNTS_CHUNKS = "avi"
"""The container whose frames have no time of their own: the n-th piece of data is due at the n-th tick."""


@dataclass(frozen=True)
class FrameTimes:
    """When the frames of a video are shown, in display order."""

    ticks: Sequence[int]
    """In a unit of the video's own; never falling."""
    are_own: bool
    """False: the frames lack times, or their clock jumps back. They count as equally spaced then."""
    seconds_per_tick: Fraction | None = None
    """None: not known."""
    start_tick: Fraction = Fraction(0)
    """When the file starts, as players show it."""

    def seconds_of(self, index: int) -> Fraction | None:
        """Returns when a frame is shown, from the start of the file; None if the unit is not known."""
        if self.seconds_per_tick is None:
            return None
        return (self.ticks[index] - self.start_tick) * self.seconds_per_tick

    def first_at(self, seconds: Fraction) -> int:
        """Returns the index of the first frame that is shown at a time or later; the number of frames if none is.

        Raises:
            ValueError: The unit of the times is not known.
        """
        if self.seconds_per_tick is None:
            raise ValueError("seconds_per_tick (None) must be known to find a frame by its time")
        return bisect_left(self.ticks, ceil(seconds / self.seconds_per_tick + self.start_tick))


NO_TIMES = FrameTimes((), False)


class Timed(Protocol):
    """What the clock corrects."""

    fps: float
    duration_seconds: float


class Clock:
    """Knows the times of the packets of one stream."""

    def __init__(
        self, time_base: Fraction | None, container_format: str, start: Fraction | None, rate: Fraction | None
    ) -> None:
        """Takes what the container says of a stream.

        Args:
            time_base: Unit of the stream's times, in seconds.
            container_format: Name of the container's format.
            start: When the file starts, in seconds on the stream's clock; None: when its first frame is shown.
            rate: Mean frames per second; None: not known.
        """
        self.packets: list[tuple[int | None, int | None, int | None]] = []
        """PTS, DTS and duration of each packet that holds a frame, in decoding order; the survey appends them.

        A plain list, because a call per packet cost a quarter of the survey.
        """
        self._time_base = time_base or Fraction(0)
        self._counts_chunks = container_format == _COUNTS_CHUNKS
        self._start = start
        self._rate = rate

    @property
    def packet_times(self) -> list[int | None]:
        """When the packets are shown, in decoding order; None: not stated."""
        return [pts for pts, _, _ in self.packets]

    @cached_property
    def _times(self) -> list[int]:
        return [pts for pts, _, _ in self.packets if pts is not None]

    def frame_times(self, own: Sequence[int | None]) -> FrameTimes:
        """Returns the times of frames, given each frame's own time in display order; None: it has none.

        Frames of an AVI are shown in the steps in which their packets come: what FFmpeg gives as their own times is
        guessed and may fall.
        """
        num_frames = len(own)
        if self._counts_chunks and num_frames == len(self.packets):
            own = _sorted([dts for _, dts, _ in self.packets])
        elif self._counts_chunks:
            own = ()
        times = [time for time in own if time is not None]
        if len(times) == num_frames > 0 and times[0] < times[-1] and times == sorted(times):
            start_tick = Fraction(times[0])
            if self._start is not None and self._time_base and not self._counts_chunks:
                start_tick = self._start / self._time_base
            return FrameTimes(times, True, self._time_base or None, start_tick)
        return FrameTimes(range(num_frames), False, 1 / self._rate if self._rate else None)

    def expected_times(self, num_frames: int) -> FrameTimes:
        """Returns the times that as many frames as this have if they are shown in the order of their times."""
        return self.frame_times(_sorted(self.packet_times)[:num_frames])

    def correct(self, timed: Timed) -> None:
        """Sets rate and duration by the frames' own times if the stated rate cannot be true.

        A rate is untrue if it lies more than 10 % off both the mean and the median gap between frames: so neither one
        long pause nor frames of varying rate count against it. If the clock jumps back, as in joined recordings, the
        stated duration is that of one of them.
        """
        if timed.fps and self._jumps_back:
            timed.duration_seconds = len(self.packets) / timed.fps
        gaps = self._gaps()
        if not gaps:
            return
        ticks_per_second = 1 / float(self._time_base)
        mean_fps = ticks_per_second * len(gaps) / sum(gaps)
        if _is_off(timed.fps, mean_fps) and _is_off(timed.fps, ticks_per_second / median(gaps)):
            timed.fps = mean_fps
            timed.duration_seconds = (len(gaps) + 1) / mean_fps

    @property
    def num_due(self) -> int:
        """How many frames the packets stand for: an AVI holds empty ones, so that the frame before stays on screen."""
        if not self._counts_chunks:
            return len(self.packets)
        return max((dts + 1 for _, dts, _ in self.packets if dts is not None), default=0)

    def ends_early(self, container: InputContainer, stream: VideoStream) -> bool:
        """Tells whether the last frame lies far before the end that the container states for this stream alone."""
        if container.format.name not in _STATES_DURATION or len(container.streams) > 1 or not container.duration:
            return False
        stated_seconds = container.duration / av.time_base
        start = min(self._times, default=0)
        end = max((pts + (duration or 0) for pts, _, duration in self.packets if pts is not None), default=0)
        missing_seconds = stated_seconds - float((max(0, end) - min(0, start)) * self._time_base)
        return missing_seconds > max(_END_TOLERANCE_SECONDS, _TOLERANCE * stated_seconds)

    @cached_property
    def _jumps_back(self) -> bool:
        decoded_at = [dts for _, dts, _ in self.packets if dts is not None]
        return decoded_at != sorted(decoded_at)

    def _gaps(self) -> Sequence[int]:
        """Returns the gaps between the frames in display order; none if the clock jumps back or frames lack a time."""
        if len(self._times) < len(self.packets) or not self._time_base:
            return ()
        if self._jumps_back:
            return ()
        times = sorted(self._times)
        gaps = list(map(sub, times[1:], times))
        return gaps if gaps and min(gaps) > 0 else ()


def _is_off(stated_fps: float, fps: float) -> bool:
    return abs(stated_fps - fps) > _TOLERANCE * fps


def _sorted(times: Sequence[int | None]) -> Sequence[int | None]:
    """Returns times in order; as they are if one is not stated."""
    known = sorted(time for time in times if time is not None)
    return known if len(known) == len(times) else times
