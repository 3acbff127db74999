"""The driver of a training: checks, Ray, and the MLflow run's beginning and end.

A stop by Ctrl-C or by `ray job stop` marks the run KILLED at once, before anything else: Ray gives a job three seconds.
The workers are then asked to write one more checkpoint; if there is no time for it, the one before counts.
"""

import logging
import os
import secrets
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, cast

import ray
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result

from configs.load import resolve
from configs.train import TrainConfig, tracking_uri
from packer.manifest import Manifest, manifest_sha256, read_manifest
from packer.storage import at, locate
from trainer.cluster import check_cluster, has_gpus, start_ray
from trainer.failure import FailureReport, last_line
from trainer.preflight import model_problems, refuse, tracking_problems
from trainer.pretrained import load_backbone_weights
from trainer.registry import RegistryError
from trainer.release import register_best
from trainer.run import (
    RunRecord,
    begin_record,
    code_version,
    end_abandoned,
    find_record,
    locked,
    new_name,
    save_config,
)
from trainer.spec import JobSpec
from trainer.tracking import RunLog, end_run, reopen_run
from trainer.worker import train_worker, worker_settings

logger = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 60.0
DESCRIPTION_SECONDS = 10.0
"""How long a start waits for a tracking server that has died since the run was opened."""
EXIT_FAILED = 1
EXIT_STOPPED = 130


class Stopped(BaseException):
    """The user asked to stop. Not an Exception, so that no library on the way takes it for an error of its own."""


@dataclass
class Fit:
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


def train(config: TrainConfig, parent_run_id: str | None = None) -> int:
    """Trains, registers the best model, and returns the command's exit code.

    Args:
        config: What to train, and on what; checked by `preflight.check`.
        parent_run_id: The MLflow run of the cross-validation that this training is part of; it registers no model.

    Raises:
        UsageError: The configuration does not fit the data, the storage or the cluster.
    """
    config = _absolute(config)
    shards, folder = at(config.shards), Path(config.runs) / str(config.run)
    manifest = read_manifest(shards)
    digest = manifest_sha256(shards)
    refuse(model_problems(config, manifest, folder))
    with locked(folder) as folder_id:
        record = find_record(folder, config, digest)
        uri = record.tracking_uri if record else tracking_uri()
        refuse(tracking_problems(uri))
        weights = None if record else load_backbone_weights(config.model)
        try:
            num_workers = start_ray(config)
            check_cluster(JobSpec(config, shards, folder, "", uri, num_workers), manifest)
            _catch_stop_signals()
            end_abandoned(folder, uri, config.experiment)
            if record:
                reopen_run(record.tracking_uri, record.run_id)
                logger.info("run resumed run=%s mlflow_run=%s", config.run, record.run_id)
            else:
                record = begin_record(config, digest, folder_id, parent_run_id)
                _complete(record, config, folder, manifest, weights)
            spec = JobSpec(
                config, shards, folder, record.run_id, record.tracking_uri, num_workers, holder=secrets.token_hex(4)
            )
            spec.checkpoints.take()
            spec.stop_file.unlink(missing_ok=True)
            return _train_and_register(spec, record, manifest)
        except Stopped:
            if record:
                end_run(record.tracking_uri, record.run_id, "KILLED")
            logger.warning("run stopped before it trained run=%s", config.run)
            return EXIT_STOPPED
        finally:
            ray.shutdown()


def _train_and_register(spec: JobSpec, record: RunRecord, manifest: Manifest) -> int:
    fit: Fit | None = None
    try:
        fit = Fit(_make_trainer(spec))
        fit.wait()
        if fit.error:
            raise fit.error
        if "error" in fit.outcome:
            return _fail(spec, fit.outcome["error"])
        from trainer.report import report  # here, not above: matplotlib would delay the start of the training

        report(spec, manifest, fit.outcome["evaluations"])
        version = None if record.parent_run_id else register_best(spec, manifest, fit.outcome)
        end_run(spec.tracking_uri, spec.run_id, "FINISHED")
        record.model_copy(update={"finished_epochs": spec.config.epochs}).save(spec.run_folder)
    except Stopped:
        spec.stop_file.touch()
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # else a server that is down takes minutes
        end_run(spec.tracking_uri, spec.run_id, "KILLED")
        logger.warning(
            "run stopped run=%s; a checkpoint is being written; the same command goes on from it", spec.config.run
        )
        if fit is not None and not fit.wait(STOP_GRACE_SECONDS):
            logger.warning("workers did not stop within seconds=%g", STOP_GRACE_SECONDS)
        return EXIT_STOPPED
    except (TrainingFailedError, RegistryError) as error:
        return _fail(spec, last_line(error))
    except BaseException:
        end_run(spec.tracking_uri, spec.run_id, "FAILED")
        raise
    _summarise(spec, fit.outcome, version)
    return 0


def _fail(spec: JobSpec, reason: str) -> int:
    if not spec.checkpoints.is_superseded():  # else it is the other command's to say how the run ends
        end_run(spec.tracking_uri, spec.run_id, "FAILED")
    logger.error("run failed run=%s reason=%s", spec.config.run, reason)
    return EXIT_FAILED


def _absolute(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with absolute paths and a name: workers run in a folder of Ray's."""
    return config.model_copy(
        update={
            "shards": str(locate(config.shards)),
            "runs": str(resolve(config.runs)),
            "cache": str(resolve(config.cache)) if config.cache else None,
            "run": config.run or new_name(),
        }
    )


def _complete(
    record: RunRecord, config: TrainConfig, folder: Path, manifest: Manifest, weights: dict[str, torch.Tensor] | None
) -> None:
    """Puts in place what a new run needs beside its MLflow run; the record comes last."""
    uri, run_id = record.tracking_uri, record.run_id
    try:
        log = RunLog(uri, run_id)
        log.description(config, manifest, record.manifest_sha256, code_version())
        save_config(folder, config)
        if weights is not None:
            torch.save(weights, JobSpec(config, at(config.shards), folder, run_id, uri, num_workers=1).weights_file)
        record.save(folder)
        log.close(DESCRIPTION_SECONDS)
    except Exception:
        end_run(uri, run_id, "FAILED")
        raise
    logger.info("run started run=%s mlflow_run=%s tracking=%s", config.run, run_id, uri)


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
