"""A run's life in a real MLflow store: however its block ends, the store shows it; nobody ends the run of another."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient

from configs.section import UsageError
from configs.train import TrainConfig
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from trainer.driver.ending import RunFailedError, Stopped
from trainer.driver.run_folder import RunRecord, locked, new_record, read_record
from trainer.driver.run_life import live_run
from trainer.worker.checkpoint import CheckpointStore

pytestmark = MLFLOW_WARNINGS

CONFIG = TrainConfig(run="one", epochs=3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run, in a home of its own."""
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    return tmp_path / "runs" / "one"


def live(folder: Path, record: RunRecord, error: BaseException | None = None, others: str = "") -> RunRecord:
    """Lives a run whose block raises `error`; `others` takes its checkpoints over meanwhile."""
    checkpoints = CheckpointStore(folder / "checkpoints", "ours")
    with locked(folder) as folder_id:
        checkpoints.take()
        with live_run(record, CONFIG, folder, folder_id, checkpoints.is_superseded) as opened:
            opened.save(folder)
            assert status(folder) == "RUNNING"
            if others:
                CheckpointStore(folder / "checkpoints", others).take()
            if error:
                raise error
    return opened


def status(folder: Path) -> str:
    record = read_record(folder)
    assert record is not None
    return str(MlflowClient(record.tracking_uri).get_run(record.run_id).info.status)


def test_a_block_that_ends_makes_the_run_finished(folder: Path) -> None:
    opened = live(folder, new_record(CONFIG, "a" * 64))
    assert status(folder) == "FINISHED"
    assert read_record(folder) == opened.model_copy(update={"finished_epochs": 3})


@pytest.mark.parametrize(
    ("error", "wanted", "told"),
    [
        (Stopped(), "KILLED", ""),
        (KeyboardInterrupt(), "KILLED", ""),
        (
            RunFailedError("no model"),
            "FAILED",
            "run failed run=one reason=no model",
        ),
        (UsageError("no room"), "FAILED", ""),
        (OSError("no disk"), "FAILED", ""),
        (SystemExit(1), "FAILED", ""),
    ],
)
def test_an_exception_marks_the_run_and_goes_on(
    folder: Path, error: BaseException, wanted: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)):
        live(folder, new_record(CONFIG, "a" * 64), error)
    record = read_record(folder)
    assert record is not None
    assert (status(folder), record.finished_epochs) == (wanted, 0)
    assert told in caplog.text
    assert live(folder, record).run_id == record.run_id  # resumed
    assert status(folder) == "FINISHED"


@pytest.mark.parametrize("error", [None, Stopped(), RunFailedError("another command has taken the run over")])
def test_a_superseded_command_leaves_the_run_to_the_other(folder: Path, error: BaseException | None) -> None:
    with pytest.raises(type(error)) if error else nullcontext():
        live(folder, new_record(CONFIG, "a" * 64), error, others="theirs")
    record = read_record(folder)
    assert record is not None
    assert (status(folder), record.finished_epochs) == ("RUNNING", 0)


def test_a_run_that_the_store_lacks_is_refused(folder: Path) -> None:
    live(folder, new_record(CONFIG, "a" * 64))
    unknown = new_record(CONFIG, "a" * 64).model_copy(update={"run_id": "f" * 32})
    with pytest.raises(UsageError, match=f"has no run {'f' * 32}"):
        live(folder, unknown)
    assert new_record(CONFIG, "").tracking_uri == store_uri(folder.parents[1])
