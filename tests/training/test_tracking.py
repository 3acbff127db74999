"""A run in a real MLflow store: its curves are whole and its status is true, also after failures and restarts."""

import logging
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from configs.train import TrainConfig
from packer.shards.manifest import read_manifest
from tests.support.mlflow_server import Server
from tests.support.registry import MLFLOW_WARNINGS, Brightness, contract, store_uri
from trainer.driver.run_folder import locked
from trainer.driver.run_life import end_abandoned
from trainer.evaluation.metrics import PREDICTION, Evaluation
from trainer.tracking.registry import Registry, RegistryError, answering
from trainer.tracking.run_log import RunLog
from trainer.tracking.runs import end_run, open_run
from trainer.worker.checkpoint import CheckpointStore

pytestmark = MLFLOW_WARNINGS

CONFIG = TrainConfig(shards="shards", run="one")
EVALUATION = Evaluation(np.zeros(3, PREDICTION), num_classes=2)


def log_losses(uri: str, run_id: str, steps: Iterable[int], loss: float) -> None:
    log = RunLog(uri, run_id)
    for step in steps:
        log.metrics({"train_loss": loss}, step)
    log.close()


def losses(uri: str, run_id: str) -> list[tuple[int, float]]:
    points = MlflowClient(tracking_uri=uri).get_metric_history(run_id, "train_loss")
    return sorted((point.step, point.value) for point in points)


def test_a_log_opened_again_adds_what_the_curve_lacks_and_doubles_nothing(tmp_path: Path) -> None:
    uri = store_uri(tmp_path)
    run_id = open_run(uri, CONFIG, tmp_path / "artifacts")
    log_losses(uri, run_id, [1, 3], 0.5)  # as if a kill had lost step 2
    log_losses(uri, run_id, [1, 2, 3, 4], 0.25)
    assert losses(uri, run_id) == [(1, 0.5), (2, 0.25), (3, 0.5), (4, 0.25)]


def test_points_that_wait_while_the_run_is_taken_over_do_not_come_later(tmp_path: Path) -> None:
    uri = store_uri(tmp_path)
    run_id = open_run(uri, CONFIG, tmp_path / "artifacts")
    first, second = (CheckpointStore(tmp_path / "checkpoints", name) for name in ("first", "second"))
    first.take()
    ousted = RunLog(uri, run_id, is_superseded=first.is_superseded)
    ousted.metrics({"train_loss": 0.5}, 1)
    ousted.flush()
    second.take()
    ousted.metrics({"train_loss": 0.4}, 2)
    log_losses(uri, run_id, [2, 3], 0.25)
    ousted.close()
    assert losses(uri, run_id) == [(1, 0.5), (2, 0.25), (3, 0.25)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # as a training worker sets it
    made = Server(tmp_path)
    yield made
    made.stop()


@pytest.mark.integration
def test_a_server_that_is_down_for_a_while_costs_no_point_and_no_file(
    server: Server, tmp_path: Path, packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_uri(tmp_path)
    run_id = open_run(store, CONFIG, tmp_path / "artifacts")
    log = RunLog(server.uri, run_id)  # nothing answers there yet
    log.metrics({"train_loss": 0.1, "learning_rate": 1.0}, 1)
    log.evaluation("val", EVALUATION, ("a", "b"))
    log.flush()
    assert len(log.undelivered()) == 2
    assert caplog.text.count("tracking refused num_points=2") == 1

    with caplog.at_level(logging.INFO):
        log.close(seconds=0)
    assert "tracking lost num_points=2 files=evaluation/val/confusion.csv,evaluation/val/per_class.csv" in caplog.text

    # What a run does that goes on from a checkpoint: its own points first, in the same curve.
    log = RunLog(server.uri, run_id, log.undelivered())
    log.metrics({"train_loss": 0.2, "learning_rate": 1.0}, 2)
    log.evaluation("val", EVALUATION, ("a", "b"))
    log.flush()
    server.start()
    with caplog.at_level(logging.INFO):
        log.close()
    assert "tracking answers again" in caplog.text
    assert log.undelivered() == []
    assert losses(store, run_id) == [(1, 0.1), (2, 0.2)]
    folder = tmp_path / "artifacts" / run_id / "artifacts" / "evaluation" / "val"
    assert sorted(path.name for path in folder.iterdir()) == ["confusion.csv", "per_class.csv"]

    registry = Registry(server.uri, "clipstream")
    with answering(server.uri):
        assert registry.register(registry.export(Brightness().eval(), run_id, contract()), run_id, contract()) == "1"

    server.stop()
    log = RunLog(server.uri, run_id)
    log.description(CONFIG, read_manifest(packed), "0" * 64, "commit")
    log.close(seconds=0.1)
    assert (
        "tracking lost num_points=0 files=code_version,description,dataset\n" in caplog.text
    )  # files go to a folder here
    end_run(server.uri, run_id, "FINISHED")
    assert f"run not marked status=FINISHED mlflow_run={run_id}" in caplog.text
    with (
        pytest.raises(RegistryError, match=r"did not take the model .*the same command goes on"),
        answering(server.uri),
    ):
        registry.champion()


OPEN_AND_DIE = """
import os, signal, sys
from pathlib import Path
from configs.train import TrainConfig
from trainer.driver.run_folder import locked, new_record
from trainer.driver.run_life import live_run

config, folder = TrainConfig(run="killed"), Path(sys.argv[1]) / "killed"
with locked(folder) as folder_id, live_run(new_record(config, ""), config, folder, folder_id):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_that_nobody_trains_are_marked_as_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    uri, runs = store_uri(tmp_path), tmp_path / "runs"

    def begun(name: str, folder: Path) -> str:
        with locked(folder) as folder_id:
            config = CONFIG.model_copy(update={"run": name})
            return open_run(uri, config, tmp_path / "artifacts", folder_id=folder_id)

    names = ("mine", "abandoned", "held", "finished")
    ids = {name: begun(name, runs / name) for name in names}
    ids["another's of the same name"] = begun("abandoned", tmp_path / "elsewhere" / "abandoned")
    ids["without a folder"] = begun("absent", tmp_path / "elsewhere" / "absent")
    ids["mine, given up before"] = begun("mine", runs / "mine")
    end_run(uri, ids["finished"], "FINISHED")
    died = subprocess.run([sys.executable, "-W", "ignore", "-c", OPEN_AND_DIE, str(runs)], check=False)
    assert died.returncode == -signal.SIGKILL  # before there was a record
    with locked(runs / "held"), locked(runs / "mine"):
        end_abandoned(runs / "mine", uri, CONFIG.experiment)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(CONFIG.experiment)
    killed = client.search_runs([experiment.experiment_id], "attributes.run_name = 'killed'")
    assert [run.info.status for run in killed] == ["KILLED"]
    assert {name: client.get_run(run_id).info.status for name, run_id in ids.items()} == {
        "mine": "KILLED",
        "mine, given up before": "KILLED",
        "abandoned": "KILLED",
        "held": "RUNNING",
        "finished": "FINISHED",
        "another's of the same name": "RUNNING",
        "without a folder": "RUNNING",
    }
    assert not (runs / "absent").exists()
