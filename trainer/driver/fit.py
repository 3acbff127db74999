"""A training on a Ray cluster that is ready: opens the run, trains, registers the best model, ends the run.

If the user stops it, MLflow shows that at once (see `run_life`); the workers are then given time for one more
checkpoint.
"""

import logging
from dataclasses import replace

import torch

from packer.shards.manifest import Manifest
from trainer.driver.closing import Closing
from trainer.driver.code_version import code_version
from trainer.driver.ending import RunFailedError, Stopped, catch_stop_signals
from trainer.driver.epoch_lines import EpochLines
from trainer.driver.failure import last_line
from trainer.driver.release import Release, register_best
from trainer.driver.run_folder import RunRecord, save_config
from trainer.driver.run_life import live_run
from trainer.driver.worker_group import WorkerGroup
from trainer.tracking.compare import Paired, paired
from trainer.tracking.pages import where_to_look
from trainer.tracking.registry import RegistryError
from trainer.tracking.run_log import RunLog
from trainer.worker.events import Halted
from trainer.worker.outcome import Outcome
from trainer.worker.parts import open_checkpoints
from trainer.worker.spec import EVENTS_FILES, JobSpec

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
    for left in (spec.stop_file, *spec.run_folder.glob(EVENTS_FILES)):  # by an earlier start
        left.unlink(missing_ok=True)
    num_samples = manifest.splits["train"].num_samples
    workers = WorkerGroup(EpochLines(spec.config, len(manifest.class_names), num_samples).show)
    try:
        with live_run(record, spec.config, spec.run_folder, folder_id, checkpoints.is_superseded) as opened:
            spec = replace(spec, run_id=opened.run_id)
            if not record.run_id:
                _put_in_place(spec, opened, manifest, weights)
            outcome = workers.train(spec)
            closing = _release(spec, manifest, outcome, registers=record.parent_run_id is None)
    except Stopped:
        halted = workers.await_halt()
        _tell_where(spec, halted, is_whole=record.parent_run_id is None)
        if halted:
            workers.await_end()
        raise
    finally:
        spec.events_file.unlink(missing_ok=True)
    print("\n".join(closing.lines()), flush=True)


def _tell_where(spec: JobSpec, halted: Halted | None, *, is_whole: bool) -> None:
    """Says from which step a stopped run will go on, and how if it is not a part of a cross-validation."""
    newest = next(iter(open_checkpoints(spec).steps()), 0)
    lost = f"; {halted.global_step - newest} steps after it are lost" if halted and halted.global_step > newest else ""
    where = f"its newest checkpoint is of step {newest}{lost}" if newest else "it has no checkpoint yet"
    run = spec.config.run
    way = f". The same command with --run {run} goes on" if is_whole else ""
    logger.warning("run %s is stopped: %s%s", run, where, way)


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


def _release(spec: JobSpec, manifest: Manifest, outcome: Outcome, *, registers: bool) -> Closing:
    """Logs pictures and tables of the best model, registers it if asked to, and returns what the user reads."""
    from trainer.driver.report import report  # here, not above: matplotlib would delay the start of the training

    report(spec, manifest, outcome.evaluations)
    try:
        release = register_best(spec, manifest, outcome) if registers else None
    except RegistryError as error:
        raise RunFailedError(last_line(error)) from error
    return Closing(
        config=spec.config,
        manifest=manifest,
        outcome=outcome,
        address=where_to_look(spec.tracking_uri, spec.run_id),
        release=release,
        paired=_paired(spec, release),
    )


def _paired(spec: JobSpec, release: Release | None) -> Paired | None:
    """Returns how the former champion's run and this one did on the same clips, if that is known."""
    former = release.promotion.former if release else None
    if former is None or not former.run_id or former.run_id == spec.run_id:
        return None
    return paired(spec.tracking_uri, [former.run_id, spec.run_id])
