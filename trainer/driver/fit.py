"""A training on a Ray cluster that is ready: opens the run, trains, registers the best model, ends the run.

If the user stops it, MLflow shows that at once (see `run_life`); the workers are then given time for one more
checkpoint.
"""

import logging
from dataclasses import replace

import torch

from packer.shards.manifest import Manifest
from trainer.driver.code_version import code_version
from trainer.driver.ending import RunFailedError, Stopped, catch_stop_signals
from trainer.driver.failure import last_line
from trainer.driver.release import register_best
from trainer.driver.run_folder import RunRecord, save_config
from trainer.driver.run_life import live_run
from trainer.driver.worker_group import WorkerGroup
from trainer.tracking.registry import RegistryError
from trainer.tracking.run_log import RunLog
from trainer.worker.outcome import Outcome
from trainer.worker.parts import open_checkpoints
from trainer.worker.spec import JobSpec

logger = logging.getLogger(__name__)

DESCRIPTION_SECONDS = 10.0
"""How long a start waits for a tracking server that went down after the run was opened."""


def fit(
    spec: JobSpec,
    manifest: Manifest,
    record: RunRecord,
    folder_id: str,
    weights: dict[str, torch.Tensor] | None,
) -> None:
    """Trains a run and registers its best model.

    Args:
        spec: The run; a new one has no `run_id` yet.
        manifest: What the run's shards hold.
        record: Of the run.
        folder_id: What `locked` gave for the run's folder.
        weights: The backbone's first weights, for a new run; None: random ones.

    Raises:
        UsageError: The MLflow store does not answer, or does not have the run.
        RunFailedError: The training failed, or MLflow did not take the model.
        Stopped: The user stopped it.
    """
    catch_stop_signals()
    checkpoints = open_checkpoints(spec)
    checkpoints.take()
    spec.stop_file.unlink(missing_ok=True)
    workers = WorkerGroup()
    try:
        with live_run(record, spec.config, spec.run_folder, folder_id, checkpoints.is_superseded) as opened:
            spec = replace(spec, run_id=opened.run_id)
            if not record.run_id:
                _put_in_place(spec, opened, manifest, weights)
            outcome = workers.train(spec)
            version = _release(spec, manifest, outcome, registers=record.parent_run_id is None)
    except Stopped:
        workers.await_checkpoint()
        raise
    _summarise(spec, outcome, version)


def _put_in_place(
    spec: JobSpec, record: RunRecord, manifest: Manifest, weights: dict[str, torch.Tensor] | None
) -> None:
    """Writes what a new run needs, its record last: with the record, the run can be resumed."""
    log = RunLog(spec.tracking_uri, spec.run_id)
    log.description(spec.config, manifest, record.manifest_sha256, code_version())
    save_config(spec.run_folder, spec.config)
    if weights is not None:
        torch.save(weights, spec.weights_file)
    record.save(spec.run_folder)
    log.close(DESCRIPTION_SECONDS)


def _release(spec: JobSpec, manifest: Manifest, outcome: Outcome, *, registers: bool) -> str | None:
    """Logs pictures and tables of the best model, and returns the version that it was registered as, if it was."""
    from trainer.driver.report import report  # here, not above: matplotlib would delay the start of the training

    report(spec, manifest, outcome.evaluations)
    try:
        return register_best(spec, manifest, outcome) if registers else None
    except RegistryError as error:
        raise RunFailedError(last_line(error)) from error


def _summarise(spec: JobSpec, outcome: Outcome, version: str | None) -> None:
    shown = {f"val_{name}": value for name, value in outcome.val.items()}
    shown |= {f"test_{name}": value for name, value in outcome.test.items()}
    logger.info(
        "run finished run=%s %s", spec.config.run, " ".join(f"{name}={value:.4f}" for name, value in shown.items())
    )
    if version:
        print(f"run {spec.config.run}: registered {spec.config.registered_model} version {version}; look: mlflow ui")
