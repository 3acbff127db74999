"""Which of a clip's packed frames the model reads, if it reads fewer than were packed.

Training reads other frames in every epoch; evaluation and the server read those of the packer's sampling rule. Only
numbers are chosen here; no frame is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from packer.video.sampling import frame_indices
from trainer.schedule.rows import Choice, Row, generator_of


class Frames(Protocol):
    """Which frames the model reads of a row's clip; must be picklable."""

    @property
    def num_frames(self) -> int:
        """How many frames it reads of every clip, T."""
        ...

    def __call__(self, row: Row) -> Sequence[int]:
        """Returns which of the packed frames the model reads, as numbers from 0."""
        ...


@dataclass(frozen=True)
class FixedFrames:
    """The same frames of every clip."""

    numbers: Sequence[int]

    @property
    def num_frames(self) -> int:
        """How many frames the model reads of every clip, T."""
        return len(self.numbers)

    def __call__(self, row: Row) -> Sequence[int]:
        """Returns the frames' numbers."""
        return self.numbers


@dataclass(frozen=True)
class RandomFrames:
    """One frame at a random place of each of `num_frames` equal parts of the packed clip.

    Of 8 packed frames a model that reads 4 gets one of 0 and 1, one of 2 and 3, one of 4 and 5, and one of 6 and 7.

    Source: Wang et al. 2016, "Temporal Segment Networks".
    """

    num_packed: int
    num_frames: int
    """At most `num_packed`."""
    seed: int

    def __call__(self, row: Row) -> Sequence[int]:
        """Returns the frames' numbers in rising order, a function of (seed, epoch, sample)."""
        generator = generator_of(self.seed, row, Choice.FRAMES)
        return [int(generator.integers(start, end)) for start, end in _parts(self.num_packed, self.num_frames)]


def eval_frames(num_packed: int, num_frames: int) -> FixedFrames:
    """Returns the frames that evaluation and the server read, by the packer's sampling rule."""
    return FixedFrames(frame_indices(num_packed, num_frames))


def spread_frames(num_packed: int, num_frames: int, num_clips: int) -> FixedFrames:
    """Returns `num_clips` clips one after another; each has one frame of every part, at places spread over the part.

    Of 8 packed frames, 2 clips of 2 frames are (1, 5) and (3, 7).
    """
    parts = _parts(num_packed, num_frames)
    places = [(2 * clip + 1, 2 * num_clips) for clip in range(num_clips)]
    return FixedFrames([start + place * (end - start) // of for place, of in places for start, end in parts])


def _parts(num_packed: int, num_frames: int) -> list[tuple[int, int]]:
    """Returns each part as a half-open range: 5 frames in 2 parts are (0, 2) and (2, 5)."""
    return list(pairwise(part * num_packed // num_frames for part in range(num_frames + 1)))
