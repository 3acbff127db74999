"""One rank's training: a run that is stopped and resumed anywhere is the run that was not."""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from configs.model import ModelConfig
from configs.train import OptimizerConfig, TrainConfig, ViewConfig
from packer.manifest import read_manifest, read_samples
from tests.registry import MLFLOW_WARNINGS, store_uri
from trainer.checkpoint import judged_weights
from trainer.index import SampleIndex
from trainer.loop import Ranks, evaluate
from trainer.metrics import Evaluation
from trainer.model import CnnRnn
from trainer.spec import JobSpec
from trainer.tracking import open_run
from trainer.training import Training, TrainingError

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
# 21 clips: batches of 4 cross the ends of epochs, and the last one is padded.
CONFIG = TrainConfig(
    epochs=3,
    global_batch=4,
    micro_batch=3,
    loader_workers=0,
    log_every_steps=1,
    view=ViewConfig(short_side_px=32, size_px=24),
    model=ModelConfig(backbone="narrow", width=8, weights="none", hidden_size=8, dropout=0.3),
    optimizer=OptimizerConfig(learning_rate=1e-2, class_weights="balanced", label_smoothing=0.1),
)
NUM_STEPS = 16
EPOCH_ENDS = [6, 11, 16]

MakeSpec = Callable[..., JobSpec]


@pytest.fixture(scope="module")
def make_spec(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeSpec:
    """Makes runs of their own in one MLflow store."""
    folder = tmp_path_factory.mktemp("training")

    def make(shards: Path = packed, **values: object) -> JobSpec:
        config = CONFIG.model_copy(update={"run": f"run-{len(list(folder.iterdir()))}", **values})
        run_folder = folder / str(config.run)
        run_folder.mkdir()
        run_id = open_run(store_uri(folder), config, folder / "artifacts")
        return JobSpec(config, shards, run_folder, run_id, store_uri(folder), num_workers=1)

    return make


def train(spec: JobSpec) -> dict[str, Any]:
    return Training(spec, Ranks(), CPU).run()


def curve(spec: JobSpec, name: str) -> list[tuple[int, float]]:
    """The points of a metric in the order of their steps, doubled ones too."""
    history = MlflowClient(spec.tracking_uri).get_metric_history(spec.run_id, name)
    return sorted((point.step, point.value) for point in history)


def newest(spec: JobSpec) -> dict[str, Any]:
    state = spec.checkpoints.load_newest()
    assert state is not None
    return state


def assert_same(one: object, other: object) -> None:
    """Equality to the last bit of nested states."""
    assert type(one) is type(other)
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, Evaluation) and isinstance(other, Evaluation):
        assert (one.predictions == other.predictions).all()
    else:
        assert one == other


