"""The workers of a training, as Ray Train runs them for the driver."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result

from trainer.driver.cluster import has_gpus, worker_range
from trainer.driver.ending import RunFailedError, Stopped
from trainer.driver.failure import FailureReport, last_line
from trainer.worker.entry import train_worker, worker_settings
from trainer.worker.events import Began, EpochsDone, Event, EventReader, Halted
from trainer.worker.outcome import Failure, Outcome
from trainer.worker.spec import JobSpec

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
STOP_GRACE_SECONDS = 60.0
"""How long workers that were asked to stop may need for their step and its checkpoint."""
LAST_POINTS_SECONDS = 15.0
"""How long they may then need to hand their last points to MLflow."""


class WorkerGroup:
    """Ray Train's `fit` in a thread of its own: the main thread must handle signals, which Ray would do itself.

    Args:
        show: Given each event that the workers tell, while they train.
    """

    def __init__(self, show: Callable[[Event], None]) -> None:
        self._show = show
        self._spec: JobSpec | None = None
        self._ended = False
        self._result: Outcome | Failure | None = None
        self._error: BaseException | None = None

    def train(self, spec: JobSpec) -> Outcome:
        """Trains a run to its last epoch.

        Raises:
            RunFailedError: The training failed, or the workers failed too often.
            Stopped: The user asked to stop; the workers are asked for a checkpoint, see `await_halt`.
        """
        self._spec = spec
        spec.events_file.touch()
        events = EventReader(spec.events_file)
        threading.Thread(target=self._run, args=[_make_trainer(spec)], name="fit", daemon=True).start()
        try:
            # No `Thread.join`: if a signal's handler raises in it, CPython before 3.13 takes a thread that still runs
            # for one that has ended.
            while not self._ended:
                time.sleep(POLL_SECONDS)
                self._show_all(events)
            self._show_all(events)
        except Stopped:
            with suppress(OSError):  # without the file, the checkpoint before counts
                spec.stop_file.touch()
            if self._has_unsaved_steps():
                logger.warning("stopping: the step under way is finished and stored; Ctrl-C again stops without that")
            raise
        if isinstance(self._error, TrainingFailedError):
            raise RunFailedError(last_line(self._error)) from self._error
        if self._error:
            raise self._error
        if isinstance(self._result, Failure):
            raise RunFailedError(self._result.reason)
        assert self._result, "rank 0 returns what it did"
        if self._result.stopped:
            raise Stopped  # by someone who created the stop file
        return self._result

    def await_halt(self) -> Halted | None:
        """Waits until workers that were asked to stop have written their checkpoint.

        Returns:
            Where they halted; None if there was nothing to store, or if they did not halt in time.
        """
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        while self._has_unsaved_steps() and not self._ended and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return next((event for event in reversed(self._events()) if isinstance(event, Halted)), None)

    def await_end(self) -> None:
        """Waits until workers that have halted have handed their last points to MLflow, for a limited time."""
        deadline = time.monotonic() + LAST_POINTS_SECONDS
        while not self._ended and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _has_unsaved_steps(self) -> bool:
        """Returns whether the workers have begun to train, and neither halted nor stored the last epoch."""
        kinds = [type(event) for event in self._events() if isinstance(event, Began | Halted | EpochsDone)]
        return kinds[-1:] == [Began]

    def _events(self) -> list[Event]:
        return EventReader(self._spec.events_file).read() if self._spec else []

    def _show_all(self, events: EventReader) -> None:
        for event in events.read():
            self._show(event)

    def _run(self, trainer: TorchTrainer) -> None:
        try:
            # Ray's annotation names its older Result, which has no return_value.
            self._result = cast(Result, trainer.fit()).return_value
        except BaseException as error:  # the main thread raises it
            self._error = error
        self._ended = True


def _make_trainer(spec: JobSpec) -> TorchTrainer:
    config = spec.config
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray's annotation denies the return value that its Result carries
        train_loop_config=worker_settings(spec),
        # Ray's annotations name its older ScalingConfig, RunConfig and Callback.
        scaling_config=ScalingConfig(
            num_workers=worker_range(config.min_workers, spec.num_workers),  # type: ignore[arg-type]
            use_gpu=has_gpus(),
            elastic_resize_monitor_interval_s=config.resize_interval_seconds,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name="ray",
            storage_path=str(spec.run_folder),
            failure_config=FailureConfig(config.max_failures),
            callbacks=[FailureReport()],  # type: ignore[list-item]
            logging_config=LoggingConfig("ERROR"),  # otherwise Ray Train reports each of its inner steps
        ),
    )
