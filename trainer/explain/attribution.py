"""Which pixels and frames of a clip made the model prefer one class to another: integrated gradients.

The clip is faded in from its own mean colour, and each pixel is credited with what it changes on the way. The credits
add up to the whole difference that the clip makes. So a frame's weight is the sum of its pixels' credits, and map and
weights cannot contradict each other. It needs nothing but the model's input and output, so it works for any backbone.

Grad-CAM was refused: a map of the last layer has 4 x 4 cells for frames of 112 pixels, a 3-D CNN's also lacks seven of
eight frames, and with a `grid` above 1 its mean over the frame forgets the place.

Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks"; the integral is captum's.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from configs.section import UsageError

CLIPS_PER_PASS = 2
"""Clips in one forward and backward pass: a 3-D CNN keeps about 1 GB of activations for a clip of 16 x 112 x 112."""
CELLS = 14
"""A map is smoothed over 1/14 of its side: single pixels' credits flicker."""


@dataclass(frozen=True)
class Attribution:
    """What of one clip speaks for `target`, above 0, and what speaks for `other`, below 0; in logits."""

    target: int
    """Class index."""
    other: int
    """Class index of what the target is compared with."""
    maps: NDArray[np.float32]
    """`(T, S, S)` credits of the pixels, smoothed."""
    weights: NDArray[np.float32]
    """`(T,)` credits of the frames, the sums over their pixels."""

    @property
    def shares(self) -> NDArray[np.float32]:
        """`(T,)` the frames' weights as shares of all weights without their signs, -1 to 1."""
        total = float(np.abs(self.weights).sum())
        shares: NDArray[np.float32] = self.weights / total if total else self.weights
        return shares


def attribute(model: nn.Module, clip: NDArray[np.uint8], target: int, other: int, num_steps: int) -> Attribution:
    """Returns what of a clip made the model prefer one class to another.

    Args:
        model: In evaluation mode and on the CPU: cuDNN has no backward pass of an RNN in evaluation mode. It maps
            `(B, T, 3, S, S)` pixels to `(B, K)` logits.
        clip: `(T, S, S, 3) uint8 RGB`, as the model sees it.
        target: Index of the class.
        other: Index of the class that it is compared with.
        num_steps: Points of the way from the mean colour to the clip at which gradients are taken.
    """
    from captum.attr import IntegratedGradients  # here, not above: it is an extra

    def preference(clips_BTCHW: Tensor) -> Tensor:
        logits_BK: Tensor = model(clips_BTCHW)
        return logits_BK[:, target] - logits_BK[:, other]

    frames_TCHW = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
    mean_colour = frames_TCHW.mean(dim=(0, 2, 3), keepdim=True).expand_as(frames_TCHW)
    credits_BTCHW: Tensor = IntegratedGradients(preference).attribute(
        frames_TCHW[None], baselines=mean_colour[None], n_steps=num_steps, internal_batch_size=CLIPS_PER_PASS
    )
    credits_THW = credits_BTCHW[0].sum(dim=1).float()
    return Attribution(
        target, other, maps=_smoothed(credits_THW).numpy(), weights=credits_THW.sum(dim=(1, 2)).detach().numpy()
    )


def _smoothed(maps_THW: Tensor) -> Tensor:
    """Returns maps blurred by a Gaussian, whose sums over a frame stay about the same."""
    sigma_px = max(0.5, maps_THW.shape[-1] / CELLS / 2)
    radius_px = min(round(3 * sigma_px), maps_THW.shape[-1] - 1)
    places = torch.arange(-radius_px, radius_px + 1, dtype=torch.float32)
    kernel = torch.exp(-(places**2) / (2 * sigma_px**2))
    kernel /= kernel.sum()
    blurred = functional.pad(maps_THW[:, None].detach(), [radius_px] * 4, mode="reflect")
    blurred = functional.conv2d(functional.conv2d(blurred, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred[:, 0]


def check_captum() -> None:
    """Checks that captum is installed, before any work is done.

    Raises:
        UsageError: It is not.
    """
    if not find_spec("captum"):
        raise UsageError("explain needs captum: install it by pip install 'clipstream[explain]'")
