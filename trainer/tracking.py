"""One MLflow run for one training, however often it is stopped and resumed.

The driver opens the run and ends it; rank 0 logs its curves by global step, in batches from a background thread, and
never logs a step twice after a restart. A tracking server that does not answer costs points of a curve, never the
training: what could not be delivered is kept, tried again, and counted in the log if it is lost in the end.
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.async_logging.run_operations import RunOperations

from configs.load import UsageError
from configs.train import TrainConfig
from packer.manifest import Manifest
from trainer.metrics import Evaluation

logger = logging.getLogger(__name__)

SEND_INTERVAL_SECONDS = 1.0
MAX_METRICS_PER_REQUEST = 1000
MAX_PARAM_CHARACTERS = 500
EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class RunLog:
    """What one process logs to a run; open it again after a restart and it adds what the run's curves lack."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._run_id = run_id
        self._waiting: list[Metric] = []
        self._sent: list[tuple[RunOperations, list[Metric]]] = []
        self._last_sent_seconds = time.monotonic()
        self._held_steps: dict[str, set[int]] = {}

    def metrics(self, figures: Mapping[str, float], step: int) -> None:
        """Logs figures at a global step; those that the run already holds for this step are left as they are."""
        now_ms = int(time.time() * 1000)
        for name, value in figures.items():
            if step not in self._steps_held(name):
                self._waiting.append(Metric(name, value, now_ms, step))
        if time.monotonic() - self._last_sent_seconds > SEND_INTERVAL_SECONDS:
            self._send()

    def flush(self) -> None:
        """Waits until all that was logged has arrived; what the server refused waits for the next time."""
        self._send()
        failed: list[Metric] = []
        for operation, metrics in self._sent:
            try:
                operation.wait()  # type: ignore[no-untyped-call]
            except MlflowException as error:
                logger.warning("metrics not delivered yet num_points=%d reason=%s", len(metrics), error)
                failed += metrics
        self._sent = []
        self._waiting = failed + self._waiting

    def close(self) -> None:
        """Delivers what is left, and says how many points were lost if the server still refuses."""
        self.flush()
        if self._waiting:
            logger.error("metrics lost num_points=%d", len(self._waiting))

    def evaluation(self, split: str, evaluation: Evaluation, class_names: tuple[str, ...]) -> None:
        """Logs a split's confusion matrix, as a picture and as a table."""
        self._client.log_figure(
            self._run_id, draw_confusion(evaluation, class_names), f"evaluation/{split}_confusion.png"
        )
        lines = [",".join(["true class", *class_names])]
        lines += [",".join([name, *map(str, row)]) for name, row in zip(class_names, evaluation.confusion, strict=True)]
        self._client.log_text(self._run_id, "\n".join(lines) + "\n", f"evaluation/{split}_confusion.csv")

    def _steps_held(self, name: str) -> set[int]:
        # Not the last step alone: MLflow sends in several threads, so a kill may lose a point before the last.
        if name not in self._held_steps:
            history = self._client.get_metric_history(self._run_id, name)
            self._held_steps[name] = {point.step for point in history}
        return self._held_steps[name]

    def _send(self) -> None:
        self._last_sent_seconds = time.monotonic()
        while self._waiting:
            part, self._waiting = self._waiting[:MAX_METRICS_PER_REQUEST], self._waiting[MAX_METRICS_PER_REQUEST:]
            operation = self._client.log_batch(self._run_id, metrics=part, synchronous=False)
            assert operation is not None, "log_batch gives an operation when it is asynchronous"
            self._sent.append((operation, part))


def open_run(tracking_uri: str, config: TrainConfig, artifact_folder: Path | None) -> str:
    """Creates a run and returns its id.

    Args:
        tracking_uri: MLflow's store.
        config: Logged as the run's params.
        artifact_folder: Where a new experiment keeps its files; None leaves it to a tracking server.

    Raises:
        UsageError: The store does not answer.
    """
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            location = artifact_folder.as_uri() if artifact_folder else None
            experiment_id = client.create_experiment(config.experiment, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        run_id: str = client.create_run(experiment_id, run_name=config.run).info.run_id
        params = [
            Param(name, str(value)[:MAX_PARAM_CHARACTERS]) for name, value in flatten(config.model_dump()).items()
        ]
        client.log_batch(run_id, params=params)
    except MlflowException as error:
        raise UsageError(f"the MLflow store at {tracking_uri} does not answer: {error.message}") from error
    return run_id


def describe_run(
    tracking_uri: str, run_id: str, config: TrainConfig, manifest: Manifest, digest: str, code_version: str
) -> None:
    """Logs what a run is made of: the effective config, the classes, the data's digest and the code's version."""
    client = MlflowClient(tracking_uri=tracking_uri)
    client.log_text(run_id, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "config.yaml")
    client.log_dict(run_id, {"class_names": list(manifest.class_names)}, "classes.json")
    client.set_tag(run_id, "code_version", code_version)
    counts = {f"num_{split}": summary.num_samples for split, summary in manifest.splits.items()}
    dataset = Dataset(
        name=Path(config.shards).name,
        digest=digest[:36],
        source_type="clipstream",
        source=yaml.safe_dump({"shards": config.shards, "manifest_sha256": digest}),
        profile=yaml.safe_dump(counts | {"num_classes": len(manifest.class_names)}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def end_run(tracking_uri: str, run_id: str, status: EndStatus) -> None:
    """Marks how a run ended."""
    MlflowClient(tracking_uri=tracking_uri).set_terminated(run_id, status)


def reopen_run(tracking_uri: str, run_id: str) -> None:
    """Marks a run that is resumed as running again.

    Raises:
        UsageError: The store has no such run.
    """
    try:
        MlflowClient(tracking_uri=tracking_uri).update_run(run_id, status="RUNNING")
    except MlflowException as error:
        raise UsageError(f"the MLflow store at {tracking_uri} has no run {run_id}: {error.message}") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields by their dotted names: `{"a": {"b": 1}}` gives `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def draw_confusion(evaluation: Evaluation, class_names: tuple[str, ...]) -> Figure:
    """Returns a picture of a confusion matrix: shares of each true class, with counts where they can be read."""
    counts = evaluation.confusion
    side_inches = min(4 + 0.35 * len(class_names), 24)
    figure = Figure(figsize=(side_inches + 1, side_inches), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(class_names))
    axes.set_xticks(places, class_names, rotation=90)
    axes.set_yticks(places, class_names)
    axes.set(xlabel="predicted", ylabel="true", title=f"{evaluation.figures()['top1']:.1%} of {counts.sum()} clips")
    if len(class_names) <= 20:
        for row in places:
            for column in places:
                if counts[row, column]:
                    color = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    figure.colorbar(image, label="share of the true class")
    return figure


def sources_sha256(folders: list[Path]) -> str:
    """Returns a digest of the Python sources below some folders, which names a version of the code without git."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
