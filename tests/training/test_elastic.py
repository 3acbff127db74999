"""A run that shrinks and grows: the same batches in the same order, so the same curve up to the order of sums."""

import os
import shutil
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from configs.load import parse
from configs.model import ModelConfig
from configs.section import UsageError
from configs.train import TrainConfig
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.runs import CONFIG, NUM_STEPS, curve, newest
from trainer.driver.cluster import worker_range
from trainer.learning.ranks import Ranks
from trainer.stream.loader import PRELOADED
from trainer.tracking.runs import open_run
from trainer.worker.cores import num_loader_workers, num_threads
from trainer.worker.parts import open_checkpoints
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

pytestmark = MLFLOW_WARNINGS

Phases = list[tuple[int, int]]
"""World size and steps of each start of the workers."""
TO_THE_END = NUM_STEPS + 1
"""One start more than there are steps: it makes up for the last evaluation, which was stopped too."""
IN_ONE_GO = 0
"""Instead of a number of steps, each of which is a start of its own."""
PLANS: dict[str, Phases] = {
    "one": [(1, TO_THE_END)],
    "two": [(2, TO_THE_END)],
    "resized": [(2, 5), (1, 5), (2, TO_THE_END)],
    "staged-one": [(1, TO_THE_END)],
    "staged-two": [(2, IN_ONE_GO)],
    "staged-resized": [(2, 5), (1, 5), (2, IN_ONE_GO)],
}
NUM_RECOMPUTED = 1
"""Steps that each resize repeats: the newest checkpoint of a phase is deleted, as if there was no time for it."""


def train_rank(rank: int, folder: Path, specs: dict[str, JobSpec]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    for name, phases in PLANS.items():
        for number, (world_size, num_steps) in enumerate(phases):
            if rank < world_size:
                train_steps(specs[name], Ranks(rank, world_size), num_steps)
            dist.barrier()
            if rank == 0 and number < len(phases) - 1:
                for step in open_checkpoints(specs[name]).steps()[:NUM_RECOMPUTED]:
                    shutil.rmtree(open_checkpoints(specs[name]).folder / f"step-{step:010d}")
            dist.barrier()
    dist.destroy_process_group()


def train_steps(spec: JobSpec, ranks: Ranks, num_steps: int) -> None:
    if num_steps == IN_ONE_GO:
        spec.stop_file.unlink(missing_ok=True)
    else:
        spec.stop_file.touch()  # with it there, workers take one step and return
    for _ in range(max(1, num_steps)):
        outcome = Training(spec, ranks, torch.device("cpu")).run()
        if not outcome.stopped:
            return


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> dict[str, JobSpec]:
    folder = tmp_path_factory.mktemp("elastic")
    plain = ModelConfig(
        backbone="narrow",
        width=8,
        weights="none",
        hidden_size=8,
        dropout=0.0,
        batch_norm="frozen",  # otherwise its statistics would be those of each rank's rows
    )
    staged = plain.model_copy(update={"weights": "first.pt", "freeze_epochs": 1, "unfreeze_stage_epochs": 1})
    specs: dict[str, JobSpec] = {}
    for name in PLANS:
        config = CONFIG.model_copy(update={"run": name, "model": staged if name.startswith("staged") else plain})
        (folder / name).mkdir()
        run_id = open_run(store_uri(folder), config, folder / "artifacts")
        specs[name] = JobSpec(config, packed, folder / name, run_id, store_uri(folder), num_workers=2)
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    for num_local, threads, loader_workers in ((1, 12, 8), (2, 6, 5), (4, 3, 2), (12, 1, 0), (13, 1, 0)):
        assert (num_threads(None, num_local), num_loader_workers(None, num_local)) == (threads, loader_workers)
    assert (num_threads(3, 12), num_loader_workers(1, 12), num_loader_workers(0, 1)) == (3, 1, 0)


def test_the_fewest_and_the_most_workers_make_a_range() -> None:
    assert worker_range(None, 2) == 2
    for min_workers, num_workers, wanted in ((1, 4, (1, 4)), (4, 4, (4, 4)), (2, 1, (2, 2))):
        assert worker_range(min_workers, num_workers) == wanted
    arguments = ["--min-workers", "3", "--num-workers", "2"]
    with pytest.raises(UsageError, match=r"--min-workers \(3\) must be at most --num-workers \(2\)"):
        parse(TrainConfig, arguments, prog="trainer", description="", env_prefix="CLIPSTREAM_TRAIN_")
