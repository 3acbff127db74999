"""`python -m serve score` as a user meets it: the answers of the server, bad files listed, kills that cost nothing."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from configs.score import OUT_ENDINGS
from configs.serve import ServeConfig
from packer.__main__ import main as pack
from packer.progress import LOGGED_SECONDS
from packer.shards.manifest import read_samples
from serve.__main__ import main
from serve.replica.errors import ModelUnavailable
from serve.replica.versions import load_model
from serve.scoring.formats import FORMATS
from tests.support.registry import (
    CLASS_NAMES,
    MLFLOW_WARNINGS,
    copy_champion,
    register,
    register_again,
    store_uri,
)
from tests.support.serving import ask, served
from tests.support.videos import write_video

pytestmark = MLFLOW_WARNINGS

LEVELS = {"dark": 10, "bright": 245, "elsewhere": 128}
NUM_MANY = 350
OPTIONS = ["--max-rejected-fraction", "0.1", "--cpu-threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, champion_store: Path) -> Path:
    """Holds a store with a model, and videos: of classes, of none, and files that are none."""
    folder = tmp_path_factory.mktemp("score")
    copy_champion(champion_store, folder)
    for name, level in LEVELS.items():
        (folder / "videos" / name / "deeper").mkdir(parents=True)
        for number in range(3):
            pictures = [np.full((48, 64, 3), level + number, np.uint8)] * (8 + number)
            write_video(folder / "videos" / name / "deeper" / f"{number}.mp4", pictures)
    cut = (folder / "videos/dark/deeper/0.mp4").read_bytes()[:900]
    (folder / "videos/dark/cut.mp4").write_bytes(cut)
    (folder / "videos/bright.mp4").write_bytes((folder / "videos/bright/deeper/0.mp4").read_bytes())
    (folder / "videos/notes.txt").write_text("a text among the videos")
    return folder


@pytest.fixture(autouse=True)
def _home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(folder))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "predictions.parquet"


def score(source: Path | str, out: Path | str, *options: str) -> int:
    return main(["score", str(source), "--out", str(out), *OPTIONS, *options])


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["source"]: row for row in pq.ParquetFile(out).read().to_pylist()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["score", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.integration
def test_the_rows_are_the_servers_answers(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(folder / "videos", out, "--max-batch-size", "4") == 0
    printed = capsys.readouterr().out
    assert "videos    12: 10 scored, 2 rejected" in printed
    assert "rejected  1 not_a_video (reason, message)" in printed
    assert "accuracy  1.0000 of 6 videos in folders named as classes" in printed
    assert "model     clipstream version 1" in printed
    rows = rows_of(out)
    assert list(rows) == sorted(
        path.relative_to(folder / "videos").as_posix() for path in (folder / "videos").rglob("*.*")
    )
    config = ServeConfig.model_validate({"tracking_uri": store_uri(folder), "allow_unauthenticated": True})
    with served(config) as port:
        for source, row in rows.items():
            reply = ask(port, "POST", "/v1/predict", (folder / "videos" / source).read_bytes())
            if row["predicted"] is None:
                assert row["reason"] == reply.code
                assert row["message"]
                assert row["p_dark"] is None
                continue
            wanted = {one["class"]: one["probability"] for one in reply.json["predictions"]}
            assert {name: row[f"p_{name}"] for name in CLASS_NAMES} == pytest.approx(wanted, abs=1e-6)
            assert (row["predicted"], row["probability"]) == next(iter(wanted.items()))
            assert row["num_frames"] == reply.json["clip"]["num_frames"]
    assert {row["true_class"] for row in rows.values()} == {"dark", "bright", None}


@pytest.fixture(scope="module")
def many(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of so many videos that they fill more than one part."""
    many = tmp_path_factory.mktemp("many")
    video = (folder / "videos/dark/deeper/0.mp4").read_bytes()
    for number in range(NUM_MANY):
        (many / f"{number:03d}.mp4").write_bytes(video if number % 50 else b"\0" * (number + 1))
    return many


