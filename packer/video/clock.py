"""The frames' own times, against the rate and the duration that a container states."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
from av.container import InputContainer

_TOLERANCE = 0.1
"""Share by which a stated rate may differ from the frames' own: roundings and a missing frame stay far below it."""
_MAX_REORDERING = 32
"""Frames by which a time may jump back between packets: H.264 and H.265 reorder at most 16. A clock jumps further."""
_MIN_MISSING_SECONDS = 1.0
_STATES_DURATION = frozenset({"matroska,webm", "flv"})
"""Containers whose stated duration is neither counted from their index nor guessed from the size of the file."""


class Timed(Protocol):
    """What the clock corrects."""

    fps: float
    duration_seconds: float


class Clock:
    """The times of the frames of one stream."""

    def __init__(self, times: Sequence[int | None], time_base: Fraction | None) -> None:
        """Takes the times of the packets in decoding order, and their unit in seconds."""
        self._end_seconds = 0.0
        self._gaps_seconds = np.empty(0)
        if not time_base or len(times) < 2 or None in times:
            return
        seconds = np.array(times, np.float64) * float(time_base)
        gaps = np.diff(np.sort(seconds))
        jumps_back = np.maximum.accumulate(seconds) - seconds
        if gaps.min() > 0 and jumps_back.max() < _MAX_REORDERING * np.median(gaps):
            self._gaps_seconds = gaps
        self._end_seconds = float(seconds.max() + np.median(gaps))

    def correct(self, timed: Timed) -> None:
        """Sets rate and duration by the frames' own times if the stated rate cannot be true.

        A rate is untrue if it lies more than 10 % off both the mean and the median gap between frames. So neither one
        long pause nor frames of varying rate count against it. Nothing is known if a frame has no time or the clock
        jumps back.
        """
        if not len(self._gaps_seconds):
            return
        own = [float(1 / gap) for gap in (self._gaps_seconds.mean(), np.median(self._gaps_seconds))]
        if all(abs(timed.fps - fps) > _TOLERANCE * fps for fps in own):
            timed.fps = own[0]
            timed.duration_seconds = (len(self._gaps_seconds) + 1) / own[0]

    def ends_early(self, container: InputContainer) -> bool:
        """Tells whether the last frame lies far before the end that the container states for this stream alone."""
        if container.format.name not in _STATES_DURATION or len(container.streams) > 1 or not container.duration:
            return False
        stated_seconds = container.duration / av.time_base
        missing_seconds = stated_seconds - self._end_seconds
        return bool(self._end_seconds) and missing_seconds > max(_MIN_MISSING_SECONDS, _TOLERANCE * stated_seconds)
