"""The drills: each one breaks a training of 84 steps that reads, trains, tracks and registers as a user's does."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import torch
import yaml

from tests.mlflow_server import Server
from tests.nodes import ray_nodes
from tests.test_trainer_jobs import CLUSTER, ray_job
from tests.training import TINY, Ended, Project, ended, until
from trainer.audit import replay
from trainer.checkpoint import CheckpointStore

NUM_EPOCHS = 12
NUM_STEPS = 84
MIDDLE = 38  # in the middle of an epoch of 7 steps; its end alone writes a checkpoint
NEXT_EPOCH = 42
PATIENCE_SECONDS = 900.0
FROZEN = ("--model.batch-norm", "frozen")
"""For runs whose world size changes: batch norm that learns would see other groups of clips then."""
RESIZED_TOLERANCE = 1e-3
"""How far a step's loss may be from that of another world size, which adds the same numbers up in another order."""


@dataclass(frozen=True)
class Row:
    """What a drill showed."""

    what: str
    num_recomputed: int
    recovery_seconds: float | None
    """From the blow to the end of the first step of the workers that went on; None where the same ones did."""
    difference: str
    problems: tuple[str, ...]


class Drills:
    """What drills share: a project, and the run that nothing disturbed."""

    def __init__(self, made: Project) -> None:
        self.project = made
        self._undisturbed: dict[tuple[str, ...], dict[str, Any]] = {}
        values = {"audit": True, "epochs": NUM_EPOCHS, "num_workers": 2, "checkpoint_interval_seconds": 3600.0}
        (made.home / "tiny.yaml").write_text(yaml.safe_dump(TINY | values))

    def undisturbed(self, *options: str) -> dict[str, Any]:
        """Returns what a run with these options comes to if nothing disturbs it."""
        if options not in self._undisturbed:
            run = f"undisturbed-{len(self._undisturbed)}"
            assert self.project.train("--run", run, *options).code == 0
            self._undisturbed[options] = self._result(run)
        return self._undisturbed[options]

    def progress(self, run: str) -> tuple[int, int]:
        """Returns a run's newest attempt and the steps that it has finished, by its audit."""
        paths = sorted((self.project.home / "runs" / run / "audit").glob("attempt-*-rank-0000.jsonl"))
        if not paths:
            return 0, 0
        lines = paths[-1].read_bytes().split(b"\n")[:-1]
        return len(paths), json.loads(lines[-1]).get("step", 0) if lines else 0

    def start(self, run: str, *options: str, **variables: str) -> subprocess.Popen[str]:
        """Starts a training and returns once it is in the middle."""
        process = self.project.start_training("--run", run, *options, **variables)
        self.await_step(run, MIDDLE, process)
        return process

    def await_step(self, run: str, step: int, process: subprocess.Popen[str] | None = None) -> None:
        """Waits until a run has finished a step; fails at once where its process ended before."""

        def reached() -> bool:
            assert process is None or process.poll() is None, f"{run} ended early: {ended(process).log}"
            return self.progress(run)[1] >= step

        until(reached, PATIENCE_SECONDS)

    def await_recovery(self, run: str, attempt: int = 2) -> float:
        """Returns the seconds until workers of a later attempt have finished a step."""
        start = time.monotonic()
        until(lambda: self.progress(run) >= (attempt, 1), PATIENCE_SECONDS)
        return time.monotonic() - start

    def workers(self) -> list[psutil.Process]:
        """Returns the training workers that live."""
        return [process for process in self.project.alive() if "TrainWorker" in process.name()]

    def let_step(self, run: str, worker: psutil.Process, pause_seconds: float = 2.0) -> None:
        """Lets a worker that was suspended take a step or so, then suspends it for a while."""
        before = self.progress(run)
        with suppress(psutil.NoSuchProcess):
            worker.resume()
            until(lambda: self.progress(run) > before or not worker.is_running())
            worker.suspend()
            time.sleep(pause_seconds)

    def kill_driver(self, run: str) -> None:
        process = self.start(run)
        process.kill()
        process.communicate()

    def go_on(self, run: str, *options: str) -> tuple[Ended, float]:
        """Gives the same command again; returns how it ended and the seconds to its first step."""
        attempt, _ = self.progress(run)
        process = self.project.start_training("--run", run, *options)
        seconds = self.await_recovery(run, attempt + 1)
        return ended(process), seconds

    def row(
        self,
        run: str,
        what: str,
        done: Ended,
        seconds: float | None,
        *problems: str,
        options: tuple[str, ...] = (),
        tolerance: float = 0.0,
    ) -> Row:
        """Compares a run with the undisturbed one of the same options.

        Args:
            tolerance: How far the losses of a step may differ; 0 asks for equal losses and weights, to the last bit.
        """
        audit = replay(self.project.home / "runs" / run / "audit")
        got, wanted = self._result(run), self.undisturbed(*options)
        curves = [[value for _, value in result["curve"]] for result in (got, wanted)]
        largest = max(abs(one - other) for one, other in zip(*curves, strict=False))
        same = got["curve"] == wanted["curve"] and all(
            torch.equal(value, wanted["model"][name]) for name, value in got["model"].items()
        )
        found = [*problems, *audit.problems]
        found += [] if done.code == 0 else [f"exit code {done.code}"]
        found += [] if got["status"] == "FINISHED" else [f"MLflow says {got['status']}"]
        found += [] if [step for step, _ in got["curve"]] == list(range(1, NUM_STEPS + 1)) else ["steps of the curve"]
        found += [] if same or largest < tolerance else [f"losses differ by {largest:.2g} from the undisturbed run"]
        return Row(
            what,
            audit.num_recomputed,
            seconds,
            "bitwise equal" if same else f"losses within {largest:.2g}",
            tuple(found),
        )

    def _result(self, run: str) -> dict[str, Any]:
        state = CheckpointStore(self.project.home / "runs" / run / "checkpoints").load_newest()
        assert state
        status = self.project.mlflow_run(run).info.status
        return {"model": state["model"], "curve": self.project.curve(run, "train_loss"), "status": status}


