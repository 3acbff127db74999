"""Opens, reopens, ends and finds MLflow runs: what the driver does at both ends of a training.

What a run holds, its points and files, is the business of `trainer.tracking.run_log`.
"""

import getpass
import logging
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (  # no public names: what its page shows of a run, and nests runs by
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from configs.section import UsageError, flatten
from configs.train import CvConfig, TrainConfig
from trainer.tracking.errors import is_not_found, store_answers
from trainer.tracking.pages import experiment_tags, mark_experiment
from trainer.tracking.store import create_store, is_absent

logger = logging.getLogger(__name__)

MAX_PARAM_CHARACTERS = 500
"""Longer params are cut: older MLflow servers refuse them."""
FOLDER_TAG = "clipstream.folder"
"""Tag of a run: the id of its folder."""
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


def open_run(
    tracking_uri: str,
    config: TrainConfig,
    artifact_folder: Path | None,
    parent_run_id: str | None = None,
    folder_id: str = "",
) -> str:
    """Creates a run and returns its id.

    Args:
        tracking_uri: MLflow's store.
        config: Logged as the run's params.
        artifact_folder: Where a new experiment keeps its files; None: a tracking server decides.
        parent_run_id: The run below which MLflow shows this one.
        folder_id: Of the run's folder; the run has it as a tag from its first moment on.

    Raises:
        UsageError: The store does not answer, or cannot be created.
    """
    create_store(tracking_uri)
    client = MlflowClient(tracking_uri=tracking_uri)
    tags = {
        FOLDER_TAG: folder_id,
        MLFLOW_USER: _user(),
        MLFLOW_SOURCE_NAME: "python -m trainer cv" if isinstance(config, CvConfig) else "python -m trainer",
        MLFLOW_SOURCE_TYPE: "LOCAL",
        **({MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}),
    }
    params = [Param(name, str(value)[:MAX_PARAM_CHARACTERS]) for name, value in flatten(config.model_dump()).items()]
    with store_answers(tracking_uri):
        experiment_id = _experiment_id(client, config.experiment, artifact_folder)
        run_id: str = client.create_run(experiment_id, run_name=config.run, tags=tags).info.run_id
        client.log_batch(run_id, params=params)
    return run_id


def reopen_run(tracking_uri: str, run_id: str) -> None:
    """Marks a run that is resumed as running again.

    Raises:
        UsageError: The store has no such run, or does not answer.
    """
    with store_answers(tracking_uri):
        try:
            MlflowClient(tracking_uri=tracking_uri).update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if not is_not_found(error):
                raise
            raise UsageError(
                f"the MLflow store at {tracking_uri} has no run {run_id} ({error.message}): restore it, or give --run "
                "another name to start anew"
            ) from error


def end_run(tracking_uri: str, run_id: str, status: EndStatus) -> None:
    """Marks how a run ended; if the store does not answer, that is logged, and the next training corrects the mark."""
    try:
        MlflowClient(tracking_uri=tracking_uri).set_terminated(run_id, status)
    except MlflowException as error:
        logger.warning("run not marked status=%s mlflow_run=%s reason=%s", status, run_id, error.message)


def running_runs(tracking_uri: str, experiment: str) -> list[tuple[str, str, str]]:
    """Returns (name, run id, folder id) of each run of an experiment that is marked as running."""
    if is_absent(tracking_uri):
        return []
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'") if found else []
    except MlflowException as error:
        logger.warning("running runs not listed reason=%s", error.message)
        return []
    return [(run.info.run_name, run.info.run_id, run.data.tags.get(FOLDER_TAG, "")) for run in runs]


def _experiment_id(client: MlflowClient, name: str, artifact_folder: Path | None) -> str:
    """Returns the id of an experiment, which is created if it does not exist."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        mark_experiment(client, experiment)
        return str(experiment.experiment_id)
    location = artifact_folder.as_uri() if artifact_folder else None
    return str(client.create_experiment(name, artifact_location=location, tags=experiment_tags()))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # as in a container whose user has no name
        return "unknown"
