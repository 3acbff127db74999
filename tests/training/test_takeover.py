"""Workers that outlive their driver: once the same run has been started again, they change nothing of it."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tests.support.registry import MLFLOW_WARNINGS
from tests.support.runs import CPU, MakeSpec, curve, newest, train
from tests.support.waiting import until
from trainer.learning.ranks import Ranks
from trainer.stream.loader import PRELOADED
from trainer.worker.audit import replay
from trainer.worker.checkpoint import CheckpointStore, SupersededError
from trainer.worker.parts import open_checkpoints
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training, TrainingError

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]

SUPERSEDED = 3


def save_on_and_on(folder: Path) -> None:
    """Saves checkpoints of steps 1, 2, ... and the last one twice, so that all kinds of change happen all the time."""
    store = CheckpointStore(folder, "first")
    try:
        for step in count(1):
            for _ in range(2):
                store.save({"weight": torch.full((1000,), float(step))}, step, best_step=1)
    except (SupersededError, FileNotFoundError):
        os._exit(SUPERSEDED)


def train_on_and_on(spec: JobSpec) -> None:
    torch.set_num_threads(1)
    try:
        Training(spec, Ranks(), CPU).run()
    except TrainingError as error:
        os._exit(SUPERSEDED if str(error) == "another command has taken the run over and trains it now" else 1)


def started(target: object, *arguments: object) -> BaseProcess:
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    return process


def content(folder: Path) -> dict[str, int]:
    """Every file of the checkpoints, with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("step-*/*")}


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[BaseProcess]:
    process = started(save_on_and_on, tmp_path / "checkpoints")
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("wait_seconds", [0.0, 0.005])
def test_no_change_comes_after_the_take(orphan: BaseProcess, tmp_path: Path, wait_seconds: float) -> None:
    new = CheckpointStore(tmp_path / "checkpoints", "second")
    until(lambda: len(new.steps()) > 2)
    time.sleep(wait_seconds)
    new.take()
    left = content(new.folder)
    orphan.join()
    assert orphan.exitcode == SUPERSEDED
    assert content(new.folder) == left
    state = new.load_newest()
    assert state is not None
    step = new.steps()[0]
    assert state["weight"][0] == step
    new.save(state, step + 1, best_step=1)
    assert new.steps()[0] == step + 1


def test_a_process_that_slept_through_the_take_wakes_up_to_nothing(orphan: BaseProcess, tmp_path: Path) -> None:
    new = CheckpointStore(tmp_path / "checkpoints", "second")
    until(lambda: len(new.steps()) > 2)
    assert orphan.pid
    os.kill(orphan.pid, signal.SIGSTOP)
    new.take()
    state = new.load_newest()
    assert state is not None
    new.save(state, 10**6, best_step=1)
    left = content(new.folder)
    os.kill(orphan.pid, signal.SIGCONT)
    orphan.join()
    assert (orphan.exitcode, content(new.folder)) == (SUPERSEDED, left)


def test_orphans_and_the_workers_that_follow_make_one_run(make_spec: MakeSpec) -> None:
    first = replace(make_spec(epochs=1000, checkpoint_interval_seconds=1e-9, audit=True), holder="first")
    open_checkpoints(first).take()
    orphan = started(train_on_and_on, first)
    until(lambda: max(open_checkpoints(first).steps(), default=0) > 2)
    second = replace(first, holder="second")
    open_checkpoints(second).take()
    reached = newest(second)["global_step"]
    orphan.join()
    assert orphan.exitcode == SUPERSEDED
    assert newest(second)["global_step"] == reached
    second.stop_file.touch()  # with it there, workers take one step and return
    for _ in range(2):
        assert train(second).stopped
    steps = [step for step, _ in curve(second, "train_loss")]
    assert steps == list(range(1, reached + 3))
    audit = replay(second.audit_folder)
    assert (audit.num_attempts, audit.num_steps, audit.problems) == (3, reached + 2, ())


def test_a_storage_that_was_emptied_is_no_takeover(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", "first")
    store.take()
    (tmp_path / "checkpoints").rename(tmp_path / "lost")
    assert not store.is_superseded()
    with caplog.at_level(logging.WARNING):
        store.save({"weight": torch.zeros(1)}, 1, None)
    assert store.steps() == [1]
    CheckpointStore(tmp_path / "checkpoints", "second").take()
    assert store.is_superseded()
    with pytest.raises(SupersededError, match="another command has taken the run over"):
        store.save({"weight": torch.zeros(1)}, 2, None)
