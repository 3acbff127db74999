"""Training and evaluation steps in plain torch: the exact gradient of a global batch, whatever it is divided into.

The loss of a step is the weighted mean of the cross entropies over the *global* batch. Ranks hold different numbers of
rows, some at weight 0, and may take theirs in several pieces; so beside the first forward pass the ranks add up the
batch's mass A, the sum of its rows' weights, and each piece's loss is world_size * sum(weight * cross_entropy) / A.
DDP's mean over the ranks is then the mean over the batch, not a mean of means.
"""

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from configs.train import OptimizerConfig
from trainer.average import WeightAverage
from trainer.metrics import PREDICTION, TOP_K, Evaluation
from trainer.stream import Batch
from trainer.transfer import on_device

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

FACTOR = "lr_factor"
"""Where a group of the optimizer's parameters keeps its share of the learning rate."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and the one small sum over them that each step needs."""

    rank: int = 0
    world_size: int = 1
    group: Any = None
    """A CPU group: the sum must not wait for the GPU's queue."""
    num_local: int = 1
    """How many of them share this machine's cores."""

    def sum(self, values: list[float]) -> list[float]:
        """Returns the element-wise sums of `values` over all ranks."""
        return self.begin_sum(values)()

    def begin_sum(self, values: list[float]) -> Callable[[], list[float]]:
        """Begins to add up and returns at once; what it returns waits for the sums, and may be called again."""
        if self.world_size == 1:
            return lambda: values
        total = torch.tensor(values, dtype=torch.float64)
        work = dist.all_reduce(total, group=self.group, async_op=True)

        def wait() -> list[float]:
            work.wait()
            return [float(value) for value in total]

        return wait

    def join(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns the arrays of all ranks, one behind the other, on every rank."""
        if self.world_size == 1:
            return values
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, values, group=self.group)
        return np.concatenate(parts)


@dataclass(frozen=True)
class Loss:
    """Cross entropy with class weights and label smoothing, as a sum that can be divided among ranks and pieces."""

    class_weights: Tensor | None = None
    """`(K,) float32`, on the model's device."""
    label_smoothing: float = 0.0

    def mass(self, labels_B: Tensor, weights_B: Tensor) -> float:
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
    """A model with its optimizer, as one rank holds them; `step` is one optimizer step over the global batch."""

    model: nn.Module
    """The model, wrapped by DDP where there are several ranks."""
    optimizer: torch.optim.Optimizer
    loss: Loss
    ranks: Ranks
    device: torch.device
    micro_batch: int = 0
    """Most rows per forward pass; 0: all at once."""
    max_grad_norm: float = 1.0
    autocast_dtype: torch.dtype | None = None
    average: WeightAverage | None = None
    """Moving average of the weights, brought up to date by every step."""
    last_loss: float = field(default=math.nan, init=False)
    """This rank's part of the newest step's loss sum."""
    last_num_right: int = field(default=0, init=False)
    """Of this rank's rows in the newest step, those whose class was the most probable one; weight 0 does not count."""

    def mass(self, batch: Batch) -> float:
        """Returns what a batch adds to the divisor of the mean; see `Loss.mass`."""
        return sum(self.loss.mass(labels_B, weights_B) for labels_B, weights_B in batch.targets)

    def step(self, batch: Batch, mass: Callable[[], float], learning_rate: float) -> float:
        """Takes one optimizer step and returns the gradient's norm before clipping; 0 for a batch without mass.

        Args:
            batch: This rank's rows.
            mass: Returns the sum of `mass` over all ranks. It is called once the forward pass is through, so the sum
                can be on its way until then; what it raises ends the step before anything has changed.
            learning_rate: For this step.

        Raises:
            FloatingPointError: The gradient is not finite; every rank sees the same, and stops.
        """
        self.last_loss, self.last_num_right = 0.0, 0
        if not any(bool(weights_B.any()) for _, weights_B in batch.targets) and mass() == 0:
            return 0.0
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        pieces = list(self._pieces(batch))
        for number, (clips, targets) in enumerate(pieces):
            with self._no_sync() if number < len(pieces) - 1 else nullcontext():
                logits = self._forward(clips)
                sums = torch.stack([self.loss.sum(logits, labels, weights) for labels, weights in targets])
                loss = sums.sum() * (self.ranks.world_size / mass())
                loss.backward()  # type: ignore[no-untyped-call]
            self.last_loss += float(loss.detach()) / self.ranks.world_size
            labels, weights = targets[0]
            self.last_num_right += int(((logits.argmax(dim=1) == labels) & (weights > 0)).sum())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if not norm.isfinite():
            raise FloatingPointError(f"the gradient's norm became {float(norm)}: lower --optimizer.learning-rate")
        for group in self.optimizer.param_groups:
            # A checkpoint of before there was this factor has none.
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
    """Returns the context in which forward passes run: mixed precision of `dtype`, or plain float32 for None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def distribute(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Returns a model as its learner calls it: wrapped by DDP where there are several ranks.

    DDP adds up the gradients of the parameters that need one now: where others do later, it must be made anew.
    """
    if ranks.world_size == 1:
        return model
    # Buffers are shared where they are used, not at every step; gradients are held once, where they are summed.
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Returns AdamW that decays matrices and kernels only; norms, biases and other vectors are left alone.

    Every step brings its own learning rate. Parameters that are frozen now are held too: AdamW leaves alone what has no
    gradient.
    """
    by_factor: dict[float, list[nn.Parameter]] = {1.0: [], config.backbone_factor: []}
    for name, parameter in model.named_parameters():
        by_factor[config.backbone_factor if name.startswith("backbone.") else 1.0].append(parameter)
    groups = [
        {"params": [one for one in parameters if (one.dim() >= 2) is decayed], FACTOR: factor, "weight_decay": decay}
        for factor, parameters in by_factor.items()
        for decayed, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    # Fused on the CPU too: 19 instead of 68 ms per step of ResNet-18 on one core.
    return torch.optim.AdamW(groups, fused=True)


def learning_rate(highest: float, warmup_fraction: float, position: int, num_positions: int) -> float:
    """Returns the learning rate of the step that starts at `position` of `num_positions` samples.

    Linear warm-up, then half a cosine down to zero. It depends on the samples used, not on steps taken, so a run that
    was stopped in mid-epoch goes on where it was.
    """
    share = (position + 1) / num_positions
    if share < warmup_fraction:
        return highest * share / warmup_fraction
    decayed = (share - warmup_fraction) / (1 - warmup_fraction)
    return highest * 0.5 * (1 + math.cos(math.pi * min(decayed, 1.0)))


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    num_classes: int,
    ranks: Ranks,
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
) -> Evaluation:
    """Returns what the model does on a split that the ranks share, the same figures on every rank.

    Args:
        model: In evaluation mode and without DDP, whose forward passes would wait for other ranks.
        batches: This rank's part of the split.
        num_classes: K.
        ranks: The processes that share the split.
        device: Where the model is.
        autocast_dtype: Precision of the forward passes; None: float32.
    """
    judged, num_bad = [np.empty(0, PREDICTION)], 0
    for batch in on_device(batches, device):
        num_bad += len(batch.errors)
        with autocast(device, autocast_dtype):
            logits_BK = model(batch.clips).float().cpu()
        judged.append(_judge(logits_BK, batch))
    predictions = ranks.join(np.concatenate(judged))
    in_order = predictions[np.argsort(predictions["sample"], kind="stable")]
    return Evaluation(in_order, num_classes, int(ranks.sum([num_bad])[0]))


def _judge(logits_BK: Tensor, batch: Batch) -> NDArray[np.void]:
    """Returns the records of a batch's samples, without those that weigh nothing."""
    real = batch.weights > 0
    logits_BK, labels_B = logits_BK[real], batch.labels[real]
    best = logits_BK.topk(min(TOP_K, logits_BK.shape[1]), dim=1).indices
    records = np.empty(len(labels_B), PREDICTION)
    records["sample"] = [row.index for row, is_real in zip(batch.rows, real.tolist(), strict=True) if is_real]
    records["label"] = labels_B
    records["predicted"] = best[:, 0]
    records["probability"] = logits_BK.softmax(dim=1).amax(dim=1)
    records["loss"] = functional.cross_entropy(logits_BK, labels_B, reduction="none")
    records["in_top_k"] = (best == labels_B[:, None]).any(dim=1)
    return records


def keep_freed_memory() -> None:
    """Lets the C library keep what each step frees for the next one.

    By default glibc gives it back and the kernel clears it anew: up to a fifth of a ResNet-18 step on the CPU. Other C
    libraries lack `mallopt` and are left alone.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        c_library.mallopt(_M_MMAP_MAX, 0)
        c_library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Gives every rank rank 0's buffers: batch norm's running statistics drift apart while training."""
    if ranks.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
