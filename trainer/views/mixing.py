"""Mixup and cutmix: a training clip that is partly another one, and whose label is, too.

A row's partner is another row of the same global batch, as that row itself shows it: the same frames, crop and light.
Partner, share and box are functions of (seed, epoch, sample), so they do not depend on ranks or loader workers. A rank
reads the partners of its rows itself, wherever they belong: two clips are read and decoded for each row.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.schedule.rows import Choice, Row, generator_of


@dataclass(frozen=True)
class Mixing:
    """Mixes two clips; with both kinds given, half of the clips are blended and half are cut.

    Sources: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix"; the same for all frames of a clip, as in Yun et al.
    2020, "VideoMix".
    """

    mixup: float
    """Alpha of the Beta distribution of the share that stays; 0: no clip is blended."""
    cutmix: float
    """The same for clips of which a box is replaced."""
    seed: int

    def __call__(self, clip: Tensor, partner: Tensor, row: Row) -> tuple[Tensor, float]:
        """Returns the mixed clip, and the share in it of `clip`, 0 to 1; the rest is the share of `partner`.

        Args:
            clip: `(T, S, S, 3) uint8 RGB`.
            partner: The same.
            row: Where `clip` belongs.
        """
        generator = generator_of(self.seed, row, Choice.MIX)
        if self.cutmix and (not self.mixup or generator.random() < 0.5):
            return _cut(clip, partner, generator.beta(self.cutmix, self.cutmix), generator)
        return _blend(clip, partner, generator.beta(self.mixup, self.mixup))


def _blend(clip: Tensor, partner: Tensor, share: float) -> tuple[Tensor, float]:
    # In 256ths: integers take a fifth of float32's time, and the label's share is exact. What overflows 15 bits comes
    # out negative, and of that the lowest 8 bits are the same.
    parts = round(256 * share)
    blended = clip.to(torch.int16).mul_(parts).add_(partner.to(torch.int16), alpha=256 - parts).add_(128)
    return blended.bitwise_right_shift_(8).to(torch.uint8), parts / 256


def _cut(clip: Tensor, partner: Tensor, share: float, generator: np.random.Generator) -> tuple[Tensor, float]:
    """Replaces a box of 1 - share of the picture around a random place; less where it reaches over the edge."""
    side_px = clip.shape[1]
    half = side_px * (1 - share) ** 0.5 / 2
    centre = generator.uniform(0, side_px, 2)
    (top, left), (bottom, right) = np.clip(np.rint([centre - half, centre + half]), 0, side_px).astype(int)
    mixed = clip.clone()
    mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return mixed, 1 - float((bottom - top) * (right - left)) / side_px**2
