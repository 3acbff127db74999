"""The random view of a clip in training: crop, scale, flip, light, erasing.

Every random choice is a function of (seed, epoch, sample), so a clip is changed in the same way whichever rank, loader
process or device handles it. All frames of a clip are changed in the same way. Outside of training only
`trainer.views.eval_view` is used.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.train import AugmentConfig, ViewConfig
from trainer.schedule.rows import Choice, Row, generator_of
from trainer.views.eval_view import resize, to_short_side

GREY = 128
"""Value of erased pixels: about the mean that the model subtracts."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a pixel's grey. Source: ITU-R BT.601."""


@dataclass(frozen=True)
class TrainView:
    """A random view of a clip, the same for all its frames.

    The default cuts a square at a random place out of a slightly larger stored frame, and resizes nothing.

    Source: Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions": 112 px out of 128.
    """

    view: ViewConfig
    augment: AugmentConfig
    seed: int

    def __call__(self, frames: Tensor, row: Row) -> Tensor:
        """Returns a `(T, size_px, size_px, 3) uint8 RGB` view of `(T, H, W, 3)` stored frames; its strides vary."""
        generator = generator_of(self.seed, row, Choice.VIEW)
        if self.augment.min_scale < 1 or self.view.mode == "squash":
            frames = _random_part(frames, self.view, self.augment.min_scale, generator)
        else:
            frames = to_short_side(frames, self.view.short_side_px)
            frames = _random_crop(frames, self.view.size_px, self.view.size_px, generator)
        if self.augment.horizontal_flip and generator.random() < 0.5:
            frames = frames.flip(2)
        if self.augment.brightness or self.augment.contrast or self.augment.saturation:
            frames = _other_light(frames, self.augment, generator)
        if self.augment.erasing and generator.random() < self.augment.erasing:
            frames = _erase(frames, generator)
        return frames


def _random_crop(frames: Tensor, height_px: int, width_px: int, generator: np.random.Generator) -> Tensor:
    top = int(generator.integers(frames.shape[1] - height_px + 1))
    left = int(generator.integers(frames.shape[2] - width_px + 1))
    return frames[:, top : top + height_px, left : left + width_px]


def _random_part(frames: Tensor, view: ViewConfig, min_scale: float, generator: np.random.Generator) -> Tensor:
    """Returns min_scale..1 of the area, resized: of a square, or of the whole frame if the view squashes it."""
    height, width = frames.shape[1:3]
    if view.mode == "crop":
        height = width = min(height, width)
    scale = float(generator.uniform(min_scale, 1.0)) ** 0.5
    part = _random_crop(frames, max(1, round(height * scale)), max(1, round(width * scale)), generator)
    return resize(part, view.size_px, view.size_px)


def _other_light(frames: Tensor, augment: AugmentConfig, generator: np.random.Generator) -> Tensor:
    """Returns a clip as if filmed in other light: brightness, contrast and saturation in one affine map of RGB."""
    brightness, contrast, saturation = (
        float(generator.uniform(1 - most, 1 + most))
        for most in (augment.brightness, augment.contrast, augment.saturation)
    )
    luma = torch.tensor(LUMA, device=frames.device)
    matrix = brightness * contrast * (saturation * torch.eye(3, device=frames.device) + (1 - saturation) * luma)
    # A sum of integers, which does not depend on the order.
    mean_colour = frames.sum(dim=(0, 1, 2)).double() / frames[..., 0].numel()
    mean_grey = brightness * (mean_colour @ luma.double())
    pixels = frames.float() @ matrix.T + (1 - contrast) * mean_grey
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _erase(frames: Tensor, generator: np.random.Generator) -> Tensor:
    """Returns a clip with a grey box, at one place in all frames, which may hide whatever the model relies on.

    Source: Zhong et al. 2020, "Random Erasing": 2 % to a third of the area, 0.3 to 3.3 times as high as wide.
    """
    side = frames.shape[1]
    area = float(generator.uniform(0.02, 1 / 3)) * side**2
    aspect = float(np.exp(generator.uniform(np.log(0.3), np.log(3.3))))
    height, width = (min(side, max(1, round(length))) for length in ((area * aspect) ** 0.5, (area / aspect) ** 0.5))
    top, left = int(generator.integers(side - height + 1)), int(generator.integers(side - width + 1))
    erased = frames.clone()  # it may share memory with the stored frames
    erased[:, top : top + height, left : left + width] = GREY
    return erased
