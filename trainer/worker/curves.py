"""The curves of a training, for MLflow and for the driver: each point is a mean over some steps and all ranks."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.learning.learner import Learner
from trainer.learning.ranks import Ranks
from trainer.stream.batch import Batch
from trainer.worker.events import Stepped, tell
from trainer.worker.machine import Machine

if TYPE_CHECKING:
    from trainer.tracking.run_log import RunLog

TOLD_INTERVAL_SECONDS = 5.0
"""Shortest time between two events that tell the driver of a point."""


class Curves:
    """What one rank adds up between two points of the curves; all ranks call its methods at the same steps.

    Args:
        ranks: The processes of the run.
        log: Where rank 0 logs the points; None on the others.
        machine: Whose load is logged with them.
        num_steps: Steps from one point to the next.
        events: File in which rank 0 tells the driver of points.
    """

    def __init__(self, ranks: Ranks, log: "RunLog | None", machine: Machine, num_steps: int, events: Path) -> None:
        self._ranks = ranks
        self._log = log
        self._machine = machine
        self._num_steps = num_steps
        self._events = events
        self._told_at_seconds = -math.inf
        self.restart()

    def restart(self) -> None:
        """Begins a new point; also after an evaluation, whose time must not count as training."""
        self._began_at_seconds = time.monotonic()
        self._waited_seconds = 0.0
        self._num_summed = 0
        self._sums = [0.0] * 4

    def wait(self, seconds: float) -> None:
        """Adds the time that the rank has waited for data."""
        self._waited_seconds += seconds

    def step(self, global_step: int, epoch: float, batch: Batch, learner: Learner, rate: float, norm: float) -> None:
        """Adds a finished step, and logs a point if one is due.

        Args:
            global_step: Number of the step in the run.
            epoch: Epochs done, as a fraction.
            batch: What the step was taken on.
            learner: Which took it.
            rate: Its learning rate.
            norm: Of the gradient, before clipping.
        """
        num_weighted = int((batch.weights > 0).sum())  # padding and unreadable samples have weight 0
        added = (len(batch.labels), learner.last_loss, num_weighted, learner.last_num_right)
        self._sums = [before + now for before, now in zip(self._sums, added, strict=True)]
        self._num_summed += 1
        if global_step % self._num_steps:
            return
        num_clips, loss_sum, num_weighted_of_all, num_right = self._ranks.sum(self._sums)
        seconds = time.monotonic() - self._began_at_seconds
        figures = {
            "train_loss": loss_sum / self._num_summed,
            "train_top1": num_right / max(1, num_weighted_of_all),
            "learning_rate": rate,
            "grad_norm": norm,
            "clips_per_second": num_clips / seconds,
            "data_wait_share": self._waited_seconds / seconds,
        }
        self.restart()
        if self._log is None:
            return
        self._log.metrics(figures | self._machine.read(), global_step)
        if time.monotonic() - self._told_at_seconds > TOLD_INTERVAL_SECONDS:
            self._told_at_seconds = time.monotonic()
            tell(self._events, Stepped(global_step, epoch, figures["train_loss"], figures["clips_per_second"]))