def kill_worker(drills: Drills) -> Row:
    process = drills.start("worker")
    drills.workers()[0].kill()
    seconds = drills.await_recovery("worker")
    return drills.row("worker", "kill -9 of one of two workers in mid-epoch", ended(process), seconds)


def kill_driver(drills: Drills) -> Row:
    drills.kill_driver("driver")
    before = drills.project.mlflow_run("driver").info.status
    assert drills.project.train("--run", "other", "--epochs", "1").code == 0
    after = drills.project.mlflow_run("driver").info.status
    wrong = [] if (before, after) == ("RUNNING", "KILLED") else [f"MLflow said {before}, then {after}"]
    done, seconds = drills.go_on("driver")
    return drills.row("driver", "kill -9 of the driver; the same command again", done, seconds, *wrong)


def take_over(drills: Drills) -> Row:
    """As on a storage that does not share locks; the first command's workers sleep until the second one trains."""
    first = drills.start("takeover")
    sleeping = drills.workers()
    for worker in sleeping:
        worker.suspend()
    (drills.project.home / "runs" / "takeover" / ".lock").unlink()
    second = drills.project.start_training("--run", "takeover")
    seconds = drills.await_recovery("takeover")
    for worker in sleeping:
        worker.resume()
    ousted, done = ended(first), ended(second)
    said = ousted.code == 1 and "another command has taken the run over" in ousted.log
    wrong = [] if said else [f"the first command ended with {ousted.code}"]
    return drills.row("takeover", "the same run started beside its own workers", done, seconds, *wrong)


def post_stop(project: Project, job: str) -> None:
    """Does what `ray job stop` does, which itself takes longer to start than the training to end."""
    environment = dict(re.findall(r'export (\w+)="?([^"\n]+)', (project.home / ".ray" / "env").read_text()))
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    url = f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/{job}/stop"
    request = Request(url, method="POST", headers={"Authorization": f"Bearer {token}"})
    urlopen(request, timeout=30).close()


