"""A run that shrinks and grows: the same batches in the same order, so the same curve up to the order of sums."""

import os
import shutil
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes

from configs.load import parse
from configs.model import ModelConfig
from configs.section import UsageError
from configs.train import TrainConfig
from packer.shards.manifest import Manifest
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.runs import CONFIG, NUM_STEPS, curve, newest
from trainer.learning.ranks import Ranks
from trainer.model.cnn_rnn import CnnRnn
from trainer.stream.loader import PRELOADED
from trainer.tracking.runs import open_run
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

pytestmark = MLFLOW_WARNINGS

Phases = list[tuple[int, int]]
"""World size and steps of each start of the workers."""
IN_ONE_GO = 0
"""Instead of a number of steps, each of which is a start of its own."""
PLANS: dict[str, Phases] = {
    "one": [(1, NUM_STEPS)],
    "two": [(2, NUM_STEPS)],
    "resized": [(2, 5), (1, 5), (2, NUM_STEPS)],
    "staged-one": [(1, NUM_STEPS)],
    "staged-two": [(2, IN_ONE_GO)],
    "staged-resized": [(2, 5), (1, 5), (2, IN_ONE_GO)],
}
NUM_RECOMPUTED = 1
"""Steps that each resize takes again: the newest checkpoint of a phase is deleted, as if there was no time for it."""


class GroupNormSpec(JobSpec):
    """A run whose model has no batch norm, whose statistics would be those of each rank's rows."""

    def make_model(self, manifest: Manifest) -> CnnRnn:
        model = super().make_model(manifest)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.GroupNorm(2, child.num_features))
        return model


def train_rank(rank: int, folder: Path, specs: dict[str, JobSpec]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    for name, phases in PLANS.items():
        for number, (world_size, num_steps) in enumerate(phases):
            if rank < world_size:
                train_steps(specs[name], Ranks(rank, world_size), num_steps)
            dist.barrier()
            if rank == 0 and number < len(phases) - 1:
                for step in specs[name].checkpoints.steps()[:NUM_RECOMPUTED]:
                    shutil.rmtree(specs[name].checkpoints.folder / f"step-{step:010d}")
            dist.barrier()
    dist.destroy_process_group()


def train_steps(spec: JobSpec, ranks: Ranks, num_steps: int) -> None:
    if num_steps == IN_ONE_GO:
        spec.stop_file.unlink(missing_ok=True)
    else:
        spec.stop_file.touch()  # with it there, workers take one step and return
    for _ in range(max(1, num_steps)):
        outcome = Training(spec, ranks, torch.device("cpu")).run()
        if not outcome["stopped"]:
            return


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> dict[str, JobSpec]:
    folder = tmp_path_factory.mktemp("elastic")
    plain = ModelConfig(backbone="narrow", width=8, weights="none", hidden_size=8, dropout=0.0)
    staged = plain.model_copy(update={"weights": "first.pt", "freeze_epochs": 1, "unfreeze_stage_epochs": 1})
    specs: dict[str, JobSpec] = {}
    for name in PLANS:
        config = CONFIG.model_copy(update={"run": name, "model": staged if name.startswith("staged") else plain})
        (folder / name).mkdir()
        run_id = open_run(store_uri(folder), config, folder / "artifacts")
        specs[name] = GroupNormSpec(config, packed, folder / name, run_id, store_uri(folder), num_workers=2)
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    start_processes(train_rank, args=(folder, specs), nprocs=2, start_method="forkserver")
    return specs


@pytest.mark.parametrize(
    ("name", "alone"),
    [("two", "one"), ("resized", "one"), ("staged-two", "staged-one"), ("staged-resized", "staged-one")],
)
def test_any_world_sizes_give_the_curve_of_one(runs: dict[str, JobSpec], name: str, alone: str) -> None:
    for metric in ("train_loss", "grad_norm", "val_loss", "learning_rate"):
        assert curve(runs[name], metric) == [
            (step, pytest.approx(value, rel=1e-3)) for step, value in curve(runs[alone], metric)
        ]
    assert len(curve(runs[name], "train_loss")) == NUM_STEPS
    states = [newest(runs[one])["model"] for one in (alone, name)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4)


def test_cores_are_shared_by_the_workers_that_there_are(
    runs: dict[str, JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    spec = replace(runs["one"], config=TrainConfig())
    for num_local, num_threads, num_loader_workers in ((1, 12, 8), (2, 6, 5), (4, 3, 2), (12, 1, 0), (13, 1, 0)):
        assert (spec.num_threads(num_local), spec.num_loader_workers(num_local)) == (num_threads, num_loader_workers)
    fixed = replace(spec, config=TrainConfig(threads_per_worker=3, loader_workers=1))
    assert (fixed.num_threads(12), fixed.num_loader_workers(12)) == (3, 1)


def test_the_fewest_and_the_most_workers_make_a_range(runs: dict[str, JobSpec]) -> None:
    spec = runs["one"]
    assert spec.worker_range == 2
    for min_workers, num_workers, wanted in ((1, 4, (1, 4)), (4, 4, (4, 4)), (2, 1, (2, 2))):
        config = spec.config.model_copy(update={"min_workers": min_workers})
        assert replace(spec, config=config, num_workers=num_workers).worker_range == wanted
    arguments = ["--min-workers", "3", "--num-workers", "2"]
    with pytest.raises(UsageError, match=r"min_workers \(3\) must be at most num_workers \(2\)"):
        parse(TrainConfig, arguments, prog="trainer", description="", env_prefix="CLIPSTREAM_TRAIN_")
