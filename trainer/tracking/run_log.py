"""What a training logs to its MLflow run: points of curves and files, whole however often the training is resumed.

Points are logged by global step, in batches from a background thread, and no step twice after a restart. A tracking
server that does not answer neither ends nor delays the training: see `trainer.tracking.delivery`. Opening and ending
the run is not done here: see `trainer.tracking.runs`.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NOTE  # no public names: what its page shows
from numpy.typing import NDArray

from configs.train import TrainConfig
from packer.shards.manifest import Manifest
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.tables import balance_table, class_table, confusion_table, read_confusion_table
from trainer.tracking.delivery import Delivery
from trainer.tracking.errors import store_answers

Point = tuple[str, float, int, int]
"""Name, value, time in ms, global step."""


class RunLog:
    """What one process logs to a run; opened again after a restart, it adds the points that the run's curves lack.

    Args:
        tracking_uri: MLflow's store.
        run_id: The run.
        undelivered: Points from the checkpoint that the run is resumed from: what `undelivered` returned then.
        is_superseded: Tells whether another process logs the run's points now; the points of this one are then dropped.
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
        """Logs figures at a global step; a figure that the run already holds for this step stays as it is."""
        now_ms = int(time.time() * 1000)
        self._delivery.add([Metric(name, value, now_ms, step) for name, value in figures.items()])

    def flush(self) -> None:
        """Waits a limited time until everything logged has arrived; what the server refuses is sent again later."""
        self._delivery.flush()

    def undelivered(self) -> list[Point]:
        """Returns the points that have not arrived, in a form that a checkpoint can hold."""
        return [(point.key, point.value, point.timestamp, point.step) for point in self._delivery.undelivered()]

    def close(self, seconds: float = 60.0) -> None:
        """Delivers what is left for at most `seconds`, then logs how much was lost."""
        self._delivery.close(seconds)

    def evaluation(self, split: str, evaluation: Evaluation, class_names: tuple[str, ...]) -> None:
        """Puts a split's confusion matrix and per-class figures among the run's artifacts, as CSV."""
        self.artifact(_confusion_path(split), confusion_table(evaluation, class_names))
        self.artifact(f"evaluation/{split}/per_class.csv", class_table(evaluation, class_names))

    def artifact(self, path: str, content: str | bytes) -> None:
        """Puts a file among the run's artifacts, from the thread that sends; it replaces one of the same path."""
        data = content.encode() if isinstance(content, str) else content
        self._delivery.add_file(path, partial(self._upload, path, data))

    def description(self, config: TrainConfig, manifest: Manifest, digest: str, code_version: str) -> None:
        """Logs what the run is made of: effective config, classes, the data's digest and balance, the code's version.

        Args:
            config: Becomes an artifact, as YAML.
            manifest: Of the pack.
            digest: The sha256 of the manifest's file.
            code_version: Git commit, or a digest of the sources.
        """
        self.artifact("config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        self.artifact("classes.json", json.dumps({"class_names": list(manifest.class_names)}, indent=2))
        self.artifact("data/class_balance.csv", balance_table(manifest))
        self._code_version(code_version)
        counts = {f"num_{split}": summary.num_samples for split, summary in manifest.splits.items()}
        clips = ", ".join(f"{summary.num_samples:,} {split}" for split, summary in manifest.splits.items())
        self.note(
            f"Trains {config.model.backbone} on {Path(config.shards).name}: {len(manifest.class_names)} classes, clips "
            f"{clips}. When its best model is registered, the model's card takes the place of this text."
        )
        dataset = Dataset(
            name=Path(config.shards).name,
            digest=digest[:36],
            source_type="clipstream",
            source=yaml.safe_dump({"shards": config.shards, "manifest_sha256": digest}),
            profile=yaml.safe_dump(counts | {"num_classes": len(manifest.class_names)}),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        self._delivery.add_file("dataset", partial(self._client.log_inputs, self._run_id, inputs))

    def note(self, text: str) -> None:
        """Makes a text, in Markdown, the run's description; it takes the place of the one before."""
        self._delivery.add_file("description", partial(self._client.set_tag, self._run_id, MLFLOW_RUN_NOTE, text))

    def _code_version(self, version: str) -> None:
        tags = [RunTag("code_version", version)]
        if (commit := version.removesuffix("-dirty")) and not commit.startswith("sources-"):
            tags.append(RunTag(MLFLOW_GIT_COMMIT, commit))
        self._delivery.add_file("code_version", partial(self._client.log_batch, self._run_id, tags=tags))

    def _upload(self, path: str, content: bytes) -> None:
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as writing:
            file = Path(writing) / name
            file.write_bytes(content)
            self._client.log_artifact(self._run_id, str(file), folder or None)

    def _send(self, points: list[Metric]) -> None:
        if self._is_superseded():  # the other process repeats these steps: their points would be there twice
            return
        lacking = [point for point in points if point.step not in self._steps_held(point.key)]
        self._client.log_batch(self._run_id, metrics=lacking)

    def _steps_held(self, name: str) -> set[int]:
        # All steps, not only the last: a kill may leave gaps. They are read before this process sends its first point;
        # a point that it sends twice is one point to MLflow.
        if name not in self._held_steps:
            history = self._client.get_metric_history(self._run_id, name)
            self._held_steps[name] = {point.step for point in history}
        return self._held_steps[name]


def read_confusion(tracking_uri: str, run_id: str, split: str) -> NDArray[np.int64]:
    """Returns the `(K, K)` confusion matrix that `RunLog.evaluation` logged for a split.

    Raises:
        UsageError: The store does not answer, or the run holds no such file.
    """
    client = MlflowClient(tracking_uri=tracking_uri)
    with store_answers(tracking_uri), tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, _confusion_path(split), folder)
        return read_confusion_table(Path(path).read_text(encoding="utf-8"))


def _confusion_path(split: str) -> str:
    return f"evaluation/{split}/confusion.csv"
