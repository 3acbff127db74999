"""The audit shows what a run was trained on, through kills and failing storage, and finds what is wrong."""

import json
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from configs.section import UsageError
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.runs import CONFIG, CPU
from trainer.__main__ import main
from trainer.learning.ranks import Ranks
from trainer.schedule.order import Shuffle
from trainer.schedule.schedule import Schedule
from trainer.stream.loader import PRELOADED
from trainer.tracking.runs import open_run
from trainer.worker.audit import AuditWriter, Replay, next_attempt, replay
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]

SCHEDULE = Schedule([5, 4, 1], global_batch=4, num_epochs=3, shuffle=Shuffle(seed=0, block=5))  # 8 steps


def write_attempt(folder: Path, resumed_step: int, last_step: int, world_size: int) -> None:
    """Writes what an attempt writes that takes the steps after `resumed_step` up to `last_step`."""
    attempt = next_attempt(folder)
    for rank in range(world_size):
        writer = AuditWriter(folder, attempt, rank, world_size, resumed_step=resumed_step, num_samples=10)
        for step in range(resumed_step, last_step):
            rows = SCHEDULE.rows(step, rank, world_size)
            writer.step(step + 1, rows, [row.weight for row in rows])
        writer.sync()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The audit of a run that lost a step of its first attempt and two of its second."""
    write_attempt(tmp_path / "audit", 0, 4, world_size=2)
    write_attempt(tmp_path / "audit", 3, 6, world_size=1)
    write_attempt(tmp_path / "audit", 4, 8, world_size=3)
    return tmp_path / "audit"


def test_later_attempts_supersede_what_was_repeated(folder: Path) -> None:
    assert replay(folder) == Replay(3, 8, 3, 10, 3, 0, ())
    assert str(replay(folder)) == (
        "3 complete epochs of 10 samples; 8 steps in 3 attempts, 3 repeated; 0 samples could not be read\n"
        "every sample was used once per epoch, none twice, none lost"
    )


def test_an_attempt_that_goes_back_takes_back_what_came_after(folder: Path) -> None:
    write_attempt(folder, 2, 3, world_size=1)
    assert replay(folder) == Replay(4, 3, 3 + 6, 10, 1, 0, ())


@pytest.mark.parametrize("num_bytes", [1, 10, 60])
def test_the_last_line_may_be_torn(folder: Path, num_bytes: int) -> None:
    last = folder / "attempt-0003-rank-0001.jsonl"
    os.truncate(last, last.stat().st_size - num_bytes)
    shown = replay(folder)
    assert (shown.num_steps, shown.num_epochs, shown.problems) == (7 if num_bytes < 60 else 6, 2, ())


def test_what_is_wrong_is_named(folder: Path) -> None:
    first = folder / "attempt-0001-rank-0000.jsonl"
    lines = first.read_text().splitlines(keepends=True)
    first.write_text("".join([*lines[:2], *lines[3:]]))
    lost = [row.index for rank in (0, 1) for row in SCHEDULE.rows(1, rank, 2)]
    shown = replay(folder)
    assert shown.problems[0] == "1 steps are missing: 2"
    assert shown.problems[1] == f"epoch 0 used 4 samples never: {', '.join(map(str, sorted(lost)))}"

    second = json.loads(lines[2])
    second["samples"]["0"].append(json.loads(lines[1])["samples"]["0"][0])
    first.write_text("".join([*lines[:2], json.dumps(second) + "\n", *lines[3:]]))
    (problem,) = replay(folder).problems
    assert problem.startswith("epoch 0 used 1 samples more than once: ")


def test_lines_wait_for_a_storage_that_fails(tmp_path: Path) -> None:
    blocked = tmp_path / "audit"
    blocked.touch()
    writer = AuditWriter(blocked, 1, 0, 1, resumed_step=0, num_samples=10)
    rows = SCHEDULE.rows(0, 0, 1)
    writer.step(1, rows, [1.0, 0.0, 1.0, 1.0])
    with pytest.raises(OSError, match="exists"):
        writer.sync()
    blocked.unlink()
    writer.step(2, SCHEDULE.rows(1, 0, 1), [1.0] * 4)
    writer.sync()
    shown = replay(blocked)
    assert (shown.num_steps, shown.num_unreadable, shown.problems) == (2, 1, ())


def test_a_run_without_an_audit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="holds no audit: train the run with --audit"):
        replay(tmp_path)
    assert main(["audit", "absent", "--runs", str(tmp_path)]) == 2
    assert "absent/audit holds no audit" in capsys.readouterr().err


KILLED_STEP = 4


def train_until_killed(rank: int, folder: Path, spec: JobSpec) -> None:
    """Trains as one of two ranks; the second one kills itself in the middle of a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    training = Training(spec, Ranks(rank, 2), CPU)
    steps = iter(range(1, KILLED_STEP + 1))

    def count(*_: object) -> None:
        if next(steps) == KILLED_STEP and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    training.model.head.register_forward_hook(count)
    training.run()


def test_no_sample_is_lost_or_doubled_by_a_kill(
    tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.model_copy(update={"run": "killed", "audit": True})
    run_id = open_run(store_uri(tmp_path), config, tmp_path / "artifacts")
    spec = JobSpec(config, packed, tmp_path / "killed", run_id, store_uri(tmp_path), num_workers=2)
    spec.run_folder.mkdir()
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ranks = [context.Process(target=train_until_killed, args=(rank, tmp_path, spec)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert ranks[1].exitcode == -signal.SIGKILL
    assert ranks[0].exitcode not in (0, None)  # it lost its partner

    Training(spec, Ranks(), CPU).run()
    # The first attempt's only checkpoint was that of step 1.
    assert replay(spec.audit_folder) == Replay(2, 16, KILLED_STEP - 2, 21, 3, 0, ())
    assert main(["audit", "killed", "--runs", str(tmp_path)]) == 0
    assert "every sample was used once per epoch" in capsys.readouterr().out
    shutil.rmtree(spec.audit_folder)
    Training(spec, Ranks(), CPU)
    assert main(["audit", "killed", "--runs", str(tmp_path)]) == 2  # nothing was trained
