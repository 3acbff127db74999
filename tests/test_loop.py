"""The exact gradient: ranks, their uneven shares and pieces of them give what one process gives for the whole batch."""

import math
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from configs.train import OptimizerConfig
from trainer.loop import Learner, Loss, Ranks, evaluate, learning_rate, make_optimizer, share_buffers
from trainer.metrics import Evaluation
from trainer.schedule import Row
from trainer.stream import PRELOADED, Batch

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_CLASSES = 3
MAX_RANKS = 4
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

    @property
    def batch(self) -> Batch:
        return make_batch(self.weights)

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
    (mass,) = ranks.sum([case.loss.mass(share.labels, share.weights)])
    norm = learner.step(share, mass, learning_rate=0.1)
    assert {group["lr"] for group in learner.optimizer.param_groups} == {0.1}
    gradients = {
        name.removeprefix("module."): parameter.grad
        for name, parameter in learner.model.named_parameters()
        if parameter.grad is not None
    }
    (loss,) = ranks.sum([learner.last_loss])
    return gradients, loss, norm


def skip_step(ranks: Ranks) -> bool:
    """Whether a batch without any weight leaves model, gradients and optimizer as they are."""
    case = Case(ranks.world_size, 0, (0.0,) * 5, False, 0.0)
    learner = make_learner(ranks, case)
    learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=1.0)
    before = [parameter.clone() for parameter in learner.model.parameters()]
    norm = learner.step(share_of(case.batch, ranks.rank, ranks.world_size), mass=0.0, learning_rate=1.0)
    return (
        norm == learner.last_loss == 0
        and not learner.optimizer.state
        and all(parameter.grad is None for parameter in learner.model.parameters())
        and all(torch.equal(one, other) for one, other in zip(before, learner.model.parameters(), strict=True))
    )


def break_last_rank(ranks: Ranks) -> str:
    """What every rank raises where the last one's logits are not finite; weights must be left alone."""
    case = Case(ranks.world_size, 0, (1.0,) * 5, False, 0.0)
    learner = make_learner(ranks, case)
    learner.optimizer = torch.optim.SGD(learner.model.parameters(), lr=1.0)
    before = [parameter.clone() for parameter in learner.model.parameters()]
    if ranks.rank == ranks.world_size - 1:
        learner.model.register_forward_hook(lambda module, inputs, logits: logits * math.nan)
    with pytest.raises(FloatingPointError) as caught:
        learner.step(share_of(case.batch, ranks.rank, ranks.world_size), mass=5.0, learning_rate=1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, learner.model.parameters(), strict=True))
    return str(caught.value)


EVALUATED = (
    make_batch((1.0,) * 8),
    make_batch((1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0), num_errors=2),
    make_batch((1.0,) + (0.0,) * 7),
)


def evaluate_shares(ranks: Ranks) -> Evaluation:
    batches = [share_of(batch, ranks.rank, ranks.world_size) for batch in EVALUATED]
    return evaluate(Tiny().eval(), batches, NUM_CLASSES, ranks, CPU)


