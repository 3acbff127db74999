"""Defaults < YAML < environment < command line, and errors that a user can act on."""

import re
from pathlib import Path

import pytest

from configs.home import home, resolve
from configs.load import find_config, parse, read_yaml
from configs.option_names import OptionNames, typed_names
from configs.pack import InspectConfig, PackConfig, RelabelConfig, SplitConfig
from configs.score import ScoreConfig
from configs.section import Section, UsageError
from configs.serve import ServeCommand
from configs.train import CvConfig


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
        (["--clip.jpeg-quality", "101"], "--clip.jpeg-quality: Input should be less than or equal to 100"),
        (["--split.num-folds", "1"], r"^--split.num-folds \(1\) must be 0 \(no folds\) or at least 2"),
        (["--split.num-folds", "3", "--split.fold", "3"], r"^--split.fold \(3\) must be below --split.num-folds \(3\)"),
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


@pytest.mark.parametrize("model", [PackConfig, InspectConfig, RelabelConfig, CvConfig, ServeCommand, ScoreConfig])
def test_help_has_no_riddles(model: type[Section], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(model, ["--help"], prog="command", description="Does it.", env_prefix="CLIPSTREAM_")
    text = capsys.readouterr().out
    for riddle in ("(default: )", "None", "ifdef", "undefined", "True", "False"):
        assert riddle not in text
    fields = {name for name in typed_names(model) if "_" in name or "." in name}
    assert not fields & set(re.findall(r"(?<![-\w.])[a-z][\w.]*\w", text)), "a field is not named as it is typed"


def test_fields_are_named_as_they_are_typed() -> None:
    names = OptionNames(CvConfig)
    assert names.as_typed("num_workers (3) must be at most global_batch (2): give --global-batch 3") == (
        "--num-workers (3) must be at most --global-batch (2): give --global-batch 3"
    )
    assert names.as_typed("after freeze_epochs, as many as `epochs`", "model") == (
        "after --model.freeze-epochs, as many as `--epochs`"
    )
    assert names.as_typed("run (a) ends the run (a), and run") == "--run (a) ends the run (a), and run"
    same = "/data/view.size_px/x, --view.size_px, model.size_px and CLIPSTREAM_RUN have view.size_px=3"
    assert names.as_typed(same) == same
    assert OptionNames(ScoreConfig).as_typed("source: missing") == "SOURCE: missing"
