"""A run's folder: what it is bound to, when it may be resumed, who holds it, and which code it was."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import configs
import packer
import trainer
from configs.load import parse
from configs.model import ModelConfig
from configs.section import UsageError
from configs.train import OptimizerConfig, TrainConfig, ViewConfig
from tests.support.programs import system_program
from tests.support.registry import MLFLOW_WARNINGS
from trainer.driver.code_version import code_version
from trainer.driver.run_folder import (
    BOUND_FIELDS,
    bound_fields,
    find_record,
    locked,
    new_name,
    new_record,
    save_config,
)

pytestmark = MLFLOW_WARNINGS

CONFIG = TrainConfig(run="one", epochs=5)
DIGEST = "a" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run of CONFIG that was begun."""
    made = tmp_path / "one"
    made.mkdir()
    new_record(CONFIG, DIGEST).model_copy(update={"run_id": "r"}).save(made)
    save_config(made, CONFIG)
    return made


def changed(**values: object) -> TrainConfig:
    return TrainConfig.model_validate({**CONFIG.model_dump(), **values})


def test_names_sort_by_time_and_differ() -> None:
    names = [new_name() for _ in range(20)]
    assert len(set(names)) == 20
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", name) for name in names)
    assert [name[:15] for name in names] == sorted(name[:15] for name in names)


def test_a_new_run_has_no_record(tmp_path: Path) -> None:
    assert find_record(tmp_path, CONFIG, DIGEST) is None


def test_an_unfinished_run_is_resumed(folder: Path) -> None:
    record = find_record(folder, CONFIG, DIGEST)
    assert record is not None
    assert (record.run_id, record.finished_epochs) == ("r", 0)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "run.json"]


def test_what_is_not_bound_may_be_changed(folder: Path) -> None:
    free = changed(
        epochs=9,
        num_workers=3,
        loader_workers=2,
        micro_batch=4,
        max_bad_fraction=0.5,
        checkpoint_interval_seconds=1.0,
        optimizer=OptimizerConfig(learning_rate=1.0),
        precision="bf16",
    )
    assert find_record(folder, free, DIGEST) is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"global_batch": 31}, r"global_batch \(32 before, 31 now\)"),
        ({"seed": 1}, r"seed \(0 before, 1 now\)"),
        ({"shuffle_block": 7}, r"shuffle_block \(2000 before, 7 now\)"),
        ({"view": ViewConfig(size_px=64)}, r"view.size_px \(112 before, 64 now\)"),
        ({"model": ModelConfig(backbone="resnet34")}, r"model.backbone \(resnet18 before, resnet34 now\)"),
        ({"model": ModelConfig(dropout=0.5)}, r"model.dropout \(0.1 before, 0.5 now\)"),
        (
            {"optimizer": OptimizerConfig(backbone_factor=0.1)},
            r"optimizer.backbone_factor \(1.0 before, 0.1 now\)",
        ),
        ({"registered_model": "x"}, r"registered_model \(clipstream before, x now\)"),
        ({"experiment": "x"}, r"experiment \(clipstream before, x now\)"),
        ({"seed": 1, "global_batch": 8}, r"global_batch \(32 before, 8 now\), seed \(0 before, 1 now\); give them"),
    ],
)
def test_a_bound_field_that_changed_is_named(folder: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=f"run one was started with other settings: {message}") as caught:
        find_record(folder, changed(**values), DIGEST)
    assert f"--config {folder / 'config.yaml'}" in str(caught.value)


def test_every_bound_field_is_one_of_the_configuration() -> None:
    bound = bound_fields(CONFIG).keys()
    for field in BOUND_FIELDS:
        assert [name for name in bound if name == field or name.startswith(f"{field}.")]


def test_a_run_of_before_there_was_an_option_is_resumed_with_its_default(folder: Path) -> None:
    record = find_record(folder, CONFIG, DIGEST)
    assert record is not None
    newer = {"model.freeze_epochs", "model.unfreeze_stage_epochs", "model.batch_norm", "optimizer.backbone_factor"}
    older = {name: value for name, value in record.bound.items() if name not in newer}
    record.model_copy(update={"bound": older}).save(folder)
    assert find_record(folder, CONFIG, DIGEST) is not None
    with pytest.raises(UsageError, match=r"model.batch_norm \(train before, frozen now\)"):
        find_record(folder, changed(model=ModelConfig(batch_norm="frozen")), DIGEST)


def test_the_saved_configuration_is_the_way_back(folder: Path) -> None:
    options = ["--config", str(folder / "config.yaml"), "--epochs", "8"]
    config = parse(TrainConfig, options, prog="", description="", env_prefix="X_")
    assert config.model_dump() == CONFIG.model_copy(update={"epochs": 8}).model_dump()
    assert find_record(folder, config, DIGEST) is not None


def test_other_shards_are_refused(folder: Path) -> None:
    message = f"run one was started on other shards \\(manifest {'a' * 12}, now {'b' * 12}\\): give --shards"
    with pytest.raises(UsageError, match=message):
        find_record(folder, CONFIG, "b" * 64)


def test_a_finished_run_is_refused_unless_epochs_were_raised(folder: Path) -> None:
    record = find_record(folder, CONFIG, DIGEST)
    assert record is not None
    record.model_copy(update={"finished_epochs": 5}).save(folder)
    for epochs in (5, 4):
        with pytest.raises(UsageError, match="run one has finished its 5 epochs: give more --epochs"):
            find_record(folder, changed(epochs=epochs), DIGEST)
    assert find_record(folder, changed(epochs=6), DIGEST) is not None


@pytest.mark.parametrize("content", [b"", b"{", b'{"run_id": "r"}', bytes(50)])
def test_a_broken_record_is_refused(folder: Path, content: bytes) -> None:
    (folder / "run.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"run.json cannot be read: give --run another name"):
        find_record(folder, CONFIG, DIGEST)


def test_one_process_holds_a_run_until_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    script = (
        "import sys, pathlib\nfrom trainer.driver.run_folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="run one is being trained by another process: wait"), locked(folder):
            pass
        other.kill()
    with locked(folder), pytest.raises(UsageError, match="by another process"), locked(folder):
        pass
    with locked(folder) as folder_id:
        pass
    with locked(folder) as same, locked(tmp_path / "runs" / "two") as other:
        assert same == folder_id != other


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"cannot be written \(.*\): give --runs another folder"
    with pytest.raises(UsageError, match=message), locked(tmp_path / "file" / "one"):
        pass


def test_code_version_is_the_commit_or_a_digest_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in (configs, packer, trainer):
        copy = tmp_path / package.__name__
        copy.mkdir()
        (copy / "__init__.py").touch()
        monkeypatch.setattr(package, "__file__", str(copy / "__init__.py"))
    sources = code_version()
    assert re.fullmatch("sources-[0-9a-f]{16}", sources)
    assert code_version() == sources
    (tmp_path / "trainer" / "new.py").write_text("x = 1\n")
    changed_sources = code_version()
    assert changed_sources != sources

    git = [system_program("git"), "-C", str(tmp_path), "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    commit = code_version()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "trainer" / "new.py").write_text("x = 2\n")
    assert code_version() == f"{commit}-dirty"
    (tmp_path / "trainer" / "new.py").write_text("x = 1\n")
    (tmp_path / "predictions.csv").write_text("source\n")
    assert code_version() == commit
    (tmp_path / ".git" / "HEAD").write_text("broken")
    assert code_version() == changed_sources
