"""A training on a Ray cluster that stands, as its driver sees it, with the MLflow run's beginning and end.

A stop by Ctrl-C or by `ray job stop` marks the run KILLED at once, before anything else: Ray gives a job three seconds.
The workers are then asked to write one more checkpoint; if there is no time for it, the one before counts.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, cast

import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result

from packer.shards.manifest import Manifest
from trainer.driver.cluster import has_gpus
from trainer.driver.failure import FailureReport, last_line
from trainer.driver.release import register_best
from trainer.driver.run_folder import RunRecord, code_version, save_config
from trainer.tracking.registry import RegistryError
from trainer.tracking.run_log import RunLog
from trainer.tracking.runs import end_run, reopen_run
from trainer.worker.entry import train_worker, worker_settings
from trainer.worker.spec import JobSpec

logger = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 60.0
DESCRIPTION_SECONDS = 10.0
"""How long a start waits for a tracking server that has died since the run was opened."""
EXIT_FAILED = 1
EXIT_STOPPED = 130


class Stopped(BaseException):
    """The user asked to stop. Not an Exception, so that no library on the way takes it for an error of its own."""


@dataclass
class Fitting:
    """Ray Train's `fit` in a thread: the main thread stays free for signals, which Ray would else handle itself."""

    trainer: TorchTrainer
    outcome: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Returns whether the training ended within `seconds`; None waits for it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            # Ray's annotation names its older Result, which has no return_value.
            self.outcome = cast(Result, self.trainer.fit()).return_value or {}
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error


def fit(
    spec: JobSpec,
    manifest: Manifest,
    record: RunRecord | None,
    begin: Callable[[], RunRecord],
    weights: dict[str, torch.Tensor] | None,
) -> int:
    """Trains on the cluster, registers the best model, and returns the command's exit code.

    Args:
        spec: The training, without its MLflow run.
        manifest: What the run's shards hold.
        record: Of the run that is resumed; None for a new one.
        begin: Opens a new run.
        weights: The backbone's first weights, for a new run; None: random ones.

    Raises:
        UsageError: The MLflow store does not answer, or lacks the run.
    """
    _catch_stop_signals()
    try:
        if record:
            reopen_run(record.tracking_uri, record.run_id)
            logger.info("run resumed run=%s mlflow_run=%s", spec.config.run, record.run_id)
        else:
            record = begin()
            _complete(record, replace(spec, run_id=record.run_id), manifest, weights)
        spec = replace(spec, run_id=record.run_id)
        spec.checkpoints.take()
        spec.stop_file.unlink(missing_ok=True)
        return _train_and_register(spec, record, manifest)
    except Stopped:
        if record:
            end_run(record.tracking_uri, record.run_id, "KILLED")
        logger.warning("run stopped before it trained run=%s", spec.config.run)
        return EXIT_STOPPED


def _train_and_register(spec: JobSpec, record: RunRecord, manifest: Manifest) -> int:
    fitting: Fitting | None = None
    try:
        fitting = Fitting(_make_trainer(spec))
        fitting.wait()
        if fitting.error:
            raise fitting.error
        if "error" in fitting.outcome:
            return _fail(spec, fitting.outcome["error"])
        from trainer.driver.report import report  # here, not above: matplotlib would delay the start of the training

        report(spec, manifest, fitting.outcome["evaluations"])
        version = None if record.parent_run_id else register_best(spec, manifest, fitting.outcome)
        end_run(spec.tracking_uri, spec.run_id, "FINISHED")
        record.model_copy(update={"finished_epochs": spec.config.epochs}).save(spec.run_folder)
    except Stopped:
        spec.stop_file.touch()
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # else a server that is down takes minutes
        end_run(spec.tracking_uri, spec.run_id, "KILLED")
        logger.warning(
            "run stopped run=%s; a checkpoint is being written; the same command goes on from it", spec.config.run
        )
        if fitting is not None and not fitting.wait(STOP_GRACE_SECONDS):
            logger.warning("workers did not stop within seconds=%g", STOP_GRACE_SECONDS)
        return EXIT_STOPPED
    except (TrainingFailedError, RegistryError) as error:
        return _fail(spec, last_line(error))
    except BaseException:
        end_run(spec.tracking_uri, spec.run_id, "FAILED")
        raise
    _summarise(spec, fitting.outcome, version)
    return 0


def _fail(spec: JobSpec, reason: str) -> int:
    if not spec.checkpoints.is_superseded():  # else it is the other command's to say how the run ends
        end_run(spec.tracking_uri, spec.run_id, "FAILED")
    logger.error("run failed run=%s reason=%s", spec.config.run, reason)
    return EXIT_FAILED


def _complete(record: RunRecord, spec: JobSpec, manifest: Manifest, weights: dict[str, torch.Tensor] | None) -> None:
    """Puts in place what a new run needs beside its MLflow run; the record comes last."""
    try:
        log = RunLog(spec.tracking_uri, spec.run_id)
        log.description(spec.config, manifest, record.manifest_sha256, code_version())
        save_config(spec.run_folder, spec.config)
        if weights is not None:
            torch.save(weights, spec.weights_file)
        record.save(spec.run_folder)
        log.close(DESCRIPTION_SECONDS)
    except Exception:
        end_run(spec.tracking_uri, spec.run_id, "FAILED")
        raise
    logger.info("run started run=%s mlflow_run=%s tracking=%s", spec.config.run, spec.run_id, spec.tracking_uri)


def _make_trainer(spec: JobSpec) -> TorchTrainer:
    use_gpu = has_gpus()
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray's annotation denies the return value that its Result carries
        train_loop_config=worker_settings(spec),
        # Ray's annotations name its older ScalingConfig, RunConfig and Callback.
        scaling_config=ScalingConfig(
            num_workers=spec.worker_range,  # type: ignore[arg-type]
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=spec.config.resize_interval_seconds,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name="ray",
            storage_path=str(spec.run_folder),
            failure_config=FailureConfig(spec.config.max_failures),
            callbacks=[FailureReport()],  # type: ignore[list-item]
            logging_config=LoggingConfig("ERROR"),  # else Ray Train reports each of its inner steps
        ),
    )


def _catch_stop_signals() -> None:
    """Turns SIGINT and SIGTERM into `Stopped` in the main thread; the second one ends the process at once.

    To be called after `ray.init`, which puts a handler of its own in place.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _summarise(spec: JobSpec, outcome: dict[str, Any], version: str | None) -> None:
    shown = {f"val_{name}": value for name, value in outcome["val"].items()}
    shown |= {f"test_{name}": value for name, value in outcome["test"].items()}
    logger.info(
        "run finished run=%s %s", spec.config.run, " ".join(f"{name}={value:.4f}" for name, value in shown.items())
    )
    if version:
        print(f"run {spec.config.run}: registered {spec.config.registered_model} version {version}; look: mlflow ui")
