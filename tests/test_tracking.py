"""The run's curves in a real MLflow store."""

from collections.abc import Iterable
from pathlib import Path

from mlflow import MlflowClient

from configs.train import TrainConfig
from tests.registry import MLFLOW_WARNINGS
from trainer.tracking import RunLog, open_run

pytestmark = MLFLOW_WARNINGS


def log_losses(uri: str, run_id: str, steps: Iterable[int], loss: float) -> None:
    log = RunLog(uri, run_id)
    for step in steps:
        log.metrics({"train_loss": loss}, step)
    log.close()


def test_a_log_opened_again_adds_what_the_curve_lacks_and_doubles_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = open_run(uri, TrainConfig(shards="shards"), tmp_path / "artifacts")
    log_losses(uri, run_id, [1, 3], 0.5)  # a kill lost step 2, which another thread was to send
    log_losses(uri, run_id, [1, 2, 3, 4], 0.25)
    points = MlflowClient(tracking_uri=uri).get_metric_history(run_id, "train_loss")
    assert sorted((point.step, point.value) for point in points) == [(1, 0.5), (2, 0.25), (3, 0.5), (4, 0.25)]
