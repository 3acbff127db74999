"""Freezing, averages of the weights, patience and batch norm in a run, also where it is stopped and resumed."""

import math
from bisect import bisect_left

import pytest
import torch

from configs.train import OptimizerConfig
from packer.shards.manifest import read_manifest
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.runs import (
    CONFIG,
    CPU,
    EPOCH_ENDS,
    NUM_STEPS,
    RECIPE,
    MakeSpec,
    assert_as_whole,
    assert_same,
    curve,
    newest,
    put_weights,
    train,
    train_on_one_thread,
)
from trainer.learning.evaluate import evaluate
from trainer.learning.learner import FACTOR, Loss, learning_rate
from trainer.learning.ranks import Ranks
from trainer.stream.index import SampleIndex
from trainer.worker.checkpoint import evaluated_weights
from trainer.worker.outcome import Outcome
from trainer.worker.parts import eval_loader, make_learner, make_model, open_checkpoints
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def recipe(make_spec: MakeSpec) -> tuple[JobSpec, Outcome]:
    """A run with a frozen backbone at first and a moving average of the weights, which nothing interrupted."""
    spec = put_weights(make_spec(**RECIPE))
    return spec, train_on_one_thread(spec)


def test_a_recipe_stopped_after_every_step_is_the_whole_run(
    make_spec: MakeSpec, recipe: tuple[JobSpec, Outcome]
) -> None:
    spec = put_weights(make_spec(**RECIPE))
    spec.stop_file.touch()
    first = torch.load(spec.weights_file, weights_only=True)
    changed = []
    while (outcome := train(spec)).stopped:
        model = newest(spec)["model"]
        changed.append([not torch.equal(model[f"backbone.{name}"], value) for name, value in first.items()])
    frozen = EPOCH_ENDS[0]
    assert not any(any(step) for step in changed[:frozen])  # neither weights nor statistics
    assert all(all(step) for step in changed[frozen:])
    assert_as_whole(spec, recipe, outcome)


@pytest.mark.parametrize(
    ("backbone", "trained"),
    [("narrow", (set(), {"5"}, {"5", "4"})), ("mobilenet_v3_small", (set(), {"0.12"}, {"0.12", "0.11"}))],
)
def test_stages_are_trained_one_after_another(
    make_spec: MakeSpec, backbone: str, trained: tuple[set[str], ...]
) -> None:
    staged = RECIPE["model"].model_copy(update={"backbone": backbone, "unfreeze_stage_epochs": 1})
    whole, spec = (put_weights(make_spec(**RECIPE | {"model": staged})) for _ in range(2))
    first = torch.load(spec.weights_file, weights_only=True)
    spec.stop_file.touch()
    while (outcome := train(spec)).stopped:
        state = newest(spec)
        model = {name: state["model"][f"backbone.{name}"] for name in first}
        changed = {name for name, value in first.items() if not torch.equal(model[name], value)}
        stages = trained[bisect_left(EPOCH_ENDS, state["global_step"])]
        depth = backbone != "narrow"
        assert {".".join(name.split(".")[: 1 + depth]) for name in changed} == stages  # weights and statistics
        assert {name.rpartition(".")[2] for name in changed} >= {"weight", "running_mean"} or not stages
    assert_as_whole(spec, (whole, train(whole)), outcome)


def test_the_average_is_evaluated_chosen_and_tested(recipe: tuple[JobSpec, Outcome]) -> None:
    spec, outcome = recipe
    state = open_checkpoints(spec).load(outcome.best_step)
    figures = {}
    for name, weights in (("raw", state["model"]), ("average", state["average"]["model"])):
        model = make_model(spec, read_manifest(spec.shards))
        model.load_state_dict(weights)
        loaders = {split: eval_loader(spec, split, Ranks()) for split in ("val", "test")}
        figures[name] = {
            split: evaluate(model.eval(), loader, 2, Ranks(), CPU).figures() for split, loader in loaders.items()
        }
    assert figures["average"] == {"val": outcome.val, "test": outcome.test}
    assert figures["raw"]["val"]["loss"] != figures["average"]["val"]["loss"]
    assert state["average"]["num_updates"] == outcome.best_step
    assert evaluated_weights(state).keys() == state["model"].keys()
    assert_same(evaluated_weights(state), state["average"]["model"])


