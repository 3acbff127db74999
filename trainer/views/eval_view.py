"""The one view that evaluation, the check of an exported model and the server share.

It is the only way from stored frames to what the model sees, outside of training. Importing it is cheap: neither
torchvision nor the stream comes with it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from configs.train import ViewConfig
from trainer.schedule.rows import Row


def eval_view(frames: Tensor, view: ViewConfig) -> Tensor:
    """Returns the fixed view of a clip: its centre square, or the whole frame squashed to the square.

    Args:
        frames: `(T, H, W, 3) uint8 RGB`, as stored.
        view: Size of the model's frames, and how they are cut.

    Returns:
        `(T, size_px, size_px, 3) uint8 RGB`; it shares memory with `frames` if nothing had to be resized.
    """
    if view.mode == "squash":
        return resize(frames, view.size_px, view.size_px)
    frames = to_short_side(frames, view.short_side_px)
    top, left = ((side - view.size_px) // 2 for side in frames.shape[1:3])
    return frames[:, top : top + view.size_px, left : left + view.size_px]


@dataclass(frozen=True)
class EvalView:
    """`eval_view` as the stream calls it, with the row that the view does not depend on."""

    view: ViewConfig

    def __call__(self, frames: Tensor, row: Row) -> Tensor:
        """Returns the `(T, size_px, size_px, 3) uint8 RGB` view of a clip, the same for every row."""
        return eval_view(frames, self.view)


def to_short_side(frames: Tensor, short_side_px: int) -> Tensor:
    """Returns `(T, H, W, 3) uint8` frames resized to a short side; frames that have it already are returned as is."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    if short == short_side_px:
        return frames
    return resize(frames, round(height * short_side_px / short), round(width * short_side_px / short))


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Returns `(T, H, W, 3) uint8` frames resized to `(T, height, width, 3) uint8`, bilinear and antialiased."""
    if frames.shape[1:3] == (height, width):
        return frames
    # Not torchvision's resize, which gives the same bytes: importing torchvision costs every process 5 s of CPU.
    pictures = frames.contiguous().permute(0, 3, 1, 2)
    if pictures.is_cuda:  # CUDA has no antialiased resize of bytes
        pictures = pictures.float()
    resized = functional.interpolate(pictures, size=[height, width], mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
