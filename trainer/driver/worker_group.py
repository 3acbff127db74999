"""The workers of a training, as Ray Train runs them for the driver."""

import logging
import threading
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
from trainer.worker.outcome import Failure, Outcome
from trainer.worker.spec import JobSpec

logger = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 60.0


class WorkerGroup:
    """Ray Train's `fit` in a thread of its own: the main thread must handle signals, which Ray would do itself."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: Outcome | Failure | None = None
        self._error: BaseException | None = None

    def train(self, spec: JobSpec) -> Outcome:
        """Trains a run to its last epoch.

        Raises:
            RunFailedError: The training failed, or the workers failed too often.
            Stopped: The user asked to stop; the workers are asked for a checkpoint, see `await_checkpoint`.
        """
        self._thread = threading.Thread(target=self._run, args=[_make_trainer(spec)], name="fit", daemon=True)
        self._thread.start()
        try:
            self._thread.join()
        except Stopped:
            with suppress(OSError):  # without the file, the checkpoint before counts
                spec.stop_file.touch()
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

    def await_checkpoint(self) -> None:
        """Waits a while for workers that were asked to stop; without their last checkpoint, the one before counts."""
        if self._thread is None or not self._thread.is_alive():
            return
        logger.warning("workers write a checkpoint and stop at_most_seconds=%g", STOP_GRACE_SECONDS)
        self._thread.join(STOP_GRACE_SECONDS)
        if self._thread.is_alive():
            logger.warning("workers did not stop within seconds=%g", STOP_GRACE_SECONDS)

    def _run(self, trainer: TorchTrainer) -> None:
        try:
            # Ray's annotation names its older Result, which has no return_value.
            self._result = cast(Result, trainer.fit()).return_value
        except BaseException as error:  # the main thread raises it
            self._error = error


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