def stop_job(drills: Drills) -> Row:
    project = drills.project

    def submit(name: str, *options: str) -> Ended:
        command = ["python", "-m", "trainer", "--config", str(project.home / "tiny.yaml"), "--run", "job"]
        return ray_job(project, "submit", "--submission-id", name, *options, "--", *command)

    assert project.run(*CLUSTER, "start").code == 0
    try:
        submit("first", "--no-wait")
        drills.await_step("job", MIDDLE)
        post_stop(project, "first")
        until(lambda: "was stopped" in ray_job(project, "status", "first").log, 60)
        status = project.mlflow_run("job").info.status
        submit("second", "--no-wait")
        seconds = drills.await_recovery("job")
        done = ray_job(project, "logs", "--follow", "second")
        until(lambda: project.mlflow_run("job").info.status == "FINISHED", 30)
    finally:
        project.run(*CLUSTER, "stop")
    wrong = [] if status == "KILLED" else [f"MLflow said {status} after the stop"]
    return drills.row("job", "ray job stop; submitted again", done, seconds, *wrong)


def lose_node(drills: Drills) -> Row:
    """Two workers on two nodes, then one."""
    with ray_nodes(1, 1) as nodes:
        variables = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_")}
        process = drills.start("node", "--min-workers", "1", "--shared-filesystem", *FROZEN, **variables)
        nodes.kill_newest()
        seconds = drills.await_recovery("node")
        done = ended(process)
    what = "one of two nodes lost, gone on with one worker"
    return drills.row("node", what, done, seconds, options=FROZEN, tolerance=RESIZED_TOLERANCE)


def grow(drills: Drills) -> Row:
    """One worker, then another node; Ray looks for new nodes every 20 s, so the worker is held back until it did."""
    with ray_nodes(1) as nodes:
        variables = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_")}
        options = ["--min-workers", "1", "--resize-interval-seconds", "1", "--shared-filesystem", *FROZEN]
        process = drills.start("grow", *options, **variables)
        (worker,) = drills.workers()
        worker.suspend()
        nodes.add(1)
        joined = time.monotonic()
        while drills.progress("grow")[0] == 1 and process.poll() is None:
            drills.let_step("grow", worker)
        drills.await_recovery("grow")
        seconds = time.monotonic() - joined
        done = ended(process)
    what = "a node joins, gone on with two workers"
    return drills.row("grow", what, done, seconds, options=FROZEN, tolerance=RESIZED_TOLERANCE)


def break_checkpoint(drills: Drills) -> Row:
    drills.kill_driver("checkpoint")
    until(lambda: not drills.project.alive(), 120)  # its workers live a little longer, and write checkpoints
    store = CheckpointStore(drills.project.home / "runs" / "checkpoint" / "checkpoints")
    newest, before, *_ = store.steps()
    path = store.folder / f"step-{newest:010d}" / "state.pt"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(16))
    done, seconds = drills.go_on("checkpoint")
    said = "checkpoint ignored" in done.log and f"resumed step={before} " in done.log
    wrong = [] if said else ["the log does not say that the one before was taken"]
    return drills.row("checkpoint", "driver killed, newest checkpoint damaged", done, seconds, *wrong)


def lose_storage(drills: Drills) -> Row:
    """The folder of the checkpoints is a file for a while, at the end of an epoch too: nothing can be written there."""
    process = drills.start("storage")
    folder = drills.project.home / "runs" / "storage" / "checkpoints"
    aside = folder.rename(folder.parent / "aside")
    folder.touch()
    drills.await_step("storage", NEXT_EPOCH, process)
    time.sleep(10)
    folder.unlink()
    aside.rename(folder)
    done = ended(process)
    wrong = [] if "checkpoint not written" in done.log else ["the log does not say it"]
    return drills.row("storage", "storage of the checkpoints fails past the end of an epoch", done, None, *wrong)


def stop_tracking(drills: Drills) -> Row:
    server = Server(drills.project.home)
    server.start()
    try:
        process = drills.start("tracking", MLFLOW_TRACKING_URI=server.uri)
        server.stop()
        time.sleep(5)
        server.start()
        done = ended(process)
    finally:
        server.stop()
    wrong = [] if "tracking refused" in done.log else ["the log does not say it"]
    return drills.row("tracking", "MLflow server killed, started again after 5 s", done, None, *wrong)


DRILLS: dict[str, Callable[[Drills], Row]] = {
    "worker": kill_worker,
    "driver": kill_driver,
    "takeover": take_over,
    "job": stop_job,
    "node": lose_node,
    "grow": grow,
    "checkpoint": break_checkpoint,
    "storage": lose_storage,
    "tracking": stop_tracking,
}
