"""A training step in plain torch: the exact gradient of a global batch, however it is divided.

The loss of a step is the weighted mean of the cross entropies over the *global* batch. Ranks hold different numbers of
rows, some of weight 0, and may process theirs in several pieces. So during the first forward pass the ranks add up A,
the sum of the weights of all rows, and each piece's loss is world_size * sum(weight * cross_entropy) / A. DDP's mean
over the ranks is then the mean over the batch, not a mean of means.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from trainer.learning.ranks import Ranks
from trainer.model.weight_average import WeightAverage
from trainer.stream.batch import Batch

FACTOR = "lr_factor"
"""Key under which a group of the optimizer's parameters keeps its share of the learning rate."""


@dataclass(frozen=True)
class Loss:
    """Cross entropy with class weights and label smoothing, as a sum that ranks and pieces can add up."""

    class_weights: Tensor | None = None
    """`(K,) float32`, on the model's device."""
    label_smoothing: float = 0.0

    def weight_sum(self, labels_B: Tensor, weights_B: Tensor) -> float:
        """Returns what the rows add to the divisor of the mean: the sum of weight times class weight."""
        if self.class_weights is not None:
            weights_B = weights_B * self.class_weights.to(labels_B.device)[labels_B]
        return float(weights_B.sum())

    def sum(self, logits_BK: Tensor, labels_B: Tensor, weights_B: Tensor) -> Tensor:
        """Returns the scalar sum of weight times cross entropy, in nats."""
        losses_B = functional.cross_entropy(
            logits_BK, labels_B, self.class_weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return (losses_B * weights_B).sum()


@dataclass
class Learner:
    """A model with its optimizer on one rank; `step` takes one optimizer step over the global batch."""

    model: nn.Module
    """The model, wrapped by DDP if there are several ranks."""
    optimizer: torch.optim.Optimizer
    loss: Loss
    ranks: Ranks
    device: torch.device
    micro_batch: int = 0
    """Most rows per forward pass; 0: no limit."""
    max_grad_norm: float = 1.0
    autocast_dtype: torch.dtype | None = None
    average: WeightAverage | None = None
    """Moving average of the weights, updated by every step."""
    last_loss: float = field(default=math.nan, init=False)
    """This rank's part of the newest step's loss; the sum over the ranks is the batch's loss."""
    last_num_right: int = field(default=0, init=False)
    """This rank's rows in the newest step whose class was the most probable one; rows of weight 0 do not count."""

    def weight_sum(self, batch: Batch) -> float:
        """Returns what a batch adds to the divisor of the mean; see `Loss.weight_sum`."""
        return sum(self.loss.weight_sum(labels_B, weights_B) for labels_B, weights_B in batch.targets)

    def step(self, batch: Batch, weight_sum: Callable[[], float], learning_rate: float) -> float:
        """Takes one optimizer step and returns the gradient's norm before clipping.

        A batch whose weights are all 0 is no step: nothing changes, and the norm is 0.

        Args:
            batch: This rank's rows.
            weight_sum: Returns the sum of `weight_sum(batch)` over all ranks. It is called after the forward pass, so
                that the ranks can add up meanwhile. If it raises, the step ends before anything has changed.
            learning_rate: For this step.

        Raises:
            FloatingPointError: The gradient is not finite; every rank sees the same, and stops.
        """
        self.last_loss, self.last_num_right = 0.0, 0
        if not any(bool(weights_B.any()) for _, weights_B in batch.targets) and weight_sum() == 0:
            return 0.0
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        pieces = list(self._pieces(batch))
        for number, (clips, targets) in enumerate(pieces):
            with self._no_sync() if number < len(pieces) - 1 else nullcontext():
                logits = self._forward(clips)
                sums = torch.stack([self.loss.sum(logits, labels, weights) for labels, weights in targets])
                loss = sums.sum() * (self.ranks.world_size / weight_sum())
                loss.backward()  # type: ignore[no-untyped-call]
            self.last_loss += float(loss.detach()) / self.ranks.world_size
            labels, weights = targets[0]
            self.last_num_right += int(((logits.argmax(dim=1) == labels) & (weights > 0)).sum())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if not norm.isfinite():
            raise FloatingPointError(f"the gradient's norm became {float(norm)}: lower --optimizer.learning-rate")
        for group in self.optimizer.param_groups:
            # Checkpoints of older versions have no factor.
            group["lr"] = learning_rate * group.get(FACTOR, 1.0)
        self.optimizer.step()
        if self.average:
            self.average.update()
        return float(norm)

    def _pieces(self, batch: Batch) -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor]]]]:
        size = self.micro_batch or len(batch.labels)
        for start in range(0, len(batch.labels), size):
            piece = slice(start, start + size)
            targets = [(self._moved(labels[piece]), self._moved(weights[piece])) for labels, weights in batch.targets]
            yield self._moved(batch.clips[piece]), targets

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _forward(self, clips_BTCHW: Tensor) -> Tensor:
        with autocast(self.device, self.autocast_dtype):
            logits_BK: Tensor = self.model(clips_BTCHW)
        return logits_BK

    def _no_sync(self) -> AbstractContextManager[None]:
        if isinstance(self.model, DistributedDataParallel):
            context: AbstractContextManager[None] = self.model.no_sync()
            return context
        return nullcontext()


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Returns the context of a forward pass: mixed precision in `dtype`, or plain float32 if it is None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def make_optimizer(model: nn.Module, weight_decay: float, backbone_factor: float = 1.0) -> torch.optim.AdamW:
    """Returns AdamW that decays matrices and kernels only, not norms, biases and other vectors.

    Every step brings its own learning rate. Frozen parameters are included: AdamW skips what has no gradient.

    Args:
        model: Whose parameters are trained.
        weight_decay: Of matrices and kernels.
        backbone_factor: Share of the learning rate that the parameters of `model.backbone` get.
    """
    by_factor: dict[float, list[nn.Parameter]] = {1.0: [], backbone_factor: []}
    for name, parameter in model.named_parameters():
        by_factor[backbone_factor if name.startswith("backbone.") else 1.0].append(parameter)
    groups = [
        {"params": [one for one in parameters if (one.dim() >= 2) is decayed], FACTOR: factor, "weight_decay": decay}
        for factor, parameters in by_factor.items()
        for decayed, decay in ((True, weight_decay), (False, 0.0))
    ]
    # Fused also on the CPU: 19 instead of 68 ms per step of ResNet-18 on one core.
    return torch.optim.AdamW(groups, fused=True)


def learning_rate(highest: float, warmup_fraction: float, position: int, num_positions: int) -> float:
    """Returns the learning rate of the step that starts at `position` of `num_positions` samples.

    Linear warm-up, then half a cosine down to zero. It depends on the samples used, not on the number of steps, so a
    run that was stopped in mid-epoch continues the same curve.
    """
    share = (position + 1) / num_positions
    if share < warmup_fraction:
        return highest * share / warmup_fraction
    decayed = (share - warmup_fraction) / (1 - warmup_fraction)
    return highest * 0.5 * (1 + math.cos(math.pi * min(decayed, 1.0)))
