"""A real registered model in a real SQLite MLflow store, small enough to be made in every test session."""

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
import torch

from configs.pack import ClipConfig
from configs.train import CHAMPION, ViewConfig
from packer.shards.manifest import manifest_sha256
from trainer.model.contract import ModelContract
from trainer.tracking.registry import Registry
from trainer.tracking.store import create_store

MLFLOW_WARNINGS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # its use of SQLAlchemy
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # its use of torch.export
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # about its own classes
]
"""Warnings that MLflow gives on importing, exporting and loading, whatever the caller does."""

CLASS_NAMES = ("dark", "middle", "bright")
CLIP = ClipConfig(num_frames=4, short_side_px=32)
VIEW = ViewConfig(short_side_px=32, size_px=24)


class Brightness(torch.nn.Module):
    """Maps `(B, T, 3, S, S) uint8` to `(B, 3) float32` logits: how near the clip's mean is to 0, 128 and 255."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor([0.0, 128.0, 255.0]))

    def forward(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        mean_B = frames_BTCHW.float().mean(dim=(1, 2, 3, 4))
        return -(((mean_B[:, None] - self.levels) / 64) ** 2)


def contract(class_names: tuple[str, ...] = CLASS_NAMES, pack_sha256: str = "0" * 64) -> ModelContract:
    return ModelContract(
        class_names=class_names,
        clip=CLIP,
        view=VIEW,
        manifest_sha256=pack_sha256,
        val_sha256="0" * 64,
        select_by="macro_f1",
        val_metric=0.5,
        code_version="test",
    )


def register(store: Path, class_names: tuple[str, ...] = CLASS_NAMES, shards: Path | None = None) -> str:
    """Registers a `Brightness` in the store at `store`, moves the champion's alias to it and returns its version.

    Args:
        store: Folder of the store.
        class_names: The model's classes.
        shards: The pack that it says it was trained on.
    """
    registry = Registry(store_uri(store), "clipstream")
    create_store(registry.uri)
    client = registry.client
    experiment = client.get_experiment_by_name("test")
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment("test", artifact_location=(store / "artifacts").as_uri())
    )
    mlflow.set_tracking_uri(registry.uri)
    run_id = client.create_run(experiment_id).info.run_id
    promise = contract(class_names)
    if shards:
        client.log_param(run_id, "shards", shards)
        promise = contract(class_names, manifest_sha256(shards))
    model_uri = registry.export(Brightness().eval(), run_id, promise)
    version = registry.register(model_uri, run_id, promise)
    client.set_registered_model_alias(registry.name, CHAMPION, version)
    return version


def copy_champion(champion_store: Path, folder: Path) -> None:
    """Gives a folder a store of its own with the same champion; the model's files stay where they are.

    It takes milliseconds, and registering another model takes seconds.
    """
    source, target = (sqlite3.connect(store / "mlflow.db") for store in (champion_store, folder))
    with closing(source), closing(target):
        source.backup(target)


def register_again(store: Path) -> str:
    """Registers version 1 once more, moves the champion's alias to the new version and returns it."""
    registry = Registry(store_uri(store), "clipstream")
    first = registry.client.get_model_version("clipstream", "1")
    version = registry.register(first.source, first.run_id, contract())
    registry.client.set_registered_model_alias(registry.name, CHAMPION, version)
    return version


def store_uri(store: Path) -> str:
    return f"sqlite:///{store / 'mlflow.db'}"
