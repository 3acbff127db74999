"""The exact gradient: ranks, their uneven shares and pieces of them give what one process gives for the whole batch."""

import math
from collections import OrderedDict
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

from configs.train import OptimizerConfig, TrainConfig
from trainer.loop import Learner, Loss, Ranks, distribute, evaluate, learning_rate, make_optimizer, share_buffers
from trainer.metrics import Evaluation
from trainer.schedule import Row
from trainer.stream import PRELOADED, Batch

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_CLASSES = 3
MAX_RANKS = 4
CPU = torch.device("cpu")
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


class Scaled(nn.Module):
    """Bytes as fractions, each with a learnt factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(96))

    def forward(self, pixels_BF: Tensor) -> Tensor:
        return pixels_BF / 255 * self.factor


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
    (mass,) = ranks.sum([learner.mass(share)])
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


def thaw(ranks: Ranks) -> dict[str, Tensor]:
    """Returns the weights after two steps with the first layer frozen and two with all of them."""
    learner = make_learner(Ranks(), Case(1, 0, (1.0,) * 7, False, 0.0))
    learner.ranks = ranks
    model = learner.model
    batch = make_batch((1.0,) * 7)
    share = share_of(batch, ranks.rank, ranks.world_size)
    for frozen in (True, False):
        model.hidden.requires_grad_(not frozen)
        learner.model = distribute(model, ranks)
        before = model.hidden.weight.detach().clone()
        for _ in range(2):
            learner.step(share, 7.0, 0.5)
        assert torch.equal(model.hidden.weight, before) is frozen
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


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
    everyone = Ranks(rank, MAX_RANKS, groups[-1])
    results: dict[str, Any] = {"buffers": spread_buffers(everyone), "thawed": thaw(everyone)}
    for world_size, group in enumerate(groups, start=1):
        if rank < world_size:
            ranks = Ranks(rank, world_size, group)
            results[f"skipped {world_size}"] = skip_step(ranks)
            results[f"broken {world_size}"] = break_last_rank(ranks)
            evaluation = evaluate_shares(ranks)
            results[f"evaluation {world_size}"] = (evaluation.confusion.tolist(), evaluation.figures())
            results[f"bad {world_size}"] = evaluation.num_bad
            for number, case in enumerate([*CASES, *MIXED_CASES]):
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
    assert_step(by_rank, number, case, model, wanted)


@pytest.mark.parametrize("number", range(len(CASES), len(CASES) + len(MIXED_CASES)))
def test_gradient_of_mixed_clips_is_that_of_soft_targets(by_rank: list[dict[str, Any]], number: int) -> None:
    case = MIXED_CASES[number - len(CASES)]
    real = case.batch.weights > 0
    model = Tiny()
    targets = case.soft_targets[real]
    class_weights = CLASS_WEIGHTS if case.weighted_classes else torch.ones(NUM_CLASSES)
    total = functional.cross_entropy(
        model(case.batch.clips[real]),
        targets,
        weight=class_weights,
        label_smoothing=case.label_smoothing,
        reduction="sum",
    )
    # Torch's own mean over soft targets would divide by the number of rows, whatever their classes weigh.
    assert_step(by_rank, number, case, model, total / (targets @ class_weights).sum())


def assert_step(by_rank: list[dict[str, Any]], number: int, case: Case, model: nn.Module, wanted: Tensor) -> None:
    """Whether every rank took the step that the gradient of `wanted`, a loss over the whole batch, gives."""
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


def test_a_layer_that_is_trained_later_learns_from_every_rank(by_rank: list[dict[str, Any]]) -> None:
    wanted = thaw(Ranks())
    for results in by_rank:
        assert results["thawed"].keys() == wanted.keys()
        for name, parameter in wanted.items():
            assert torch.allclose(results["thawed"][name], parameter, rtol=1e-4, atol=1e-6)


def test_top_k_counts_the_five_most_probable_classes() -> None:
    logits = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1, 0]] * 8)
    batch = replace(make_batch((1.0,) * 8), labels=torch.arange(8))
    evaluation = evaluate(lambda clips: logits, [batch], 8, Ranks(), CPU)
    assert (evaluation.figures()["top5"], evaluation.figures()["top1"]) == (5 / 8, 1 / 8)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_right_answers_of_a_step_are_counted_where_they_weigh(weights: tuple[float, ...]) -> None:
    case = Case(1, 2, weights, False, 0.0)
    learner = make_learner(Ranks(), case)
    learner.step(case.batch, sum(weights), learning_rate=0.1)
    is_right = Tiny()(case.batch.clips).argmax(1) == case.batch.labels
    assert learner.last_num_right == int(is_right[case.batch.weights > 0].sum())


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
    decayed, spared = make_optimizer(model, OptimizerConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in spared["params"])
    grouped = {id(parameter) for parameter in (*decayed["params"], *spared["params"])}
    assert grouped == {id(parameter) for parameter in model.parameters()}


def test_the_backbone_has_its_share_of_the_learning_rate() -> None:
    learner = make_learner(Ranks(), Case(1, 0, (1.0,) * 7, False, 0.0))
    learner.model = nn.Sequential(OrderedDict(backbone=nn.Sequential(nn.Flatten(), Scaled()), head=nn.Linear(96, 3)))
    learner.optimizer = make_optimizer(learner.model, OptimizerConfig(backbone_factor=0.1, weight_decay=0.0))
    before = {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}
    learner.step(make_batch((1.0,) * 7), 7.0, 0.01)
    # AdamW's first step is one learning rate wide for every weight.
    for name, parameter in learner.model.named_parameters():
        width = 0.001 if name.startswith("backbone.") else 0.01
        assert float((parameter - before[name]).detach().abs().max()) == pytest.approx(width, rel=1e-3)


def test_a_frozen_parameter_is_left_alone_until_it_is_trained() -> None:
    """Weight decay too, and the optimizer's state begins when it is trained."""
    learner = make_learner(Ranks(), Case(1, 0, (1.0,) * 7, False, 0.0))
    learner.optimizer = make_optimizer(learner.model, OptimizerConfig(weight_decay=0.5))
    hidden = learner.model.hidden.weight
    before = hidden.detach().clone()
    hidden.requires_grad_(False)
    learner.step(make_batch((1.0,) * 7), 7.0, 0.01)
    assert torch.equal(hidden, before)
    hidden.requires_grad_(True)
    learner.step(make_batch((1.0,) * 7), 7.0, 0.01)
    assert not torch.equal(hidden, before)
    assert float(learner.optimizer.state[hidden]["step"]) == 1


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_learning_rate_rises_linearly_and_falls_to_zero_as_a_cosine(warmup: float) -> None:
    num_positions = 1000
    rates = [learning_rate(2.0, warmup, position, num_positions) for position in range(num_positions)]
    top = round(warmup * num_positions)
    assert rates[:top] == pytest.approx([2.0 * (position + 1) / max(1, top) for position in range(top)])
    assert max(rates) == pytest.approx(2.0, rel=1e-4)
    assert all(one > other for one, other in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[top + (num_positions - top) // 2 - 1] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_learning_rate_depends_on_the_position_alone() -> None:
    coarse = {position: learning_rate(1.0, 0.2, position, 100) for position in range(0, 100, 10)}
    fine = {position: learning_rate(1.0, 0.2, position, 100) for position in range(0, 100, 5)}
    assert coarse.items() <= fine.items()


def test_learning_rate_grows_with_the_square_root_of_the_batch_unless_it_is_given() -> None:
    rates = {batch: TrainConfig(global_batch=batch).learning_rate for batch in (8, 32, 128)}
    assert rates == {8: 1.5e-4, 32: 3e-4, 128: 6e-4}
    assert TrainConfig(global_batch=128, optimizer=OptimizerConfig(learning_rate=0.01)).learning_rate == 0.01