def spread_buffers(ranks: Ranks) -> float:
    model = Tiny()
    model.seen.fill_(ranks.rank + 7)
    share_buffers(model, ranks)
    return float(model.seen)


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=MAX_RANKS)
    groups = [dist.new_group(list(range(world_size)), backend="gloo") for world_size in range(1, MAX_RANKS + 1)]
    results: dict[str, Any] = {"buffers": spread_buffers(Ranks(rank, MAX_RANKS, groups[-1]))}
    for world_size, group in enumerate(groups, start=1):
        if rank < world_size:
            ranks = Ranks(rank, world_size, group)
            results[f"skipped {world_size}"] = skip_step(ranks)
            results[f"broken {world_size}"] = break_last_rank(ranks)
            evaluation = evaluate_shares(ranks)
            results[f"evaluation {world_size}"] = (evaluation.confusion.tolist(), evaluation.figures())
            results[f"bad {world_size}"] = evaluation.num_bad
            for number, case in enumerate(CASES):
                if case.world_size == world_size:
                    results[f"case {number}"] = take_step(ranks, case)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes found, in groups of one to four of them."""
    folder = tmp_path_factory.mktemp("ranks")
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    start_processes(run_rank, args=(folder,), nprocs=MAX_RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(MAX_RANKS)]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_gradient_is_that_of_the_whole_batch(by_rank: list[dict[str, Any]], number: int) -> None:
    case = CASES[number]
    real = case.batch.weights > 0
    model = Tiny()
    wanted = functional.cross_entropy(
        model(case.batch.clips[real]),
        case.batch.labels[real],
        weight=CLASS_WEIGHTS if case.weighted_classes else None,
        label_smoothing=case.label_smoothing,
    )
    wanted.backward()
    for rank in range(case.world_size):
        gradients, loss, norm = by_rank[rank][f"case {number}"]
        assert gradients.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert torch.allclose(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx(wanted.item(), rel=1e-5)
        total = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
        assert norm == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_batch_without_weight_is_no_step(by_rank: list[dict[str, Any]], world_size: int) -> None:
    assert all(by_rank[rank][f"skipped {world_size}"] for rank in range(world_size))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_gradient_that_is_not_finite_stops_every_rank(by_rank: list[dict[str, Any]], world_size: int) -> None:
    wanted = "the gradient's norm became nan: lower --optimizer.learning-rate"
    assert [by_rank[rank][f"broken {world_size}"] for rank in range(world_size)] == [wanted] * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_is_the_same_for_any_number_of_ranks(by_rank: list[dict[str, Any]], world_size: int) -> None:
    clips = torch.cat([batch.clips[batch.weights > 0] for batch in EVALUATED])
    labels = torch.cat([batch.labels[batch.weights > 0] for batch in EVALUATED])
    with torch.no_grad():
        logits = Tiny()(clips)
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    np.add.at(confusion, (labels.numpy(), logits.argmax(1).numpy()), 1)
    for rank in range(world_size):
        counted, figures = by_rank[rank][f"evaluation {world_size}"]
        assert counted == confusion.tolist()
        assert confusion.sum() == 15  # of 24 rows, 9 without weight
        assert figures["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item())
        assert figures["top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert figures["top5"] == 1.0  # of three classes
        assert by_rank[rank][f"bad {world_size}"] == 2


def test_every_rank_gets_the_buffers_of_rank_0(by_rank: list[dict[str, Any]]) -> None:
    assert [results["buffers"] for results in by_rank] == [7.0] * MAX_RANKS


def test_top_k_counts_the_five_most_probable_classes() -> None:
    logits = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1, 0]] * 8)
    batch = replace(make_batch((1.0,) * 8), labels=torch.arange(8))
    evaluation = evaluate(lambda clips: logits, [batch], 8, Ranks(), CPU)
    assert (evaluation.figures()["top5"], evaluation.figures()["top1"]) == (5 / 8, 1 / 8)


def test_the_gradient_is_scaled_down_to_the_norm() -> None:
    case = Case(1, 0, (1.0,) * 7, False, 0.0)
    gradients, _, norm = take_step(Ranks(), case)
    learner = make_learner(Ranks(), case)
    learner.max_grad_norm = norm / 2
    assert learner.step(case.batch, 7.0, 0.1) == pytest.approx(norm)
    for name, parameter in learner.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradients[name] / 2, rtol=1e-4)


def test_the_optimizer_decays_matrices_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.LSTM(2, 2))
    model[2].weight.requires_grad_(False)
    decayed, spared = make_optimizer(model, OptimizerConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in spared["params"])
    grouped = {id(parameter) for parameter in (*decayed["params"], *spared["params"])}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_learning_rate_rises_linearly_and_falls_to_zero_as_a_cosine(warmup: float) -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_fraction=warmup)
    num_positions = 1000
    rates = [learning_rate(config, position, num_positions) for position in range(num_positions)]
    top = round(warmup * num_positions)
    assert rates[:top] == pytest.approx([2.0 * (position + 1) / max(1, top) for position in range(top)])
    assert max(rates) == pytest.approx(2.0, rel=1e-4)
    assert all(one > other for one, other in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[top + (num_positions - top) // 2 - 1] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_learning_rate_depends_on_the_position_alone() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.2)
    coarse = {position: learning_rate(config, position, 100) for position in range(0, 100, 10)}
    fine = {position: learning_rate(config, position, 100) for position in range(0, 100, 5)}
    assert coarse.items() <= fine.items()
