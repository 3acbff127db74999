"""Steps of a tiny model on batches that are divided among ranks and pieces, for the tests of the learner."""

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from trainer.learning.learner import Learner, Loss
from trainer.learning.ranks import Ranks
from trainer.schedule.rows import Row
from trainer.stream.batch import Batch

NUM_CLASSES = 3
CPU = torch.device("cpu")
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


class Tiny(nn.Module):
    """Maps `(B, 2, 3, 4, 4) uint8` to `(B, 3)` logits, not linearly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(96, 5)
        self.head = nn.Linear(5, NUM_CLASSES)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, clips_BTCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(torch.tanh(self.hidden(clips_BTCHW.flatten(1) / 255)))
        return logits_BK


@dataclass(frozen=True)
class Case:
    """A global batch and how it is divided."""

    world_size: int
    micro_batch: int
    weights: tuple[float, ...]
    weighted_classes: bool
    label_smoothing: float
    mixed: bool = False

    @property
    def batch(self) -> Batch:
        batch = make_batch(self.weights)
        if not self.mixed:
            return batch
        size = len(self.weights)
        return replace(batch, other_labels=torch.arange(size) * 2 % NUM_CLASSES, shares=torch.linspace(0, 1, size))

    @property
    def soft_targets(self) -> Tensor:
        """`(B, K)`: how much of each class a row is."""
        batch = self.batch
        shares = torch.ones(len(batch.labels)) if batch.shares is None else batch.shares
        others = batch.labels if batch.other_labels is None else batch.other_labels
        own, other = (functional.one_hot(labels, NUM_CLASSES) for labels in (batch.labels, others))
        return shares[:, None] * own + (1 - shares[:, None]) * other

    @property
    def loss(self) -> Loss:
        return Loss(CLASS_WEIGHTS if self.weighted_classes else None, self.label_smoothing)


WEIGHTS = [
    (1.0,) * 7,
    (1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0),
    (0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0),  # at four ranks, rank 0 has no weight at all
    (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (1.0,) * 4,
]
CASES = [
    Case(world_size, micro_batch, weights, weighted_classes, label_smoothing)
    for world_size, micro_batch, weights, (weighted_classes, label_smoothing) in product(
        (1, 2, 3, 4), (0, 1, 2), WEIGHTS, ((False, 0.0), (True, 0.1))
    )
]
MIXED_CASES = [
    Case(world_size, micro_batch, weights, weighted_classes, label_smoothing, mixed=True)
    for world_size, micro_batch, weights, (weighted_classes, label_smoothing) in product(
        (1, 2, 3), (0, 2), WEIGHTS, ((False, 0.0), (True, 0.1))
    )
]


def make_batch(weights: tuple[float, ...], num_errors: int = 0) -> Batch:
    size = len(weights)
    generator = torch.Generator().manual_seed(size)
    return Batch(
        step=0,
        clips=torch.randint(0, 256, (size, 2, 3, 4, 4), dtype=torch.uint8, generator=generator),
        labels=torch.arange(size) % NUM_CLASSES,
        weights=torch.tensor(weights),
        rows=tuple(Row(0, number, weight) for number, weight in enumerate(weights)),
        errors=("unreadable",) * num_errors,
    )


def share_of(batch: Batch, rank: int, world_size: int) -> Batch:
    mine = slice(rank, None, world_size)
    return replace(
        batch,
        clips=batch.clips[mine],
        labels=batch.labels[mine],
        weights=batch.weights[mine],
        rows=batch.rows[mine],
        errors=batch.errors[mine],
        other_labels=None if batch.other_labels is None else batch.other_labels[mine],
        shares=None if batch.shares is None else batch.shares[mine],
    )


def make_learner(ranks: Ranks, case: Case) -> Learner:
    model: nn.Module = Tiny()
    if ranks.world_size > 1:
        model = DistributedDataParallel(model, process_group=ranks.group, broadcast_buffers=False)
    return Learner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        case.loss,
        ranks,
        CPU,
        micro_batch=case.micro_batch,
        max_grad_norm=math.inf,
    )


def take_step(ranks: Ranks, case: Case) -> tuple[dict[str, Tensor], float, float]:
    """Returns the gradients by name, the loss over all ranks, and the gradient's norm."""
    learner = make_learner(ranks, case)
    share = share_of(case.batch, ranks.rank, ranks.world_size)
    sums = ranks.begin_sum([learner.weight_sum(share)])
    norm = learner.step(share, lambda: sums()[0], learning_rate=0.1)
    assert {group["lr"] for group in learner.optimizer.param_groups} == {0.1}
    gradients = {
        name.removeprefix("module."): parameter.grad
        for name, parameter in learner.model.named_parameters()
        if parameter.grad is not None
    }
    (loss,) = ranks.sum([learner.last_loss])
    return gradients, loss, norm
