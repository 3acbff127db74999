"""What the drills of a training share: an undisturbed run of 84 steps, and how other runs are compared with it."""

import json
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import yaml

from tests.support.processes import train_workers
from tests.support.training import TINY, Ended, Project, ended
from tests.support.waiting import until
from trainer.worker.audit import replay
from trainer.worker.checkpoint import CheckpointStore

NUM_EPOCHS = 12
NUM_STEPS = 84
MIDDLE = 38  # in the middle of an epoch of 7 steps; its end alone writes a checkpoint
NEXT_EPOCH = 42
PATIENCE_SECONDS = 900.0
FROZEN = ("--model.batch-norm", "frozen")
"""For runs whose world size changes: batch norm in training mode would then see other groups of clips."""
RESIZED_TOLERANCE = 1e-3
"""How far a step's loss may be from that of another world size, which adds the same numbers up in another order."""


@dataclass(frozen=True)
class Row:
    """What a drill showed."""

    what: str
    num_recomputed: int
    recovery_seconds: float | None
    """From the blow to the end of the first step of the new workers; None if the old ones went on."""
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
        """Returns the result of a run with these options that nothing disturbs."""
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
        """Waits until a run has finished a step; fails at once if its process ended before."""

        def reached() -> bool:
            assert process is None or process.poll() is None, f"{run} ended early: {ended(process).log}"
            return self.progress(run)[1] >= step

        until(reached, PATIENCE_SECONDS)

    def await_recovery(self, run: str, attempt: int = 2) -> float:
        """Returns the seconds until workers of a later attempt have finished a step."""
        newest, num_steps = self.progress(run)
        assert newest >= attempt or num_steps < NUM_STEPS, f"{run} was through before it was disturbed"
        start = time.monotonic()
        until(lambda: self.progress(run) >= (attempt, 1), PATIENCE_SECONDS)
        return time.monotonic() - start

    def workers(self) -> list[psutil.Process]:
        """Returns the training workers that live."""
        return train_workers(self.project.alive())

    def let_step(self, run: str, worker: psutil.Process, pause_seconds: float = 2.0) -> None:
        """Lets a suspended worker take about one step, then suspends it for a while."""
        before = self.progress(run)
        with suppress(psutil.NoSuchProcess):
            worker.resume()
            until(lambda: self.progress(run) > before or not worker.is_running())
            worker.suspend()
            time.sleep(pause_seconds)

    def kill_driver(self, run: str) -> None:
        """Kills a training's driver in the middle.

        Its workers look once a second whether they are alone, and would be through by then; so they sleep until that
        look is the first thing they do.
        """
        process = self.start(run)
        workers = self.workers()
        for worker in workers:
            worker.suspend()
        process.kill()
        process.communicate()
        until(lambda: len(self.project.alive()) == len(workers), 60)
        time.sleep(2)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.resume()

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
