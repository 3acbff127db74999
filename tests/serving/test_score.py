"""`python -m serve score` as a user meets it: the answers of the server, bad files listed, kills that cost nothing."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.serve import ServeConfig
from serve.__main__ import main
from tests.support.registry import CLASS_NAMES, MLFLOW_WARNINGS, copy_champion, register_again, store_uri
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


@pytest.mark.integration
def test_a_killed_scoring_ends_with_the_same_file(folder: Path, out: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    video = (folder / "videos/dark/deeper/0.mp4").read_bytes()
    for number in range(NUM_MANY):
        (many / f"{number:03d}.mp4").write_bytes(video if number % 50 else b"\0" * (number + 1))
    assert score(many, tmp_path / "whole.parquet") == 0
    command = [sys.executable, "-m", "serve", "score", str(many), "--out", str(out), *OPTIONS, "--workers", "2"]
    parts = out.with_name("predictions.parquet.parts")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(parts.glob("*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not out.exists()
    (parts / "stale.parquet").write_bytes(b"of another model")
    assert score(many, out, "--workers", "1") == 0
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not parts.exists()
    written = out.stat().st_mtime_ns
    (parts / ".pack").mkdir(parents=True)  # as a kill leaves it just before the end
    assert score(many, out) == 0
    assert not parts.exists()
    assert out.stat().st_mtime_ns == written


@pytest.mark.integration
def test_videos_and_file_may_lie_at_an_address(folder: Path, out: Path, bucket: str) -> None:
    files = fsspec.filesystem("s3")
    files.put(str(folder / "videos"), f"{bucket}/videos", recursive=True)
    assert score(folder / "videos", out) == 0
    assert score(f"{bucket}/videos", f"{bucket}/new/predictions.parquet") == 0
    assert [Path(name).name for name in files.find(f"{bucket}/new")] == ["predictions.parquet"]
    assert files.cat_file(f"{bucket}/new/predictions.parquet") == out.read_bytes()


def test_more_rejected_than_allowed_is_exit_code_1(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(folder / "videos"), "--out", str(out)]) == 1
    assert "9.1% of the videos were rejected, more than max_rejected_fraction (5.0%)" in capsys.readouterr().err
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
    assert "is not a folder" in refused([str(folder / "absent")], capsys)
    assert "holds no videos" in refused([str(out.parent / "empty")], capsys)
    assert "lies inside" in refused([videos, "--out", f"{videos}/predictions.parquet"], capsys)
    assert "no version 99 of the model clipstream" in refused([videos, "--version", "99"], capsys)
    assert "no model other with the alias champion" in refused([videos, "--registered-model", "other"], capsys)
    assert "device (cuda)" in refused([videos, "--device", "cuda"], capsys)
    assert not (folder / "predictions.parquet.parts").exists()
