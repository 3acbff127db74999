"""A run with every recipe of the stream at once: stopped and resumed anywhere it is the run that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from configs.model import ModelConfig
from configs.train import AugmentConfig, EvaluationConfig, OptimizerConfig, TrainConfig, ViewConfig
from packer.shards.manifest import read_manifest
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from trainer.learning.ranks import Ranks
from trainer.stream.index import SampleIndex
from trainer.tracking.runs import open_run
from trainer.worker.parts import make_model, open_checkpoints, train_loader
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]

CONFIG = TrainConfig(
    epochs=2,
    global_batch=5,
    micro_batch=2,
    loader_workers=0,
    log_every_steps=1,
    sampling="balanced",
    view=ViewConfig(short_side_px=32, size_px=24, num_frames=2),
    augment=AugmentConfig(erasing=0.5, mixup=0.4, cutmix=1.0),
    evaluation=EvaluationConfig(flip=True, three_crops=True, num_clips=2),
    model=ModelConfig(backbone="narrow", width=8, weights="none", hidden_size=8, dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-2, label_smoothing=0.1),
)
NUM_STEPS = 9  # of 5 rows each: 2 epochs of 21


def begin(folder: Path, packed: Path, config: TrainConfig) -> JobSpec:
    folder.mkdir()
    run_id = open_run(store_uri(folder.parent), config, folder.parent / "artifacts")
    return JobSpec(config, packed, folder, run_id, store_uri(folder.parent), num_workers=1)


def train(spec: JobSpec) -> dict[str, Any]:
    return Training(spec, Ranks(), torch.device("cpu")).run()


def result(spec: JobSpec) -> tuple[dict[str, torch.Tensor], dict[str, list[tuple[int, float]]]]:
    """Returns the last weights and the curves that do not measure time."""
    state = open_checkpoints(spec).load_newest()
    assert state is not None
    client = MlflowClient(spec.tracking_uri)
    names = ("train_loss", "grad_norm", "val_loss", "test_loss", "test_tta_loss")
    curves = {name: [(p.step, p.value) for p in client.get_metric_history(spec.run_id, name)] for name in names}
    return state["model"], {name: sorted(points) for name, points in curves.items()}


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # however few cores there are
def test_a_run_with_every_recipe_is_resumed_exactly(packed: Path, tmp_path: Path) -> None:
    whole = begin(tmp_path / "whole", packed, CONFIG)
    outcome = train(whole)
    weights, curves = result(whole)
    assert [step for step, _ in curves["train_loss"]] == list(range(1, NUM_STEPS + 1))
    assert outcome.test["loss"] == curves["test_loss"][0][1] != curves["test_tta_loss"][0][1]

    parts = begin(tmp_path / "parts", packed, CONFIG)
    parts.stop_file.touch()
    num_stops = 0
    while train(parts).stopped:
        num_stops += 1
    assert num_stops == NUM_STEPS
    with_loaders = begin(tmp_path / "loaders", packed, CONFIG.model_copy(update={"loader_workers": 2}))
    train(with_loaders)
    for spec in (parts, with_loaders):
        got_weights, got_curves = result(spec)
        assert got_curves == curves
        assert all(torch.equal(got_weights[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling": "shuffled"},
        {"view": ViewConfig(short_side_px=32, size_px=24)},
        {"augment": AugmentConfig(mixup=0.4, cutmix=1.0)},
        {"augment": AugmentConfig(erasing=0.5, mixup=0.4)},
        {"augment": AugmentConfig(erasing=0.5, cutmix=1.0)},
        {"augment": AugmentConfig(erasing=0.5, mixup=0.4, cutmix=1.0, brightness=0.4)},
        {"shuffle_block": 1},
    ],
)
def test_each_recipe_changes_the_batches(packed: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    def first_batch(config: TrainConfig) -> bytes:
        spec = JobSpec(config, packed, tmp_path, "", "", num_workers=1)
        _, loader = train_loader(spec.config, SampleIndex.open(packed, "train"), 0, Ranks(), torch.device("cpu"))
        return next(iter(loader)).clips.numpy().tobytes()

    assert first_batch(CONFIG) != first_batch(CONFIG.model_copy(update=changed))


@pytest.mark.parametrize("averaged", [{"flip": True}, {"three_crops": True}, {"num_clips": 2}])
def test_each_kind_of_view_changes_the_averaged_test(packed: Path, tmp_path: Path, averaged: dict[str, Any]) -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "evaluation": EvaluationConfig(**averaged)})
    spec = begin(tmp_path / "run", packed, config)
    outcome = train(spec)
    assert result(spec)[1]["test_tta_loss"][0][1] != pytest.approx(outcome.test["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "view",
    [ViewConfig(short_side_px=32, size_px=24), ViewConfig(short_side_px=32, size_px=32, num_frames=2)],
    ids=["places", "frames"],
)
def test_the_seed_is_of_the_first_weights_the_order_and_the_views(
    packed: Path, tmp_path: Path, view: ViewConfig
) -> None:
    weights, orders, views = [], [], []
    for seed in (0, 1):
        plain = {"seed": seed, "sampling": "shuffled", "view": view, "augment": AugmentConfig()}
        spec = JobSpec(CONFIG.model_copy(update=plain), packed, tmp_path, "", "", num_workers=1)
        weights.append(make_model(spec, read_manifest(packed)).head.weight)
        _, loader = train_loader(spec.config, SampleIndex.open(packed, "train"), 0, Ranks(), torch.device("cpu"))
        rows = [pair for batch in loader for pair in zip(batch.rows, batch.clips, strict=True) if pair[0].weight]
        orders.append([row.index for row, _ in rows])
        views.append({(row.epoch, row.index): clip.numpy().tobytes() for row, clip in rows})
    assert not torch.equal(*weights)
    assert orders[0] != orders[1]
    assert views[0].keys() == views[1].keys()
    assert views[0] != views[1]
    assert [views[0][0, index] for index in range(21)] != [views[0][1, index] for index in range(21)]
