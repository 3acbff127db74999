"""`python -m trainer cv` as a user meets it: stopped, resumed, its figures in one MLflow run with a child per pack."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from packer.__main__ import main as pack
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.training import TINY, Ended, Project, ended, project
from tests.support.waiting import until
from trainer.__main__ import main
from trainer.evaluation.metrics import FIGURES, intervals

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800), *MLFLOW_WARNINGS]

FOLDS = "shards/0,shards/1"


@pytest.fixture(scope="module")
def packs(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of the videos of `packed`, called 0 and 1."""
    folder = tmp_path_factory.mktemp("folds")
    options = ["--workers=1", "--clip.num-frames=4", "--clip.short-side-px=32", "--split.num-folds=2"]
    for fold in range(2):
        assert pack([str(packed.parent / "data"), str(folder / str(fold)), f"--split.fold={fold}", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, packs: Path) -> Iterator[Project]:
    with project(tmp_path_factory.mktemp("cv"), packs) as made:
        yield made


@pytest.fixture(scope="module")
def done(folds: Project) -> Ended:
    """A cross-validation that was stopped in its second training, and started again."""
    command = ["-m", "trainer", "cv", "--config", "tiny.yaml", "--shards", FOLDS, "--run", "both", "--epochs", "2"]
    process = folds.start(sys.executable, *command)
    until(lambda: process.poll() is not None or (folds.home / "runs" / "both-2" / "run.json").exists(), 600)
    assert process.poll() is None, ended(process).log
    os.killpg(process.pid, signal.SIGINT)
    stopped = ended(process)
    assert stopped.code == 130
    assert "cross-validation stopped run=both" in stopped.log
    assert [folds.mlflow_run(name).info.status for name in ("both", "both-1", "both-2")] == [
        "KILLED",
        "FINISHED",
        "KILLED",
    ]
    again = folds.run(sys.executable, *command)
    assert again.code == 0
    return again


def test_what_was_stopped_goes_on(folds: Project, done: Ended) -> None:
    assert "training done before run=both-1" in done.log
    assert "run resumed run=both-2" in done.log
    parent = folds.mlflow_run("both")
    for name in ("both", "both-1", "both-2"):
        assert folds.mlflow_run(name).info.status == "FINISHED"
    for name in ("both-1", "both-2"):
        assert folds.mlflow_run(name).data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_figures_of_all_splits_are_printed_and_logged(folds: Project, done: Ended) -> None:
    logged = folds.mlflow_run("both").data.metrics
    for name in FIGURES:
        values = []
        for number in (1, 2):
            run = folds.mlflow_run(f"both-{number}")
            path = folds.store.download_artifacts(run.info.run_id, "evaluation/test/confusion.csv")
            confusion = np.loadtxt(path, int, delimiter=",", skiprows=1, usecols=(1, 2))
            low, high = intervals(confusion)[name]
            value = run.data.metrics[f"test_{name}"]
            prefix = f"split_{number}/test_{name}"
            assert [logged[prefix], logged[f"{prefix}_low"], logged[f"{prefix}_high"]] == pytest.approx(
                [value, low, high]
            )
            assert f"{value:.4f} ({low:.4f}..{high:.4f})" in done.log
            values.append(value)
        assert logged[f"test_{name}_mean"] == pytest.approx(np.mean(values))
        assert (logged[f"test_{name}_min"], logged[f"test_{name}_max"]) == (min(values), max(values))
    assert re.search(rf"^mean +{logged['test_top1_mean']:.4f} ", done.log, re.MULTILINE)


def test_no_model_is_registered(folds: Project, done: Ended) -> None:
    assert not folds.store.search_registered_models()


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("0", r"shards \(0\) names one pack: give several"),
        ("0,absent", "absent holds no complete pack"),
        ("0,1,0", "/0 is the same pack as another one"),
        ("0,other", "/other has other classes than .*/0"),
        ("0,untested", "/untested has no sample in its test split"),
    ],
)
def test_packs_that_do_not_go_together_are_refused(
    packs: Path,
    packed: Path,
    tmp_path: Path,
    shards: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    for fold in "01":
        shutil.copytree(packs / fold, tmp_path / fold)
    if "other" in shards:
        shutil.copytree(packed, tmp_path / "other")
        manifest = tmp_path / "other" / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"b"', '"c"'))
    if "untested" in shards:
        options = ["--workers=1", "--clip.num-frames=4", "--clip.short-side-px=32", "--split.test-fraction=0"]
        assert pack([str(packed.parent / "data"), str(tmp_path / "untested"), *options]) == 0
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["cv", "--config", "tiny.yaml", "--shards", shards]) == 2
    assert not ray.is_initialized()
    assert not (tmp_path / "mlflow.db").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m trainer: ")]
    assert re.search(message, line)
