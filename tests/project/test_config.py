"""Defaults < YAML < environment < command line, and errors that a user can act on."""

from pathlib import Path

import pytest

from configs.home import home, resolve
from configs.load import find_config, parse, read_yaml
from configs.pack import PackConfig, SplitConfig
from configs.section import UsageError
from configs.serve import ServeConfig


def pack_config(*arguments: str) -> PackConfig:
    return parse(PackConfig, ["data", "shards", *arguments], prog="pack", description="", env_prefix="CLIPSTREAM_PACK_")


def test_later_sources_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack_config().clip.num_frames == 16
    path = tmp_path / "pack.yaml"
    path.write_text("seed: 1\nclip: {num_frames: 8, jpeg_quality: 70}\n")
    assert (pack_config("--config", str(path)).clip.num_frames, pack_config().seed) == (8, 0)
    monkeypatch.setenv("CLIPSTREAM_PACK_CLIP__NUM_FRAMES", "9")
    assert pack_config(f"--config={path}").clip.num_frames == 9
    config = pack_config("--config", str(path), "--clip.num-frames", "10")
    assert (config.clip.num_frames, config.clip.jpeg_quality, config.seed) == (10, 70, 1)
    assert (config.source, config.target) == ("data", "shards")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip.jpeg-quality", "101"], "clip.jpeg_quality: Input should be less than or equal to 100"),
        (["--split.num-folds", "1"], r"split: num_folds \(1\) must be 0 \(no folds\) or at least 2"),
        (["--split.num-folds", "3", "--split.fold", "3"], r"fold \(3\) must be below num_folds \(3\)"),
        (["--split.val-fraction", "0.9"], "leave nothing to train on"),
        (["--lists", "here"], "give one of them too$"),
        (["--config", "nowhere.yaml"], "no config file nowhere.yaml"),
    ],
)
def test_wrong_values_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pack_config(*arguments)


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pack.yaml").write_text("clip: {frames: 8}\n")
    with pytest.raises(UsageError, match=r"clip\.frames: Extra inputs are not permitted"):
        pack_config("--config", str(tmp_path / "pack.yaml"))


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not valid YAML"), ("- a", "holds a list at its top level")])
def test_yaml_that_is_no_mapping(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pack.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_yaml(tmp_path / "pack.yaml")


def test_relative_paths_start_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("shards") == tmp_path / "shards"
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path / "project"))
    assert home() == tmp_path / "project"
    assert resolve("shards") == tmp_path / "project/shards"
    assert resolve("/shards") == Path("/shards")
    monkeypatch.setenv("CLIPSTREAM_HOME", "/tmp/ray/session/_ray_pkg_1a2b")
    with pytest.raises(UsageError, match="Ray's temporary copy of the working directory"):
        resolve("shards")


def test_config_is_looked_for_below_home_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    (tmp_path / "mine.yaml").touch()
    assert find_config("mine.yaml") == tmp_path / "mine.yaml"
    assert read_yaml(find_config("mine.yaml")) == {}


def test_recipe_is_what_decides_the_bytes() -> None:
    config = pack_config("--workers", "3", "--split.num-folds", "5")
    assert config.recipe.split == SplitConfig(num_folds=5)
    assert not set(config.recipe.model_dump()) & {"workers", "source", "target", "max_rejected_fraction"}


def test_help_has_no_riddles(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(ServeConfig, ["--help"], prog="serve", description="Serves.", env_prefix="CLIPSTREAM_SERVE_")
    text = capsys.readouterr().out
    assert "(default: )" not in text
    assert "ifdef" not in text
    assert "(default: 1073741824)" in text
