"""`python -m trainer` as a user meets it: a Ray of its own, a real store; stopped, resumed, refused."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from packer.shards.manifest import manifest_sha256
from tests.support.processes import train_workers
from tests.support.registry import MLFLOW_WARNINGS, register_again
from tests.support.terminal import CTRL_C
from tests.support.training import ROOT, TINY, Project, project
from tests.support.waiting import until
from trainer.__main__ import main
from trainer.driver.run_folder import locked
from trainer.evaluation.model_card import as_description
from trainer.tracking.pages import run_page
from trainer.tracking.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800), *MLFLOW_WARNINGS]

CURVES = ["train_loss", "train_top1", "learning_rate", "grad_norm", "clips_per_second", "data_wait_share"]
FIGURES = ["top1", "top5", "mean_class_accuracy", "macro_f1", "loss", "ece"]
ARTIFACTS = {
    "config.yaml",
    "classes.json",
    "environment.yaml",
    "model_card.md",
    *(f"data/{name}" for name in ("class_balance.csv", "class_balance.png", "train_clips.png")),
    *(
        f"evaluation/{split}/{name}"
        for split in ("val", "test")
        for name in (
            *("confusion.csv", "confusion.png", "per_class.csv", "predictions.csv"),
            *("calibration.png", "worst_mistakes.png"),
        )
    ),
}


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line that a refused command prints."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m trainer: ")]
    return line


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Iterator[Project]:
    with project(tmp_path_factory.mktemp("plain"), packed) as made:
        yield made


@pytest.fixture(scope="module")
def first_log(plain: Project) -> str:
    """The log of the run `first`, which was trained to its end."""
    done = plain.train("--run", "first", "--epochs", "2")
    assert done.code == 0
    return done.log


def test_the_log_says_what_ran_and_reads_well(plain: Project, first_log: str) -> None:
    lines = first_log.splitlines()
    assert f"trainer interpreter={sys.executable} package={ROOT / 'trainer'}" in lines[0]
    figures = r"loss [0-9.]+  val macro_f1 [0-9.]+ (best|    )  top1 [0-9.]+  [0-9.]+ s"
    for number, left in (("1", r"  \d+ s left"), ("2", "")):
        (line,) = [line for line in lines if line.startswith(f"epoch {number}/2  ")]
        assert re.fullmatch(rf"epoch {number}/2  {figures}{left}", line)
    run = plain.mlflow_run("first")
    assert re.search(r"\nrun first is done: epoch [12] of 2 was the best, val macro_f1 [0-9.]+\n", first_log)
    assert re.search(r"\ntest accuracy: [0-9.]+% of \d clips, 95% interval [0-9.]+% to [0-9.]+%; always ", first_log)
    assert "registered clipstream version 1: it is @champion, as the first one" in lines
    page = run_page(f"sqlite:///{plain.home}/mlflow.db", run.info.experiment_id, run.info.run_id)
    assert lines[-2] == f"look: python -m trainer ui, then {page}"
    assert lines[-1] == "serve @champion: python -m serve"
    assert len(lines) < 20
    assert "\x1b" not in first_log
    assert "Traceback" not in first_log


def test_the_run_is_tracked(plain: Project, first_log: str) -> None:
    run = plain.mlflow_run("first")
    assert run.info.status == "FINISHED"
    assert run.data.params["model.backbone"] == "narrow"
    assert run.data.params["global_batch"] == "8"
    manifest = json.loads((plain.home / "shards" / "manifest.json").read_text())
    num_steps = -(-2 * manifest["splits"]["train"]["num_samples"] // TINY["global_batch"])
    for curve in CURVES:
        assert plain.steps("first", curve) == list(range(1, num_steps + 1))
    assert len(plain.steps("first", "val_macro_f1")) == 2
    metrics = run.data.metrics
    assert {f"{split}_{name}" for split in ("val", "test") for name in FIGURES} <= metrics.keys()
    best_epoch = int(metrics["best/epoch"])
    assert metrics["best/val_top1"] == plain.curve("first", "val_top1")[best_epoch - 1][1]
    assert metrics["best/test_top1"] == metrics["test_top1"]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == manifest_sha256(plain.home / "shards")[:36]

    folder = Path(plain.store.download_artifacts(run.info.run_id, ""))
    assert folder.is_relative_to(plain.home)
    assert yaml.safe_load((folder / "config.yaml").read_text())["shards"] == str(plain.home / "shards")
    assert json.loads((folder / "classes.json").read_text()) == {"class_names": ["a", "b"]}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == ARTIFACTS
    for name in ARTIFACTS:
        assert name.endswith(".png") is (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_best_model_is_registered_with_its_contract(plain: Project, first_log: str) -> None:
    registry = Registry(f"sqlite:///{plain.home / 'mlflow.db'}", "clipstream")
    assert str(registry.champion().version) == "1"
    _, contract = registry.load("models:/clipstream@champion")
    run = plain.mlflow_run("first")
    assert contract.class_names == ("a", "b")
    assert (contract.clip.num_frames, contract.view.size_px) == (4, 32)
    assert contract.manifest_sha256 == manifest_sha256(plain.home / "shards")
    assert contract.val_metric == max(value for _, value in plain.curve("first", "val_macro_f1"))
    assert contract.code_version == run.data.tags["code_version"]
    folder = Path(plain.store.download_artifacts(run.info.run_id, ""))
    card = as_description((folder / "model_card.md").read_text())
    assert registry.champion().description == run.data.tags["mlflow.note.content"] == card


def test_a_finished_run_is_refused(
    plain: Project, first_log: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(plain.home))
    assert main(["--config", "tiny.yaml", "--run", "first", "--epochs", "2"]) == 2
    assert "run first has finished its 2 epochs: give more --epochs" in sentence(capsys)


def test_more_epochs_continue_a_finished_run_and_ctrl_c_loses_no_step(plain: Project, first_log: str) -> None:
    mlflow_run = plain.mlflow_run("first").info.run_id
    last_step = plain.steps("first", "train_loss")[-1]

    terminal = plain.train_in_terminal("--run", "first", "--epochs", "50")
    terminal.await_text(rf"resumed at step {last_step}: 2.00 of 50 epochs are done")
    plain.await_checkpoint("first", after_step=last_step)
    terminal.type(CTRL_C)  # the kernel signals Ray's processes too
    assert terminal.await_end() == 130
    step = int(terminal.await_text(r"run first is stopped: its newest checkpoint is of step (\d+)\.")[1])
    assert plain.steps("first", "train_loss")[-1] == step
    assert "Traceback" not in terminal.shown
    assert plain.mlflow_run("first").info.status == "KILLED"

    resumed = plain.train("--run", "first", "--epochs", "50")
    assert resumed.code == 0
    assert f"resumed at step {step}:" in resumed.log
    run = plain.mlflow_run("first")
    assert (run.info.run_id, run.info.status) == (mlflow_run, "FINISHED")
    for curve in [*CURVES, "val_loss"]:
        steps = plain.steps("first", curve)
        assert len(steps) == len(set(steps))
    assert step + 1 in plain.steps("first", "train_loss")


def test_a_stop_before_the_first_step_is_at_once(plain: Project) -> None:
    terminal = plain.train_in_terminal("--run", "early")
    terminal.await_text("run started run=early")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.await_end(30) == 130
    assert "run early is stopped: it has no checkpoint yet. The same command with --run early" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert plain.mlflow_run("early").info.status == "KILLED"


def test_a_second_ctrl_c_ends_it_at_once(plain: Project) -> None:
    """Even if a worker hangs; nothing is left behind."""
    terminal = plain.train_in_terminal("--run", "twice", "--epochs", "500")
    plain.await_checkpoint("twice")
    for worker in train_workers(plain.alive()):
        worker.suspend()
    terminal.type(CTRL_C)
    terminal.await_text("stopping: the step under way is finished and stored; Ctrl-C again stops without that")
    until(lambda: plain.mlflow_run("twice").info.status == "KILLED")
    terminal.type(CTRL_C)
    assert terminal.await_end(10) == -signal.SIGINT
    assert "Traceback" not in terminal.shown
    until(lambda: not plain.alive(), 30)


def test_a_run_that_diverges_fails_at_once(plain: Project) -> None:
    failed = plain.train("--run", "wild", "--optimizer.learning-rate", "1e30")
    assert failed.code == 1
    assert "run failed run=wild reason=the gradient's norm became" in failed.log
    assert "lower --optimizer.learning-rate" in failed.log
    assert "worker failed" not in failed.log  # and started again
    assert plain.mlflow_run("wild").info.status == "FAILED"


def test_promote_moves_the_alias_forward_and_back(
    plain: Project, first_log: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(plain.home))
    registry = Registry(f"sqlite:///{plain.home / 'mlflow.db'}", "clipstream")
    before = newest = register_again(plain.home)
    for version in ("1", newest):
        assert main(["promote", version]) == 0
        assert capsys.readouterr().out == f"clipstream@champion is now version {version} (before: version {before})\n"
        assert str(registry.champion().version) == version
        before = version
    assert main(["promote", "99"]) == 2
    assert "clipstream has no version 99" in sentence(capsys)
    with pytest.raises(SystemExit, match="2"):
        main(["promote"])
    assert "required: VERSION" in capsys.readouterr().err
    assert str(registry.champion().version) == newest


def test_promote_says_when_the_registry_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["promote", "1"]) == 2
    assert "the MLflow registry at http://127.0.0.1:9 does not answer" in sentence(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "absent"], r"absent"),
        (["--config", "broken.yaml"], r"broken.yaml is not valid YAML"),
        (["--config", "absent.yaml"], r"no config file absent.yaml"),
        (["--epochs", "0"], r"epochs: Input should be greater than or equal to 1 \(got '0'\)"),
        (["--num-workers", "9"], r"--num-workers \(9\) must be at most --global-batch \(8\)"),
        (["--model.backbone", "vgg"], r"model.backbone \(vgg\) is not known: choose one of narrow, convnext_base"),
        (["--model.freeze-epochs", "2"], r"--model.freeze-epochs \(2\) would keep random weights: choose other"),
        (
            ["--model.backbone", "r3d_18", "--model.differences"],
            r"--model.differences .* --model.backbone r3d_18 lacks",
        ),
        (["--view.num-frames", "5"], r"--view.num-frames \(5\) must be at most 4, the frames of a clip in .*packed"),
        (["--model.weights", "absent.pt"], r"model.weights \(.*absent.pt\) does not exist"),
        (["--model.weights", "imagenet"], r"does not exist for --model.backbone narrow: give --model.weights none"),
        (
            ["--model.backbone", "resnet18", "--model.weights", "imagenet"],
            r"could not be downloaded .*model.weights none",
        ),
        (["--model.hidden-size", "400000"], r"runs .* free, the checkpoints of this model take .* GB: make room"),
        (["--run", "busy"], r"run busy is being trained by another process"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_before_ray_starts(
    options: list[str],
    message: str,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there: offline, whatever the machine
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"shards": str(packed)}))
    (tmp_path / "broken.yaml").write_text("epochs: [")
    with locked(tmp_path / "runs" / "busy"):
        assert main([*([] if "--config" in options else ["--config", "tiny.yaml"]), *options]) == 2
    assert not ray.is_initialized()
    assert re.search(message, sentence(capsys))
    assert not (tmp_path / "mlflow.db").exists()


def test_statistics_over_all_workers_need_gpus(plain: Project) -> None:
    refused = plain.train("--model.batch-norm", "sync")
    assert refused.code == 2
    assert "--model.batch-norm (sync) needs GPUs and the cluster has none: give train or frozen" in refused.log


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--epoch-count", "3"])
    assert refused.value.code == 2
    assert "--epoch-count" in capsys.readouterr().err


def test_loader_processes_run_the_code_that_the_command_does(plain: Project, tmp_path: Path) -> None:
    """In a checkout that is not the installed one."""
    for package in ("configs", "packer", "trainer"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "seen").mkdir()
    told = """
import os, pathlib
pathlib.Path(os.environ["SEEN"], str(os.getpid())).write_text(pathlib.Path("/proc/self/cmdline").read_text())
"""
    with (tmp_path / "trainer" / "stream" / "loader.py").open("a") as stream:
        stream.write(told)
    options = ["--run", "elsewhere", "--epochs", "1", "--loader-workers", "1"]
    command = [sys.executable, "-m", "trainer", "--config", "tiny.yaml", *options]
    done = plain.run(*command, cwd=tmp_path, SEEN=str(tmp_path / "seen"))
    assert done.code == 0, done.log
    assert any("multiprocessing.forkserver" in path.read_text() for path in (tmp_path / "seen").iterdir())
