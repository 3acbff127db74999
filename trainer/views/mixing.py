"""Mixup and cutmix: a training clip that is partly another clip, and whose label is partly the other's label.

A row's partner is another row of the same global batch, as that row itself shows it: the same frames, crop and light.
Partner, share and box are functions of (seed, epoch, sample), so they do not depend on ranks or loader processes. A
rank reads the partners of its rows itself, whichever rank they belong to: two clips are read and decoded for each row.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.schedule.rows import Choice, Row, generator_of


@dataclass(frozen=True)
class Mixing:
    """Mixes two clips in the same way in all frames; if both kinds are on, half of the clips are blended, half are cut.

    Sources: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix"; Yun et al. 2020, "VideoMix".
    """

    mixup: float
    """Blending: alpha of the Beta distribution of the share that the clip keeps; 0: no clip is blended."""
    cutmix: float
    """Cutting out a box that shows the partner: the same alpha; 0: no clip is cut."""
    seed: int

    def __call__(self, clip: Tensor, partner: Tensor, row: Row) -> tuple[Tensor, float]:
        """Returns the mixed clip, and the share of `clip` in it, 0 to 1; the rest is the share of `partner`.

        Args:
            clip: `(T, S, S, 3) uint8 RGB`.
            partner: The same.
            row: The row of `clip`.
        """
        generator = generator_of(self.seed, row, Choice.MIX)
        if self.cutmix and (not self.mixup or generator.random() < 0.5):
            return _cut(clip, partner, generator.beta(self.cutmix, self.cutmix), generator)
        return _blend(clip, partner, generator.beta(self.mixup, self.mixup))


def _blend(clip: Tensor, partner: Tensor, share: float) -> tuple[Tensor, float]:
    # In 256ths: integers take a fifth of float32's time, and the label's share is exact. A sum above 15 bits turns
    # negative, but its lowest 8 bits after the shift, which are kept, stay right.
    parts = round(256 * share)
    blended = clip.to(torch.int16).mul_(parts).add_(partner.to(torch.int16), alpha=256 - parts).add_(128)
    return blended.bitwise_right_shift_(8).to(torch.uint8), parts / 256


def _cut(clip: Tensor, partner: Tensor, share: float, generator: np.random.Generator) -> tuple[Tensor, float]:
    """Replaces a box of 1 - share of each frame around a random place; a box over the edge is cut off there."""
    side_px = clip.shape[1]
    half = side_px * (1 - share) ** 0.5 / 2
    centre = generator.uniform(0, side_px, 2)
    (top, left), (bottom, right) = np.clip(np.rint([centre - half, centre + half]), 0, side_px).astype(int)
    mixed = clip.clone()
    mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return mixed, 1 - float((bottom - top) * (right - left)) / side_px**2
