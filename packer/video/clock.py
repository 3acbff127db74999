"""The frames' own times, against the rate and the duration that a container states."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median
from typing import Protocol

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from packer.video.packets import Packet

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
    """In units of the stream's time base; never falling."""
    are_own: bool
    """False: the frames lack times, or their clock jumps back. They count as equally spaced then."""


NO_TIMES = FrameTimes((), False)


class Timed(Protocol):
    """What the clock corrects."""

    fps: float
    duration_seconds: float


class Clock:
    """Reads the times of the packets of one stream."""

    def __init__(self, time_base: Fraction | None, container_format: str) -> None:
        """Takes the unit of the stream's times, in seconds, and the name of the container's format."""
        self._times: list[int] = []
        self._packet_times: list[tuple[int | None, int | None]] = []
        self._time_base = time_base or Fraction(0)
        self._counts_chunks = container_format == _COUNTS_CHUNKS
        self._last_dts = -(2**63)
        self._is_even = True
        self._end = 0

    def read(self, packet: Packet) -> None:
        """Takes the next packet in decoding order."""
        pts, dts = packet.pts, packet.dts
        if not packet.size or packet.is_discard:
            return
        self._packet_times.append((pts, dts))
        if pts is None:
            self._is_even = False
            return
        self._times.append(pts)
        self._end = max(self._end, pts + (packet.duration or 0))
        if dts is not None:
            self._is_even &= dts >= self._last_dts
            self._last_dts = dts

    @property
    def packet_times(self) -> list[int | None]:
        """When the packets are shown, in decoding order; None: not stated."""
        return [pts for pts, _ in self._packet_times]

    def frame_times(self, own: Sequence[int | None]) -> FrameTimes:
        """Returns the times of frames, given each frame's own time in display order; None: it has none.

        Frames of an AVI are shown in the steps in which their packets come: what FFmpeg gives as their own times is
        guessed and may fall.
        """
        num_frames = len(own)
        if self._counts_chunks and num_frames == len(self._packet_times):
            own = _sorted([dts for _, dts in self._packet_times])
        elif self._counts_chunks:
            own = ()
        times = [time for time in own if time is not None]
        if len(times) == num_frames > 0 and times[0] < times[-1] and all(a <= b for a, b in pairwise(times)):
            return FrameTimes(times, True)
        return FrameTimes(range(num_frames), False)

    def expected_times(self, num_frames: int) -> FrameTimes:
        """Returns the times that as many frames as this have if they are shown in the order of their times."""
        return self.frame_times(_sorted(self.packet_times)[:num_frames])

    def correct(self, timed: Timed) -> None:
        """Sets rate and duration by the frames' own times if the stated rate cannot be true.

        A rate is untrue if it lies more than 10 % off both the mean and the median gap between frames: so neither one
        long pause nor frames of varying rate count against it.
        """
        gaps = self._gaps()
        if not gaps:
            return
        mean = sum(gaps) / len(gaps)
        own = [float(1 / (Fraction(gap) * self._time_base)) for gap in (mean, median(gaps))]
        if all(abs(timed.fps - fps) > _TOLERANCE * fps for fps in own):
            timed.fps = own[0]
            timed.duration_seconds = (len(gaps) + 1) / own[0]

    def ends_early(self, container: InputContainer, stream: VideoStream) -> bool:
        """Tells whether the last frame lies far before the end that the container states for this stream alone."""
        if container.format.name not in _STATES_DURATION or len(container.streams) > 1 or not container.duration:
            return False
        stated_seconds = container.duration / av.time_base
        start = min(self._times, default=0)
        missing_seconds = stated_seconds - float((self._end - min(0, start)) * self._time_base)
        return missing_seconds > max(_END_TOLERANCE_SECONDS, _TOLERANCE * stated_seconds)

    def _gaps(self) -> Sequence[int]:
        """Returns the gaps between the frames in display order; none if the clock jumps back or frames lack a time."""
        if not self._is_even or not self._time_base:
            return ()
        gaps = [after - before for before, after in pairwise(sorted(self._times))]
        return gaps if gaps and min(gaps) > 0 else ()


def _sorted(times: Sequence[int | None]) -> Sequence[int | None]:
    """Returns times in order; as they are if one is not stated."""
    known = sorted(time for time in times if time is not None)
    return known if len(known) == len(times) else times