def kill_in_the_middle(many: Path, out: Path) -> Path:
    """Kills a scoring when it has written a part; returns the folder of the parts."""
    command = [sys.executable, "-m", "serve", "score", str(many), "--out", str(out), *OPTIONS, "--workers", "2"]
    parts = out.with_name(f"{out.name}.parts")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(parts.glob("*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not out.exists()
    return parts


@pytest.mark.integration
@pytest.mark.parametrize("ending", OUT_ENDINGS)
def test_a_killed_scoring_ends_with_the_same_file(many: Path, tmp_path: Path, ending: str) -> None:
    whole, out = tmp_path / f"whole{ending}", tmp_path / "new" / f"predictions{ending}"
    assert score(many, whole) == 0
    parts = kill_in_the_middle(many, out)
    (parts / "stale.parquet").write_bytes(b"of another model")
    assert score(many, out, "--workers", "1") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()
    written = out.stat().st_mtime_ns
    (parts / ".pack").mkdir(parents=True)  # as a kill leaves it just before the end
    assert score(many, out) == 0
    assert not parts.exists()
    assert out.stat().st_mtime_ns == written


def test_each_format_has_the_same_columns_values_and_types(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(FORMATS) == set(OUT_ENDINGS)
    reports = []
    for ending in OUT_ENDINGS:
        assert score(folder / "videos", tmp_path / f"rows{ending}") == 0
        reports.append(re.sub(r"^(written|took) .*$", "", capsys.readouterr().out, flags=re.MULTILINE))
    assert reports[0] == reports[1] == reports[2]
    table = pq.read_table(tmp_path / "rows.parquet").replace_schema_metadata(None)
    rows = table.to_pylist()
    assert any(row["message"] is None for row in rows)
    assert any(row["probability"] is None for row in rows)

    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == rows
    assert list(json.loads(lines[0])) == table.column_names

    types = {field.name: field.type for field in table.schema}
    options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    read = pyarrow.csv.read_csv(tmp_path / "rows.csv", parse_options=parse, convert_options=options)
    assert read.equals(table)
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        plain = list(csv.DictReader(file))
    assert [row["source"] for row in plain] == [row["source"] for row in rows]
    assert [float(row["p_dark"]) if row["p_dark"] else None for row in plain] == [row["p_dark"] for row in rows]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_file_that_was_changed_or_is_of_others_is_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    out = tmp_path / f"rows{ending}"
    out.write_text("of others")
    assert f"{out} exists, but was not made from these videos" in refused(
        [str(folder / "videos"), "--out", str(out)], capsys
    )
    out.unlink()
    assert score(folder / "videos", out) == 0
    metadata = json.loads((tmp_path / f"rows{ending}.metadata.json").read_text())
    assert metadata["clipstream.decided_by"]["model"] == {"name": "clipstream", "version": "1"}
    content = out.read_bytes()
    out.write_bytes(content + b"\n")
    assert "give another --out" in refused([str(folder / "videos"), "--out", str(out)], capsys)
    out.unlink()
    assert score(folder / "videos", out) == 0
    assert out.read_bytes() == content


@pytest.mark.parametrize("out", ["rows.txt", "rows", "rows.parquet.gz", "s3://bucket/rows.json"])
def test_another_ending_is_refused_before_any_work(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(["/not/looked/at", "--out", out], capsys)
    assert sentence.endswith(f"out: must end in .parquet, .csv or .jsonl (got {out!r})")


@pytest.mark.integration
def test_the_progress_does_not_flood_a_log(many: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve", "score", str(many), "--out", str(tmp_path / "rows.csv"), *OPTIONS]
    started = time.monotonic()
    done = subprocess.run([*command, "--max-batch-size", "4"], check=True, capture_output=True, text=True)
    assert "%|" not in done.stderr
    num_lines = len(re.findall(r"num_videos_done=\d+", done.stderr))
    assert num_lines <= (time.monotonic() - started) / LOGGED_SECONDS  # of 88 batches


@pytest.mark.integration
def test_videos_and_file_may_lie_at_an_address(folder: Path, out: Path, bucket: str) -> None:
    files = fsspec.filesystem("s3")
    files.put(str(folder / "videos"), f"{bucket}/videos", recursive=True)
    assert score(folder / "videos", out) == 0
    assert score(f"{bucket}/videos", f"{bucket}/new/predictions.parquet") == 0
    assert [Path(name).name for name in files.find(f"{bucket}/new")] == ["predictions.parquet"]
    assert files.cat_file(f"{bucket}/new/predictions.parquet") == out.read_bytes()


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pack of the labelled videos, and the store of a model that says it was trained on it."""
    trained = tmp_path_factory.mktemp("trained") / "first"
    for name in ("dark", "bright"):
        shutil.copytree(folder / "videos" / name, trained / "data" / name, ignore=shutil.ignore_patterns("cut.mp4"))
    options = ["--workers=1", "--clip.num-frames=4", "--split.val-fraction=0.34", "--split.test-fraction=0.34"]
    assert pack([str(trained / "data"), str(trained / "shards"), *options]) == 0
    register(trained, shards=trained / "shards")
    return trained


def test_what_the_model_was_trained_on_is_told_apart(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(trained))
    shutil.copytree(folder / "videos", tmp_path / "videos")
    (tmp_path / "videos/dark/deeper/0.mp4").rename(
        tmp_path / "videos/bright/renamed.mp4"
    )  # known by its bytes, now wrong
    write_video(tmp_path / "videos/dark/new.mp4", [np.full((48, 64, 3), 3, np.uint8)] * 9)
    assert score(tmp_path / "videos", tmp_path / "rows.parquet") == 0
    printed = capsys.readouterr().out
    split_of = dict(zip(*read_samples(trained / "shards", None, ["source", "split"]).to_pydict().values(), strict=True))
    assert sorted(split_of.values()) == ["test", "test", "train", "train", "val", "val"]
    split_of["bright/renamed.mp4"] = split_of.pop("dark/deeper/0.mp4")
    split_of["bright.mp4"] = split_of["bright/deeper/0.mp4"]
    for source, row in rows_of(tmp_path / "rows.parquet").items():
        assert row["seen_in"] == (split_of.get(source, "none") if row["predicted"] else None), source
    counts = Counter(split_of.values())
    assert (
        f"seen      in the pack that the model was trained on: {counts['train']} in train, {counts['val']} in val, "
        f"{counts['test']} in test, 4 not"
    ) in printed
    assert "accuracy  0.8571 of 7 videos in folders named as classes" in printed
    right = {split: 2 - (split_of["bright/renamed.mp4"] == split) for split in ("train", "val", "test")}
    assert f"          {right['train'] / 2:.4f} of 2 that the model was trained on: no measure of" in printed
    assert f"          {right['val'] / 2:.4f} of 2 that chose the model (val)" in printed
    assert f"          {right['test'] / 2:.4f} of 2 of its test split" in printed
    assert "          1.0000 of 1 that are new to it" in printed


def test_a_pack_that_cannot_be_looked_at_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(trained))
    moved = (trained / "shards").rename(tmp_path / "shards")
    data = str(trained / "data")
    assert score(data, tmp_path / "rows.csv") == 0
    printed = capsys.readouterr().out
    assert f"seen      not known whether the model was trained on these videos: the pack {trained}/shards" in printed
    assert "accuracy  1.0000 of 6 videos in folders named as classes; too good if it was trained on some" in printed
    assert score(data, tmp_path / "all.csv", "--shards", str(moved)) == 0
    assert "2 in train, 2 in val, 2 in test" in capsys.readouterr().out
    (moved / "manifest.json").write_bytes((moved / "manifest.json").read_bytes() + b"\n")
    sentence = refused([data, "--out", str(tmp_path / "other.csv"), "--shards", str(moved)], capsys)
    assert f"the pack {moved} was changed after the training: name the pack" in sentence


def test_a_store_whose_files_lie_elsewhere_is_told_as_that(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = trained.rename(trained.with_name("second"))  # as a copy on another machine
    monkeypatch.setenv("CLIPSTREAM_HOME", str(home))
    sentence = refused([str(home / "data")], capsys)
    assert f"version 1 of the model clipstream is registered, but its files at {trained}/artifacts" in sentence
    assert "cannot be read from this machine (" in sentence
    with pytest.raises(ModelUnavailable) as caught:
        load_model(ServeConfig(), "1")
    assert str(trained.parent) not in str(caught.value)  # clients learn no path
    trained.symlink_to(home)  # as the documentation says
    assert score(home / "data", tmp_path / "rows.csv") == 0


def test_more_rejected_than_allowed_is_exit_code_1(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(folder / "videos"), "--out", str(out)]) == 1
    assert "9.1% of the videos were rejected, more than --max-rejected-fraction (5.0%)" in capsys.readouterr().err
    assert len(rows_of(out)) == 12


def test_another_version_is_scored_to_another_file(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(folder / "videos", out) == 0
    version = register_again(folder)
    assert "give another --out" in refused([str(folder / "videos"), "--out", str(out)], capsys)
    assert score(folder / "videos", out, "--version", "1") == 0
    assert score(folder / "videos", out.with_name("second.parquet")) == 0
    assert f"clipstream version {version}" in capsys.readouterr().out


def test_what_cannot_be_scored_is_one_sentence(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = str(folder / "videos")
    (out.parent / "empty").mkdir(parents=True)
    assert f"{folder}/absent is not a folder" in refused(["absent"], capsys)  # of the home folder, in full
    assert "holds no videos" in refused([str(out.parent / "empty")], capsys)
    assert "lies inside" in refused([videos, "--out", f"{videos}/predictions.parquet"], capsys)
    assert "no version 99 of the model clipstream" in refused([videos, "--version", "99"], capsys)
    assert "no model other with the alias champion" in refused([videos, "--registered-model", "other"], capsys)
    assert "device (cuda)" in refused([videos, "--device", "cuda"], capsys)
    assert not (folder / "predictions.parquet.parts").exists()
