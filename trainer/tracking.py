"""One MLflow run for one training, however often it is stopped and resumed.

The driver opens the run and ends it; rank 0 logs its curves by global step, in batches from a background thread, and
never logs a step twice after a restart. A tracking server that does not answer never ends nor delays the training:
see `trainer.delivery`.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from numpy.typing import NDArray

from configs.load import UsageError, flatten
from configs.train import TrainConfig
from packer.manifest import Manifest
from trainer.delivery import Delivery
from trainer.metrics import Evaluation
from trainer.store import create_store, is_absent
from trainer.tables import balance_table, class_table, confusion_table

logger = logging.getLogger(__name__)

MAX_PARAM_CHARACTERS = 500
FOLDER_TAG = "clipstream.folder"
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
Point = tuple[str, float, int, int]
"""Name, value, time in ms, global step."""


class RunLog:
    """What one process logs to a run; open it again after a restart and it adds what the run's curves lack.

    Args:
        tracking_uri: MLflow's store.
        run_id: The run.
        undelivered: What `undelivered` returned when the checkpoint was written that the run goes on from.
        is_superseded: Tells whether another process logs the run's points now; those of this one are then dropped.
    """

    def __init__(
        self,
        tracking_uri: str,
        run_id: str,
        undelivered: Sequence[Point] = (),
        is_superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._run_id = run_id
        self._is_superseded = is_superseded
        self._held_steps: dict[str, set[int]] = {}
        self._delivery = Delivery(self._send)
        self._delivery.add([Metric(*point) for point in undelivered])

    def metrics(self, figures: Mapping[str, float], step: int) -> None:
        """Logs figures at a global step; those that the run already holds for this step are left as they are."""
        now_ms = int(time.time() * 1000)
        self._delivery.add([Metric(name, value, now_ms, step) for name, value in figures.items()])

    def flush(self) -> None:
        """Waits a while until all that was logged has arrived; what the server refuses is tried again later."""
        self._delivery.flush()

    def undelivered(self) -> list[Point]:
        """Returns the points that have not arrived, in a form that a checkpoint can hold."""
        return [(point.key, point.value, point.timestamp, point.step) for point in self._delivery.undelivered()]

    def close(self, seconds: float = 60.0) -> None:
        """Delivers what is left, trying for at most `seconds`, and says how much was lost."""
        self._delivery.close(seconds)

    def evaluation(self, split: str, evaluation: Evaluation, class_names: tuple[str, ...]) -> None:
        """Puts a split's confusion matrix and per-class figures among the run's artifacts, as CSV."""
        self.artifact(f"evaluation/{split}/confusion.csv", confusion_table(evaluation, class_names))
        self.artifact(f"evaluation/{split}/per_class.csv", class_table(evaluation, class_names))

    def artifact(self, path: str, content: str | bytes) -> None:
        """Puts a file among the run's artifacts, over the one that may be there, from the thread that sends."""
        data = content.encode() if isinstance(content, str) else content
        self._delivery.add_file(path, partial(self._upload, path, data))

    def description(self, config: TrainConfig, manifest: Manifest, digest: str, code_version: str) -> None:
        """Logs what the run is made of: effective config, classes, the data's digest and balance, the code's version.

        Args:
            config: Put there as YAML.
            manifest: Of the pack.
            digest: Of the manifest's file.
            code_version: Git commit, or a digest of the sources.
        """
        self.artifact("config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        self.artifact("classes.json", json.dumps({"class_names": list(manifest.class_names)}, indent=2))
        self.artifact("data/class_balance.csv", balance_table(manifest))
        set_version = partial(self._client.set_tag, self._run_id, "code_version", code_version)
        self._delivery.add_file("code_version", set_version)
        counts = {f"num_{split}": summary.num_samples for split, summary in manifest.splits.items()}
        dataset = Dataset(
            name=Path(config.shards).name,
            digest=digest[:36],
            source_type="clipstream",
            source=yaml.safe_dump({"shards": config.shards, "manifest_sha256": digest}),
            profile=yaml.safe_dump(counts | {"num_classes": len(manifest.class_names)}),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        self._delivery.add_file("dataset", partial(self._client.log_inputs, self._run_id, inputs))

    def _upload(self, path: str, content: bytes) -> None:
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as writing:
            file = Path(writing) / name
            file.write_bytes(content)
            self._client.log_artifact(self._run_id, str(file), folder or None)

    def _send(self, points: list[Metric]) -> None:
        if self._is_superseded():  # the other process takes these steps again: each would stand there twice
            return
        lacking = [point for point in points if point.step not in self._steps_held(point.key)]
        self._client.log_batch(self._run_id, metrics=lacking)

    def _steps_held(self, name: str) -> set[int]:
        # Not the last step alone: a kill may leave gaps. As they were before this process sent any: a point that it
        # sends again is one and the same to MLflow.
        if name not in self._held_steps:
            history = self._client.get_metric_history(self._run_id, name)
            self._held_steps[name] = {point.step for point in history}
        return self._held_steps[name]


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
