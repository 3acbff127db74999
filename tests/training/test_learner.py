"""The exact gradient: any division of a batch among ranks and pieces gives the gradient of the whole batch."""

import math
from dataclasses import replace
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

from tests.support.steps import (
    CASES,
    CLASS_WEIGHTS,
    CPU,
    MIXED_CASES,
    NUM_CLASSES,
    WEIGHTS,
    Case,
    Tiny,
    make_batch,
    make_learner,
    share_of,
    take_step,
)
from trainer.evaluation.metrics import MAX_PROBABILITIES, Evaluation
from trainer.learning.evaluate import evaluate
from trainer.learning.ranks import Ranks, distribute, share_buffers
from trainer.stream.loader import PRELOADED
from trainer.worker.training import TrainingError

pytestmark = pytest.mark.usefixtures("one_thread")

MAX_RANKS = 4


def skip_step(ranks: Ranks) -> bool:
    """Whether a batch without any weight leaves model, gradients and optimizer as they are."""
    case = Case(ranks.world_size, 0, (0.0,) * 5, False, 0.0)
    learner = make_learner(ranks, case)
    learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=1.0)
    before = [parameter.clone() for parameter in learner.model.parameters()]
    norm = learner.step(share_of(case.batch, ranks.rank, ranks.world_size), lambda: 0.0, learning_rate=1.0)
    return (
        norm == learner.last_loss == 0
        and not learner.optimizer.state
        and all(parameter.grad is None for parameter in learner.model.parameters())
        and all(torch.equal(one, other) for one, other in zip(before, learner.model.parameters(), strict=True))
    )


def wait_late(ranks: Ranks) -> list[str]:
    """What happens in a step, in order: the ranks' sum is waited for after the forward pass."""
    learner = make_learner(ranks, Case(ranks.world_size, 0, (1.0,) * 5, False, 0.0))
    share = share_of(make_batch((1.0,) * 8), ranks.rank, ranks.world_size)
    done: list[str] = []
    learner.model.register_forward_hook(lambda module, inputs, logits: done.append("forward"))
    sums = ranks.begin_sum([learner.weight_sum(share)])

    def weight_sum() -> float:
        done.append(f"weight sum {sums()[0]:g}")
        return sums()[0]

    learner.step(share, weight_sum, learning_rate=1.0)
    return done


def break_last_rank(ranks: Ranks) -> str:
    """What every rank raises where the last one's logits are not finite; weights must be left alone."""
    case = Case(ranks.world_size, 0, (1.0,) * 5, False, 0.0)
    learner = make_learner(ranks, case)
    learner.optimizer = torch.optim.SGD(learner.model.parameters(), lr=1.0)
    before = [parameter.clone() for parameter in learner.model.parameters()]
    if ranks.rank == ranks.world_size - 1:
        learner.model.register_forward_hook(lambda module, inputs, logits: logits * math.nan)
    with pytest.raises(FloatingPointError) as caught:
        learner.step(share_of(case.batch, ranks.rank, ranks.world_size), lambda: 5.0, learning_rate=1.0)
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
            learner.step(share, lambda: 7.0, 0.5)
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
            results[f"order {world_size}"] = wait_late(ranks)
            results[f"broken {world_size}"] = break_last_rank(ranks)
            evaluation = evaluate_shares(ranks)
            results[f"evaluation {world_size}"] = (evaluation.confusion.tolist(), evaluation.figures())
            results[f"bad {world_size}"] = evaluation.num_bad
            results[f"probabilities {world_size}"] = (evaluation.packed(), evaluation.packed_probabilities())
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
def test_ranks_wait_for_their_sum_behind_the_forward_pass(by_rank: list[dict[str, Any]], world_size: int) -> None:
    for rank in range(world_size):
        assert by_rank[rank][f"order {world_size}"] == ["forward", "weight sum 8"]


def test_a_step_whose_sum_is_refused_changes_nothing() -> None:
    case = Case(1, 0, (1.0,) * 5, False, 0.0)
    learner = make_learner(Ranks(), case)
    before = [parameter.clone() for parameter in learner.model.parameters()]

    def refused() -> float:
        raise TrainingError("too many bad samples")

    with pytest.raises(TrainingError):
        learner.step(case.batch, refused, learning_rate=1.0)
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, learner.model.parameters(), strict=True))


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


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_rank_0_alone_gets_the_probability_of_each_class(by_rank: list[dict[str, Any]], world_size: int) -> None:
    evaluation = Evaluation.unpack(*by_rank[0][f"probabilities {world_size}"], NUM_CLASSES)
    predictions, probabilities = evaluation.predictions, evaluation.probabilities
    assert probabilities is not None
    assert probabilities.shape == (15, NUM_CLASSES)
    assert probabilities.argmax(axis=1).tolist() == predictions["predicted"].tolist()
    assert probabilities.max(axis=1).tolist() == predictions["probability"].tolist()
    of_labels = probabilities[np.arange(15), predictions["label"]]
    assert -np.log(of_labels) == pytest.approx(predictions["loss"], abs=1e-5)
    for rank in range(1, world_size):
        assert by_rank[rank][f"probabilities {world_size}"][1] is None


def test_no_more_probabilities_are_kept_than_the_limit() -> None:
    num_classes = MAX_PROBABILITIES // 16 + 1  # of 16 clips, they are too many
    logits = torch.zeros(8, num_classes)
    batch = replace(make_batch((1.0,) * 8), labels=torch.arange(8))
    kept = [
        evaluate(lambda clips: logits, [batch] * num_batches, num_classes, Ranks(), CPU).probabilities
        for num_batches in (1, 2, 3)
    ]
    assert kept[0] is not None
    assert kept[0].shape == (8, num_classes)
    assert kept[1:] == [None, None]


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
    learner.step(case.batch, lambda: sum(weights), learning_rate=0.1)
    is_right = Tiny()(case.batch.clips).argmax(1) == case.batch.labels
    assert learner.last_num_right == int(is_right[case.batch.weights > 0].sum())


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_the_gradient_is_scaled_down_to_the_norm(micro_batch: int) -> None:
    case = Case(1, micro_batch, (1.0,) * 7, False, 0.0)
    gradients, _, norm = take_step(Ranks(), case)
    learner = make_learner(Ranks(), case)
    learner.max_grad_norm = norm / 2
    assert learner.step(case.batch, lambda: 7.0, 0.1) == pytest.approx(norm)
    for name, parameter in learner.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradients[name] / 2, rtol=1e-4)