def test_the_rate_of_a_step_is_that_of_its_position(recipe: tuple[JobSpec, Outcome]) -> None:
    rates = [(step + 1, learning_rate(1e-2, 0.4, 4 * step, 63)) for step in range(NUM_STEPS)]
    assert curve(recipe[0], "learning_rate") == [(step, pytest.approx(rate)) for step, rate in rates]


def test_a_run_that_gets_no_better_ends_early(make_spec: MakeSpec) -> None:
    still = {
        "model": CONFIG.model.model_copy(update={"batch_norm": "frozen"}),
        "optimizer": OptimizerConfig(learning_rate=1e-30),
    }
    spec = make_spec(**still, epochs=9, patience_epochs=2)
    outcome = train(spec)
    assert [figures.epoch for figures in outcome.history] == [1, 2, 3]
    assert curve(spec, "epoch") == [(6, 1), (11, 2), (16, 3)]
    assert (outcome.stopped, outcome.best_step) == (False, 6)
    assert outcome.test.keys() == outcome.val.keys()
    # As after a kill -9 before the model was registered.
    assert_same(train(spec), outcome)
    assert newest(spec)["global_step"] == 16


def test_an_average_may_begin_later(make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome]) -> None:
    """As in a run that is resumed with the option, or by a newer version from an older one's checkpoint."""
    spec = make_spec(optimizer=CONFIG.optimizer.model_copy(update={"ema_decay": 0.9}))
    state = newest(whole_run[0])
    del state["average"], state["num_epochs_since_best"]
    open_checkpoints(spec).save(state, state["global_step"], None)
    training = Training(spec, Ranks(), CPU)
    assert_same(training.evaluated_model.state_dict(), training.model.state_dict())
    assert_same(dict(training.model.state_dict()), dict(state["model"]))


def test_a_learner_is_made_as_configured(make_spec: MakeSpec) -> None:
    optimizer = OptimizerConfig(
        weight_decay=0.3,
        backbone_factor=0.2,
        label_smoothing=0.15,
        class_weights="balanced",
        max_grad_norm=0.5,
        ema_decay=0.7,
    )
    spec = make_spec(optimizer=optimizer, micro_batch=2, precision="bf16")
    index = SampleIndex.open(spec.shards, "train")
    learner = make_learner(spec.config, make_model(spec, read_manifest(spec.shards)), index.labels, Ranks())
    groups = {(group[FACTOR], group["weight_decay"]) for group in learner.optimizer.param_groups}
    assert groups == {(1.0, 0.3), (1.0, 0.0), (0.2, 0.3), (0.2, 0.0)}
    assert (learner.max_grad_norm, learner.micro_batch, learner.autocast_dtype) == (0.5, 2, torch.bfloat16)
    assert (learner.loss.label_smoothing, learner.average and learner.average.decay) == (0.15, 0.7)
    weights = learner.loss.class_weights
    assert weights is not None
    counts = torch.bincount(torch.tensor(index.labels))
    assert counts[0] != counts[1]
    assert (weights * counts).tolist() == pytest.approx([index.num_samples / 2] * 2)  # a class as much as the other

    spec = make_spec(optimizer=OptimizerConfig(max_grad_norm=0))
    learner = make_learner(spec.config, make_model(spec, read_manifest(spec.shards)), index.labels, Ranks())
    assert learner.max_grad_norm == math.inf
    assert (learner.loss, learner.average, learner.autocast_dtype) == (Loss(), None, None)


@pytest.mark.parametrize("world_size", [1, 2])
def test_statistics_over_all_workers_are_for_several(make_spec: MakeSpec, world_size: int) -> None:
    spec = make_spec(model=CONFIG.model.model_copy(update={"batch_norm": "sync"}))
    model = make_model(spec, read_manifest(spec.shards))
    names = model.state_dict().keys()
    labels = SampleIndex.open(spec.shards, "train").labels
    learner = make_learner(spec.config, model, labels, Ranks(0, world_size))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()) is (world_size > 1)
    assert model.state_dict().keys() == names
    held = {id(parameter) for group in learner.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