@pytest.fixture(scope="module")
def whole(make_spec: MakeSpec) -> tuple[JobSpec, dict[str, Any]]:
    """A run that nothing interrupted."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = make_spec()
    outcome = train(spec)
    torch.set_num_threads(num_threads)
    return spec, outcome


def assert_as_whole(spec: JobSpec, whole: tuple[JobSpec, dict[str, Any]], outcome: dict[str, Any]) -> None:
    assert_same(newest(spec), newest(whole[0]))
    assert_same(outcome, whole[1])
    for name in (
        "train_loss",
        "train_top1",
        "learning_rate",
        "grad_norm",
        "epoch",
        "val_loss",
        "val_macro_f1",
        "test_loss",
    ):
        assert curve(spec, name) == curve(whole[0], name)


def test_an_uninterrupted_run(whole: tuple[JobSpec, dict[str, Any]]) -> None:
    spec, outcome = whole
    state = newest(spec)
    assert (state["global_step"], state["position"], state["num_bad"]) == (NUM_STEPS, 3 * 21, 0)
    assert outcome["stopped"] is False
    for name in ("train_loss", "train_top1", "learning_rate", "grad_norm", "clips_per_second", "data_wait_share"):
        points = curve(spec, name)
        assert [step for step, _ in points] == list(range(1, NUM_STEPS + 1))
        assert all(math.isfinite(value) for _, value in points)
    assert curve(spec, "epoch") == [(step, epoch) for epoch, step in enumerate(EPOCH_ENDS, start=1)]
    assert [step for step, _ in curve(spec, "test_top1")] == [NUM_STEPS]
    rates = [value for _, value in curve(spec, "learning_rate")]
    assert max(rates) <= 1e-2
    assert rates[0] < rates[1]
    assert rates[-1] < rates[-2] < rates[3]


def test_the_best_epoch_is_the_one_of_the_metric_and_is_tested(whole: tuple[JobSpec, dict[str, Any]]) -> None:
    spec, outcome = whole
    metrics = dict(curve(spec, "val_macro_f1"))
    losses = dict(curve(spec, "val_loss"))
    best = max(EPOCH_ENDS, key=lambda step: (metrics[step], -losses[step]))
    assert outcome["best_step"] == best
    assert outcome["val"]["macro_f1"] == metrics[best]
    assert set(spec.checkpoints.steps()) == {best, *EPOCH_ENDS[-2:]}
    training = Training(spec, Ranks(), CPU)
    training.model.load_state_dict(spec.checkpoints.load(best)["model"])
    figures = evaluate(training.model.eval(), spec.eval_loader("test", Ranks()), 2, Ranks(), CPU).figures()
    assert outcome["test"] == figures
    assert {name: value for name, value in figures.items() if curve(spec, f"test_{name}") != [(16, value)]} == {}


@pytest.mark.parametrize(("ahead", "loss", "stays"), [(0.1, 9.0, True), (0.0, 0.0, True), (0.0, 9.0, False)])
def test_a_later_epoch_is_the_best_only_if_it_is_better(
    make_spec: MakeSpec, whole: tuple[JobSpec, dict[str, Any]], ahead: float, loss: float, stays: bool
) -> None:
    """An epoch as good by the metric is better if its loss is lower."""
    spec = make_spec()
    reached = max(value for step, value in curve(whole[0], "val_macro_f1") if step > EPOCH_ENDS[0])
    spec.stop_file.touch()
    for _ in range(EPOCH_ENDS[0]):
        train(spec)
    spec.stop_file.unlink()
    state = newest(spec)
    assert state["best_step"] == EPOCH_ENDS[0]
    state["best_figures"] |= {"macro_f1": reached + ahead, "loss": loss}
    spec.checkpoints.save(state, EPOCH_ENDS[0], EPOCH_ENDS[0])
    outcome = train(spec)
    assert (outcome["best_step"] == EPOCH_ENDS[0]) is stays
    assert (EPOCH_ENDS[0] in spec.checkpoints.steps()) is stays
    assert outcome["val"]["macro_f1"] == reached + ahead


def test_a_run_stopped_after_every_step_is_the_whole_run(
    make_spec: MakeSpec, whole: tuple[JobSpec, dict[str, Any]]
) -> None:
    spec = make_spec()
    spec.stop_file.touch()
    positions = []
    while (outcome := train(spec))["stopped"]:
        assert outcome["test"] == {}
        positions.append(newest(spec)["position"])
    assert positions == [min(4 * step, 63) for step in range(1, NUM_STEPS + 1)]
    assert_as_whole(spec, whole, outcome)


@pytest.mark.parametrize("lost", [1, 2])
def test_steps_that_were_lost_are_taken_again_and_logged_once(
    make_spec: MakeSpec, whole: tuple[JobSpec, dict[str, Any]], lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a kill -9: the curves are ahead of the checkpoints, of which the newest may be torn."""
    spec = make_spec(checkpoint_interval_seconds=1e-9)
    train(spec)
    steps = spec.checkpoints.steps()
    assert steps[:2] == [16, 15]
    if steps[-1] in (15, 16):  # the best was among the newest two: leave one to start from
        lost = 1
    for step in steps[:lost]:
        (spec.run_folder / f"checkpoints/step-{step:010d}/state.pt").write_bytes(b"torn")
    with caplog.at_level(logging.INFO):
        outcome = train(spec)
    assert f"resumed step={steps[lost]} " in caplog.text
    assert caplog.text.count("checkpoint ignored") >= lost
    assert_as_whole(spec, whole, outcome)


def test_a_run_is_prolonged_by_more_epochs(make_spec: MakeSpec, whole: tuple[JobSpec, dict[str, Any]]) -> None:
    spec = make_spec()
    shutil.copytree(whole[0].run_folder / "checkpoints", spec.run_folder / "checkpoints")
    longer = JobSpec(
        spec.config.model_copy(update={"epochs": 4}),
        spec.shards,
        spec.run_folder,
        spec.run_id,
        spec.tracking_uri,
        num_workers=1,
    )
    train(longer)
    # The padded last batch of the third epoch is not used again.
    assert [step for step, _ in curve(longer, "train_loss")] == list(range(17, 23))
    assert newest(longer)["position"] == 84


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # however few cores there are
def test_loader_workers_change_nothing(make_spec: MakeSpec, whole: tuple[JobSpec, dict[str, Any]]) -> None:
    spec = make_spec(loader_workers=2)
    assert_as_whole(spec, whole, train(spec))


