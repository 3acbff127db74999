"""The life of a run, from opening its MLflow run to marking how it ended. No other module ends runs."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from configs.home import resolve
from configs.section import UsageError
from configs.train import TrainConfig
from trainer.driver.ending import RunFailedError, Stopped
from trainer.driver.run_folder import LOCK_FILE, RunRecord, locked
from trainer.tracking.runs import EndStatus, end_run, open_run, reopen_run, running_runs
from trainer.tracking.store import without_password

logger = logging.getLogger(__name__)


@contextmanager
def live_run(
    record: RunRecord,
    config: TrainConfig,
    folder: Path,
    folder_id: str,
    is_superseded: Callable[[], bool] = lambda: False,
) -> Iterator[RunRecord]:
    """Opens a run, or reopens it, for the block that trains it, and marks how it ended.

    A block that ends normally makes the run FINISHED, and the record then says how many epochs it has. If the user
    stops it, the run is marked KILLED before anything else is done, because Ray gives a job three seconds. After any
    other exception it is FAILED. If another command has taken the run over, this one writes neither the mark nor the
    record: both are up to the other command.

    Args:
        record: Of the run; a new run's record has no `run_id` yet.
        config: What is trained.
        folder: The run's folder.
        folder_id: What `locked` gave for it.
        is_superseded: Returns whether another command has taken the run over.

    Yields:
        The record with its `run_id`. For a new run, the block has to save it.

    Raises:
        UsageError: The MLflow store does not answer, or does not have the run.
    """
    opened: RunRecord | None = None

    def end(status: EndStatus) -> bool:
        """Marks the run; returns False if it was never opened, or if another command has taken it over."""
        if opened is None or is_superseded():
            return False
        end_run(opened.tracking_uri, opened.run_id, status)
        return True

    try:
        opened = _open(record, config, folder_id)
        logger.info(
            "run %s run=%s mlflow_run=%s tracking=%s",
            *(
                "resumed" if record.run_id else "started",
                config.run,
                opened.run_id,
                without_password(record.tracking_uri),
            ),
        )
        yield opened
        if end("FINISHED"):
            opened.model_copy(update={"finished_epochs": config.epochs}).save(folder)
    except (Stopped, KeyboardInterrupt):
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # otherwise a server that is down takes minutes
        end("KILLED")
        raise
    except RunFailedError as error:
        end("FAILED")
        logger.error("run failed run=%s reason=%s", config.run, error)
        raise
    except BaseException:
        end("FAILED")
        raise


def _open(record: RunRecord, config: TrainConfig, folder_id: str) -> RunRecord:
    uri = record.tracking_uri
    if record.run_id:
        reopen_run(uri, record.run_id)
        return record
    artifacts = resolve("mlruns") if uri.startswith("sqlite:") else None
    run_id = open_run(uri, config, artifacts, record.parent_run_id, folder_id)
    return record.model_copy(update={"run_id": run_id})


def end_abandoned(held: Path, tracking_uri: str, experiment: str) -> None:
    """Marks as KILLED the runs beside a run's folder that MLflow shows as running but that no process trains.

    Their drivers were killed by SIGKILL, or lost their machine, and could not do it themselves.

    Args:
        held: Folder of the run that this process holds and does not train yet; this run is marked too.
        tracking_uri: MLflow's store.
        experiment: Where the runs are.
    """
    for name, run_id, folder_id in running_runs(tracking_uri, experiment):
        folder = held.parent / name
        try:
            # The id shows that the run belongs to this very folder, not to one of the same path on another machine.
            if folder_id and (folder / LOCK_FILE).read_text() == folder_id:
                with nullcontext() if folder == held else locked(folder):
                    end_run(tracking_uri, run_id, "KILLED")
                logger.warning(
                    "run marked as killed run=%s mlflow_run=%s: its process ended without marking it", name, run_id
                )
        except (OSError, UsageError):
            continue  # the run has another folder, or a process trains it
