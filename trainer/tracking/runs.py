"""Opens, reopens, ends and finds MLflow runs."""

from pathlib import Path
from typing import Literal

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from numpy.typing import NDArray

from configs.section import UsageError, flatten
from configs.train import TrainConfig
from trainer.tracking.run_log import logger
from trainer.tracking.store import create_store, is_absent

MAX_PARAM_CHARACTERS = 500
FOLDER_TAG = "clipstream.folder"
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
        artifact_folder: Where a new experiment keeps its files; None leaves it to a tracking server.
        parent_run_id: The run below which MLflow shows this one.
        folder_id: Of the run's folder; a tag, and there from the first moment on.

    Raises:
        UsageError: The store does not answer, or cannot be created.
    """
    create_store(tracking_uri)
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            location = artifact_folder.as_uri() if artifact_folder else None
            experiment_id = client.create_experiment(config.experiment, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        tags = {FOLDER_TAG: folder_id} | ({MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {})
        run_id: str = client.create_run(experiment_id, run_name=config.run, tags=tags).info.run_id
        params = [
            Param(name, str(value)[:MAX_PARAM_CHARACTERS]) for name, value in flatten(config.model_dump()).items()
        ]
        client.log_batch(run_id, params=params)
    except MlflowException as error:
        raise UsageError(f"the MLflow store at {tracking_uri} does not answer: {error.message}") from error
    return run_id


def read_confusion(tracking_uri: str, run_id: str, split: str) -> NDArray[np.int64]:
    """Returns the `(K, K)` confusion matrix that `RunLog.evaluation` logged for a split."""
    path = MlflowClient(tracking_uri=tracking_uri).download_artifacts(run_id, f"evaluation/{split}/confusion.csv")
    rows = Path(path).read_text(encoding="utf-8").splitlines()[1:]
    # From the right: a class may have a comma in its name.
    return np.array([row.rsplit(",", len(rows))[1:] for row in rows], dtype=np.int64)


def end_run(tracking_uri: str, run_id: str, status: EndStatus) -> None:
    """Marks how a run ended; a server that does not answer is said, and the next training mends it."""
    try:
        MlflowClient(tracking_uri=tracking_uri).set_terminated(run_id, status)
    except MlflowException as error:
        logger.warning("run not marked status=%s mlflow_run=%s reason=%s", status, run_id, error.message)


def running_runs(tracking_uri: str, experiment: str) -> list[tuple[str, str, str]]:
    """Returns name, id and folder's id of each of an experiment's runs that is marked as running."""
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


def reopen_run(tracking_uri: str, run_id: str) -> None:
    """Marks a run that is resumed as running again.

    Raises:
        UsageError: The store has no such run.
    """
    try:
        MlflowClient(tracking_uri=tracking_uri).update_run(run_id, status="RUNNING")
    except MlflowException as error:
        raise UsageError(f"the MLflow store at {tracking_uri} has no run {run_id}: {error.message}") from error
