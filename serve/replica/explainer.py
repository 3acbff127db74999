"""Which frames of a clip decided: each frame is hidden in turn, and the model answers once more.

An exported model has neither gradients nor layers to look into, so only its answers can tell. A hidden frame has the
clip's mean colour, as in `python -m trainer explain`. The nearest other frame in its place was refused: neighbours look
alike, so the frames of an event that lasts for two of them would weigh nothing.

What two frames show alike may weigh little in both: hide one, and the other still says it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from serve.messages.refusal import overloaded

if TYPE_CHECKING:
    from serve.replica.predictor import FramesTHWC, ProbabilitiesK

SMALLEST_PROBABILITY = np.finfo(np.float64).tiny
"""A probability of 0 counts as this one, so that a lead is never infinite but at most 708 logits."""


@dataclass(frozen=True)
class FrameWeights:
    """What each frame of one clip does to the lead of `best` over `second`."""

    best: int
    """Index of the most probable class."""
    second: int
    """Index of the second most probable class."""
    lead: float
    """Logit of `best` minus that of `second`, for the whole clip."""
    weights_T: NDArray[np.float64]
    """By how many logits the lead falls if the frame is hidden; negative if it rises."""


class Explainer:
    """Weighs the frames of one clip at a time, and has one hidden clip classified at a time.

    So however many explanations are wanted, they add at most one clip to each batch, and another video waits for at
    most one clip more.

    Args:
        max_videos: Most videos that are explained or wait for it.
    """

    def __init__(self, max_videos: int) -> None:
        self._max_videos = max_videos
        self._num_videos = 0
        self._turn = asyncio.Lock()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a video as one to be explained until the block ends.

        Raises:
            Refusal: There are too many of them (503).
        """
        if self._num_videos >= self._max_videos:
            raise overloaded()
        self._num_videos += 1
        try:
            yield
        finally:
            self._num_videos -= 1

    async def explain(
        self,
        classify: "Callable[[FramesTHWC], Awaitable[ProbabilitiesK]]",
        frames: "FramesTHWC",
        probabilities: "ProbabilitiesK",
    ) -> FrameWeights:
        """Returns the weights of a clip's frames.

        Args:
            classify: Returns the probabilities of a clip, `(T, S, S, 3) uint8 RGB`.
            frames: The clip.
            probabilities: What the model answered for it; two classes or more.
        """
        best, second = (int(index) for index in np.argsort(-probabilities, kind="stable")[:2])
        lead = _lead(probabilities, best, second)
        async with self._turn:
            colour = await asyncio.to_thread(mean_colour, frames)
            leads = [
                _lead(await classify(hidden(frames, number, colour)), best, second) for number in range(len(frames))
            ]
        return FrameWeights(best, second, lead, lead - np.array(leads))


def mean_colour(frames: "FramesTHWC") -> NDArray[np.uint8]:
    """Returns the mean colour of a clip, `(3,) uint8`, rounded."""
    colour: NDArray[np.uint8] = np.rint(frames.mean(axis=(0, 1, 2))).astype(np.uint8)
    return colour


def hidden(frames: "FramesTHWC", number: int, colour: NDArray[np.uint8]) -> "FramesTHWC":
    """Returns a copy of a clip in which the frame of this number, from 0, has one colour everywhere."""
    copy = frames.copy()
    copy[number] = colour
    return copy


def _lead(probabilities: "ProbabilitiesK", best: int, second: int) -> float:
    """Returns a difference of logits: that of the probabilities' logarithms, because softmax adds the same to all."""
    p_best, p_second = np.maximum(probabilities[[best, second]], SMALLEST_PROBABILITY)
    return float(np.log(p_best) - np.log(p_second))