def test_points_are_means_over_the_steps_between_them(
    make_spec: MakeSpec, whole: tuple[JobSpec, dict[str, Any]]
) -> None:
    spec = make_spec(log_every_steps=5, epochs=3)
    train(spec)
    every = dict(curve(whole[0], "train_loss"))
    points = curve(spec, "train_loss")
    assert [step for step, _ in points] == [5, 10, 15]
    assert points[0][1] == pytest.approx(sum(every[step] for step in range(1, 6)) / 5)


def break_samples(shards: Path, numbers: list[int]) -> None:
    rows = read_samples(shards, "train").to_pylist()
    for row in (rows[number] for number in numbers):
        with (shards / row["shard"]).open("r+b") as file:
            file.seek(row["offset"] + row["member_offsets"][1])
            file.write(bytes(8))


def test_too_many_unreadable_samples_stop_the_run(make_spec: MakeSpec, packed: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    break_samples(shards, [0, 7, 13, 14])
    spec = make_spec(shards, max_bad_fraction=0.1)
    message = (
        r"3 samples could not be read, more than max_bad_fraction \(0.1\) of the split: check the shards with "
        "`python -m packer verify`"
    )
    with pytest.raises(TrainingError, match=message):
        train(spec)


def test_a_few_unreadable_samples_are_counted_and_named(
    make_spec: MakeSpec, packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    break_samples(shards, [0, 7])
    spec = make_spec(shards, max_bad_fraction=0.1)
    train(spec)
    assert newest(spec)["num_bad"] == 2 * 3
    assert curve(spec, "num_bad_samples")[-1] == (16, 6)
    skipped = [record.getMessage() for record in caplog.records if "sample skipped" in record.getMessage()]
    assert len(skipped) == 6
    for row in (read_samples(shards, "train").to_pylist()[number] for number in (0, 7)):
        assert sum(row["key"] in message and row["shard"] in message for message in skipped) == 3


class Repair(logging.Handler):
    """Mends the storage once it was said so many times that a checkpoint could not be written."""

    def __init__(self, spec: JobSpec, num_failures: int) -> None:
        super().__init__()
        self.checkpoints = spec.checkpoints.folder
        self.checkpoints.touch()  # a file where the folder should be
        self.num_failures = num_failures
        self.num_seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("checkpoint not written, tried again later reason="):
            self.num_seen += 1
            if self.num_seen == self.num_failures:
                self.checkpoints.unlink()


@pytest.mark.parametrize("num_failures", [1, 2, 8])
def test_a_storage_that_fails_for_a_while_costs_nothing(
    make_spec: MakeSpec, whole: tuple[JobSpec, dict[str, Any]], num_failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-epoch the training goes on; at the end of an epoch, here after five failures, it waits."""
    monkeypatch.setattr("trainer.checkpoint.RETRY_SECONDS", 0.01)
    spec = make_spec(checkpoint_interval_seconds=1e-9)
    repair = Repair(spec, num_failures)
    logging.getLogger("trainer.checkpoint").addHandler(repair)
    outcome = train(spec)
    logging.getLogger("trainer.checkpoint").removeHandler(repair)
    assert repair.num_seen == num_failures
    assert_as_whole(spec, whole, outcome)


def test_a_storage_that_fails_for_long_ends_the_run_at_the_end_of_an_epoch(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.checkpoint.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("trainer.training.NUM_STORAGE_TRIES", 3)
    spec = make_spec()
    spec.checkpoints.folder.touch()
    with pytest.raises(OSError, match="took no checkpoint in 3 tries at the end of an epoch"):
        train(spec)
    assert caplog.text.count("checkpoint not written") == 1 + 3


RECIPE = {
    "model": ModelConfig(**CONFIG.model.model_dump() | {"weights": "first.pt", "freeze_epochs": 1}),
    "optimizer": OptimizerConfig(**CONFIG.optimizer.model_dump() | {"ema_decay": 0.8, "backbone_factor": 0.3}),
}


def put_weights(spec: JobSpec) -> JobSpec:
    """Puts the backbone's first weights where the driver does."""
    torch.manual_seed(5)
    torch.save(CnnRnn(CONFIG.model, 2, 4).backbone.state_dict(), spec.weights_file)
    return spec


@pytest.fixture(scope="module")
def recipe(make_spec: MakeSpec) -> tuple[JobSpec, dict[str, Any]]:
    """A run with a frozen backbone at first and a moving average of the weights, which nothing interrupted."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = put_weights(make_spec(**RECIPE))
    outcome = train(spec)
    torch.set_num_threads(num_threads)
    return spec, outcome


def test_a_recipe_stopped_after_every_step_is_the_whole_run(
    make_spec: MakeSpec, recipe: tuple[JobSpec, dict[str, Any]]
) -> None:
    spec = put_weights(make_spec(**RECIPE))
    spec.stop_file.touch()
    first = torch.load(spec.weights_file, weights_only=True)
    changed = []
    while (outcome := train(spec))["stopped"]:
        model = newest(spec)["model"]
        changed.append([not torch.equal(model[f"backbone.{name}"], value) for name, value in first.items()])
    frozen = EPOCH_ENDS[0]
    assert not any(any(step) for step in changed[:frozen])  # neither weights nor statistics
    assert all(all(step) for step in changed[frozen:])
    assert_as_whole(spec, recipe, outcome)


def test_the_average_is_evaluated_chosen_and_tested(recipe: tuple[JobSpec, dict[str, Any]]) -> None:
    spec, outcome = recipe
    state = spec.checkpoints.load(outcome["best_step"])
    figures = {}
    for name, weights in (("raw", state["model"]), ("average", state["average"]["model"])):
        model = spec.make_model(read_manifest(spec.shards))
        model.load_state_dict(weights)
        loaders = {split: spec.eval_loader(split, Ranks()) for split in ("val", "test")}
        figures[name] = {
            split: evaluate(model.eval(), loader, 2, Ranks(), CPU).figures() for split, loader in loaders.items()
        }
    assert figures["average"] == {"val": outcome["val"], "test": outcome["test"]}
    assert figures["raw"]["val"]["loss"] != figures["average"]["val"]["loss"]
    assert judged_weights(state).keys() == state["model"].keys()
    assert_same(judged_weights(state), state["average"]["model"])


def test_a_run_that_gets_no_better_ends_early(make_spec: MakeSpec, caplog: pytest.LogCaptureFixture) -> None:
    still = {
        "model": CONFIG.model.model_copy(update={"batch_norm": "frozen"}),
        "optimizer": OptimizerConfig(learning_rate=1e-30),
    }
    spec = make_spec(**still, epochs=9, patience_epochs=2)
    with caplog.at_level(logging.INFO):
        outcome = train(spec)
    assert "stopped early epoch=3 patience_epochs=2" in caplog.text
    assert curve(spec, "epoch") == [(6, 1), (11, 2), (16, 3)]
    assert (outcome["stopped"], outcome["best_step"]) == (False, 6)
    assert outcome["test"].keys() == outcome["val"].keys()
    # As after a kill -9 before the model was registered.
    assert_same(train(spec), outcome)
    assert newest(spec)["global_step"] == 16


def test_an_average_may_begin_later(make_spec: MakeSpec, whole: tuple[JobSpec, dict[str, Any]]) -> None:
    """As in a run that is resumed with the option, or by a newer version from an older one's checkpoint."""
    spec = make_spec(optimizer=CONFIG.optimizer.model_copy(update={"ema_decay": 0.9}))
    state = newest(whole[0])
    del state["average"], state["num_epochs_since_best"]
    spec.checkpoints.save(state, state["global_step"], None)
    training = Training(spec, Ranks(), CPU)
    assert_same(training.judged.state_dict(), training.model.state_dict())
    assert_same(dict(training.model.state_dict()), dict(state["model"]))


@pytest.mark.parametrize("world_size", [1, 2])
def test_statistics_over_all_workers_are_for_several(make_spec: MakeSpec, world_size: int) -> None:
    spec = make_spec(model=CONFIG.model.model_copy(update={"batch_norm": "sync"}))
    model = spec.make_model(read_manifest(spec.shards))
    names = model.state_dict().keys()
    learner = spec.make_learner(model, SampleIndex.open(spec.shards, "train"), 2, Ranks(0, world_size))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()) is (world_size > 1)
    assert model.state_dict().keys() == names
    held = {id(parameter) for group in learner.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
