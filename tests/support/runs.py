"""Runs of `trainer.worker.training.Training` in one process, and how two of them are compared to the last bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from configs.model import ModelConfig
from configs.train import OptimizerConfig, TrainConfig, ViewConfig
from tests.support.registry import store_uri
from trainer.evaluation.metrics import Evaluation
from trainer.learning.ranks import Ranks
from trainer.model.cnn_rnn import CnnRnn
from trainer.tracking.runs import open_run
from trainer.worker.outcome import Outcome
from trainer.worker.parts import open_checkpoints
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

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
RECIPE = {
    "model": ModelConfig(**CONFIG.model.model_dump() | {"weights": "first.pt", "freeze_epochs": 1}),
    "optimizer": OptimizerConfig(
        **CONFIG.optimizer.model_dump() | {"ema_decay": 0.8, "backbone_factor": 0.3, "warmup_fraction": 0.4}
    ),
}
NUM_STEPS = 16
EPOCH_ENDS = [6, 11, 16]

MakeSpec = Callable[..., JobSpec]


def spec_maker(folder: Path, packed: Path) -> MakeSpec:
    """Returns what makes runs of their own in one MLflow store below `folder`."""

    def make(shards: Path = packed, **values: object) -> JobSpec:
        config = CONFIG.model_copy(update={"run": f"run-{len(list(folder.iterdir()))}", **values})
        run_folder = folder / str(config.run)
        run_folder.mkdir()
        run_id = open_run(store_uri(folder), config, folder / "artifacts")
        return JobSpec(config, shards, run_folder, run_id, store_uri(folder), num_workers=1)

    return make


def put_weights(spec: JobSpec) -> JobSpec:
    """Writes the backbone's first weights to the file to which the driver writes them."""
    torch.manual_seed(5)
    torch.save(CnnRnn(spec.config.model, 2, 4).backbone.state_dict(), spec.weights_file)
    return spec


def train(spec: JobSpec) -> Outcome:
    return Training(spec, Ranks(), CPU).run()


def curve(spec: JobSpec, name: str) -> list[tuple[int, float]]:
    """The points of a metric in the order of their steps, doubled ones too."""
    history = MlflowClient(spec.tracking_uri).get_metric_history(spec.run_id, name)
    return sorted((point.step, point.value) for point in history)


def newest(spec: JobSpec) -> dict[str, Any]:
    state = open_checkpoints(spec).load_newest()
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
    elif isinstance(one, Outcome) and isinstance(other, Outcome):
        assert_same(vars(one), vars(other))
    elif isinstance(one, Evaluation) and isinstance(other, Evaluation):
        assert (one.predictions == other.predictions).all()
    else:
        assert one == other


def train_on_one_thread(spec: JobSpec) -> Outcome:
    """Trains on one thread; for module fixtures, which cannot use the fixture `one_thread`."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = train(spec)
    torch.set_num_threads(num_threads)
    return outcome


def assert_as_whole(spec: JobSpec, whole: tuple[JobSpec, Outcome], outcome: Outcome) -> None:
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
