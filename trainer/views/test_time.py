"""Test-time averaging: a clip is shown in several views, and the logits are averaged.

For a run's test figures only. The server shows one view, `trainer.views.eval_view`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.train import ViewConfig
from trainer.schedule.rows import Row
from trainer.views.eval_view import to_short_side

NUM_CROPS = 3
"""Views of a clip that `Crops` gives."""


@dataclass(frozen=True)
class Crops:
    """Three squares of a clip: from one end, the middle and the other end of the longer side."""

    view: ViewConfig

    def __call__(self, frames: Tensor, row: Row) -> Tensor:
        """Returns `(3 * T, S, S, 3) uint8 RGB`, crop after crop, of `(T, H, W, 3)` stored frames."""
        size_px = self.view.size_px
        frames = to_short_side(frames, self.view.short_side_px)
        rooms = [side - size_px for side in frames.shape[1:3]]
        crops = []
        for halves in range(NUM_CROPS):
            top, left = (room * (halves if room == max(rooms) else 1) // 2 for room in rooms)
            crops.append(frames[:, top : top + size_px, left : left + size_px])
        return torch.cat(crops)


@dataclass(frozen=True)
class AveragedModel:
    """A model that is shown several views of a clip, which stand one after another in the clip's frames."""

    model: Callable[[Tensor], Tensor]
    num_frames: int
    """Frames of one view, T."""
    flip: bool
    """Whether the mirror image of each view is shown, too."""

    def __call__(self, clips_BNCHW: Tensor) -> Tensor:
        """Returns the mean logits `(B, K)` of `(B, views * T, 3, S, S)` clips."""
        views = torch.split(clips_BNCHW, self.num_frames, dim=1)
        seen = [*views, *(view.flip(-1) for view in views)] if self.flip else views
        return torch.stack([self.model(view) for view in seen]).mean(0)
