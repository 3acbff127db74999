"""The packer's options and commands beside packing itself, as a user gives them."""

import csv
import shutil
from pathlib import Path

import pytest

from packer.shards.manifest import read_manifest
from tests.support.packs import files, refused, rows_of, run
from tests.support.videos import write_classes, write_numbered_video

FAST = ["--workers=1", "--clip.num-frames=2", "--clip.short-side-px=16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("options") / "data", {"walk": 8, "run": 6}, 4)
    (folder / "run/broken.mp4").write_bytes(bytes(2000))
    (folder / "run/notes.txt").write_text("a text")
    return folder


@pytest.fixture(scope="module")
def shards(data: Path) -> Path:
    assert run(data, data.parent / "shards", *FAST, "--max-rejected-fraction=0.1") == 0
    return data.parent / "shards"


def test_a_dry_run_says_what_a_run_then_does(
    data: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "shards"
    assert run(data, target, *FAST, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not target.exists()
    planned = {line.split()[0]: list(map(int, line.split()[1:])) for line in lines[1:3]}
    num_per_class = {"run": 7, "walk": 8}  # the broken one is found when it is decoded
    assert {name: sum(counts) for name, counts in planned.items()} == num_per_class
    manifest = read_manifest(shards)
    packed = [manifest.splits[split].num_per_class["walk"] for split in ("train", "val", "test")]
    assert planned["walk"] == packed
    assert any(line.startswith("videos    15 of ") and line.endswith(f"shards in {target}") for line in lines)
    assert "rejected  1 not_a_video, 0 duplicate; decoding may reject more" in lines
    assert lines[-1] == "dry run   nothing was written"
    before = files(shards)
    write_numbered_video(data / "walk/new.mp4", 9)
    try:
        assert run(data, shards, *FAST, "--append", "--dry-run") == 0
    finally:
        (data / "walk/new.mp4").unlink()
    assert "walk" in capsys.readouterr().out
    assert files(shards) == before


def test_strict_stops_at_the_first_rejected_video(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "shards"
    for _ in range(2):
        assert run(data, target, *FAST, "--strict") == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "run/broken.mp4 is rejected: no known video container" in error
        assert "repair or remove it, or leave --strict out" in error
        assert not (target / "manifest.json").exists()
    assert run(data, target, *FAST, "--max-rejected-fraction=0.1") == 0
    (target / "manifest.json").unlink()
    assert run(data, target, *FAST, "--strict") == 1
    assert "run/broken.mp4 is rejected" in capsys.readouterr().err


def test_inspect_says_what_a_pack_holds(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", shards) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["run", "4", "1", "1"]
    found = {line[:9].strip(): line[10:] for line in lines[7:]}
    assert found["clips"] == "2 frames, short side 16 px, JPEG 90"
    assert found["balance"] == "the largest class has 1.3 times the videos of the smallest"
    assert found["stored"] == "14 of 16 x 16"
    assert found["sources"] == "14 of 64 x 64"
    assert found["frames"] == "4 to 4 in a video, median 4"
    assert found["rejected"] == "1 not_a_video"
    assert found["set aside"] == "1 not_a_video, which nobody took for videos"
    assert sum(int(part.split()[0]) for part in found["decoded"].split(", ")) == 14


def test_folders_give_the_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, first, count in (("train", 0, 9), ("test", 100, 3)):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                path = tmp_path / "data" / split / name / f"{number}.mp4"
                write_numbered_video(path, 3, first_number=first * 9 + number * 3 + 2000 * (name == "b"))
    data, options = tmp_path / "data", [*FAST, "--split.method=folders"]
    assert run(data, tmp_path / "shards", *options) == 0
    rows = rows_of(tmp_path / "shards")
    assert all((row["split"] == "test") == row["source"].startswith("test/") for row in rows)
    assert {row["class_name"] for row in rows} == {"a", "b"}
    assert {row["source"].split("/")[0] for row in rows if row["split"] == "val"} == {"train"}
    assert "share wanted" not in capsys.readouterr().out
    assert "holds test and train, not classes: give --split.method folders" in refused(
        [data, tmp_path / "other", *FAST], capsys
    )
    copied = data / "test/a/copy.mp4"
    copied.write_bytes((data / "train/a/0.mp4").read_bytes())
    message = refused([data, tmp_path / "other", *options, "--split.val-fraction=0"], capsys)
    assert "test/a/copy.mp4 (test), train/a/0.mp4 (train)" in message
    copied.unlink()
    (data / "extra/a").mkdir(parents=True)
    assert "has the folder extra, which is no split: with --split.method folders it holds train, val and" in refused(
        [data, tmp_path / "other", *options], capsys
    )


def test_official_lists_are_used_and_bind_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data/wave"
    folder.mkdir(parents=True)
    lines = []
    for film in range(10):
        name = f"Film {film}!_wave_f_cm_np1_fr_med_{film}.avi".replace(" ", "_")
        write_numbered_video(folder / name, 3, codec="mpeg4", first_number=film * 3)
        lines.append(f"{name} {(1, 1, 1, 1, 2)[film % 5]} ")
    lines += ["Film_11_wave_f_cm_np1_fr_med_0.avi 1 ", "Film_12_wave_f_cm_np1_fr_med_0.avi 0 "]
    write_numbered_video(folder / "own clip.avi", 3, codec="mpeg4", first_number=900)
    lists = tmp_path / "wave_test_split1.txt"
    lists.write_text("\n".join(lines))
    options = [tmp_path / "data", tmp_path / "shards", *FAST, "--split.hmdb51=1"]
    assert run(*options, "--lists", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "absent    listed videos that the data folder lacks: 1" in printed
    assert "skipped   videos that the split leaves out: 1" in printed
    splits = {row["source"]: row["split"] for row in rows_of(tmp_path / "shards")}
    assert {source for source, split in splits.items() if split == "test"} == {
        f"wave/Film_{film}!_wave_f_cm_np1_fr_med_{film}.avi" for film in (4, 9)
    }
    assert set(splits.values()) == {"train", "val", "test"}
    assert str(tmp_path) not in (tmp_path / "shards/manifest.json").read_text()
    lists.write_text("\n".join(lines).replace("med_0.avi 1", "med_0.avi 2"))
    assert "1 video (wave/Film_0!_wave_f_cm_np1_fr_med_0.avi) in another split now" in refused(
        [*options, "--lists", tmp_path], capsys
    )
    assert "lists must name the folder or file of the split's lists" in refused(options, capsys)
    assert "hmdb51 and ucf101 exclude each other" in refused([*options, "--split.ucf101=1"], capsys)


def test_copies_are_rejected_where_that_is_wanted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(data, tmp_path / "data")
    (copied / "run/broken.mp4").unlink()
    for name, copies in (("walk/video 0.mp4", "walk"), ("run/video 2.mp4", "run")):
        for copy in ("a copy", "z copy"):
            shutil.copy(copied / name, copied / f"{copies}/{copy} of {name.replace('/', ' ')}")
    options = [copied, tmp_path / "shards", *FAST, "--duplicates=reject"]
    assert run(*options, "--strict") == 0
    printed = capsys.readouterr().out
    assert "rejected  4 duplicate (rejected.csv)" in printed
    with (tmp_path / "shards/rejected.csv").open(newline="") as file:
        rejected = {row["source"]: row["message"] for row in csv.DictReader(file) if row["reason"] == "duplicate"}
    assert sorted(rejected) == [
        "run/video 2.mp4",
        "run/z copy of run video 2.mp4",
        "walk/video 0.mp4",
        "walk/z copy of walk video 0.mp4",
    ]
    assert "is that of walk/a copy of walk video 0.mp4, which is packed" in rejected["walk/video 0.mp4"]
    before = rows_of(tmp_path / "shards")
    assert len({row["source_sha256"] for row in before}) == len(before) == 14
    shutil.copy(copied / "run/video 1.mp4", copied / "run/0 copy.mp4")
    assert run(*options, "--append") == 0
    assert rows_of(tmp_path / "shards") == before
    assert "0 copy.mp4" in (tmp_path / "shards/rejected.csv").read_text()
    assert "holds a complete pack already" in refused(options, capsys)
