"""Appending: new videos come in new shards, and nothing that was packed moves."""

import shutil
from pathlib import Path

import pytest

from packer.shards.manifest import read_manifest
from tests.support.packs import assert_same_pack, files, refused, rows_of, run
from tests.support.videos import write_classes, write_numbered_video

FAST = ["--workers=1", "--clip.num-frames=2", "--clip.short-side-px=16"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and shards/, of classes b and c."""
    folder = tmp_path_factory.mktemp("append")
    write_classes(folder / "data", {"b": 10, "c": 10}, 4)
    assert run(folder / "data", folder / "shards", *FAST) == 0
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy of `begun` whose data has more: 6 videos of b, 6 of a new class a, a copy of a packed video."""
    shutil.copytree(begun, tmp_path / "copy")
    folder = tmp_path / "copy"
    write_classes(folder / "more", {"a": 6, "b": 6}, 5)
    (folder / "more/a").rename(folder / "data/a")
    for path in (folder / "more/b").iterdir():
        path.rename(folder / "data/b" / f"new {path.name}")
    of_test = next(row["source"] for row in rows_of(begun / "shards") if row["split"] == "test")
    shutil.copy(folder / "data" / of_test, folder / "data/c/copy of a test video.mp4")
    return folder


def test_new_videos_come_in_new_shards(folder: Path, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "data/b/video 1.mp4").unlink()
    write_numbered_video(folder / "data/b/video 2.mp4", 40)
    assert run(folder / "data", folder / "shards", "--append", *FAST) == 0
    printed = capsys.readouterr().out
    assert "kept      1 video (b/video 1.mp4) gone; packed as before" in printed
    assert "kept      1 video (b/video 2.mp4) changed; packed as before" in printed
    before, after = rows_of(begun / "shards"), rows_of(folder / "shards")
    assert [row for row in after if row["source"] in {row["source"] for row in before}] == before
    added = [row for row in after if row not in before]
    assert len(added) == 13
    assert {row["shard"] for row in before}.isdisjoint(row["shard"] for row in added)
    for name in files(begun / "shards"):
        if name.endswith(".tar"):
            assert (begun / "shards" / name).read_bytes() == (folder / "shards" / name).read_bytes()
    manifest = read_manifest(folder / "shards")
    assert manifest.class_names == ("b", "c", "a")
    assert {row["class_index"] for row in added if row["class_name"] == "a"} == {2}
    copy = next(row for row in added if row["source"] == "c/copy of a test video.mp4")
    assert copy["split"] == "test"
    for name, total in (("a", 6), ("b", 16)):
        counts = {split: summary.num_per_class[name] for split, summary in manifest.splits.items()}
        assert counts["train"] / total == pytest.approx(0.7, abs=0.1)
        assert all(counts.values())
    assert run("verify", folder / "shards") == 0


def test_a_stopped_append_is_continued_with_or_without_the_option(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    assert run(folder / "data", folder / "shards", "--append", *FAST) == 0
    (folder / "shards/train-000008.tar").unlink()
    for option in ([], ["--append"]):
        target = tmp_path / f"stopped{len(option)}"
        shutil.copytree(folder / "shards", target)
        shutil.copy(tmp_path / "other/shards/manifest.json", target)  # the manifest of before the append
        assert run(folder / "data", target, *option, *FAST) == 0
        assert run(tmp_path / "other/data", tmp_path / "other/shards", "--append", *FAST) == 0
        assert_same_pack(target, tmp_path / "other/shards")


def test_an_append_of_nothing_changes_nothing(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun / "shards", tmp_path / "shards")
    assert run(begun / "data", tmp_path / "shards", "--append", *FAST) == 0
    assert_same_pack(tmp_path / "shards", begun / "shards")


def test_what_differs_is_said(folder: Path, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder / "shards")
    data, shards = folder / "data", folder / "shards"
    assert (
        "13 videos (a/video 0.mp4, a/video 1.mp4, a/video 2.mp4, ...) new: give the earlier settings and videos, add "
        in (refused([data, shards, *FAST], capsys))
    )
    assert (
        "other settings or videos: --clip.short-side-px was 16 and is 8 now; seed was 0 and is 5 now: give"
        in refused([data, shards, "--append", *FAST[:2], "--clip.short-side-px=8", "--seed=5"], capsys)
    )
    assert "holds no pack to append to" in refused([data, folder / "none", "--append", *FAST], capsys)
    assert "holds a complete pack already" in refused([begun / "data", begun / "shards", *FAST], capsys)
    (data / "a").rename(folder / "a")
    write_classes(folder / "few", {"d": 2}, 3)
    (folder / "few/d").rename(data / "d")
    assert "class 'd' has too few videos (2" in refused([data, shards, "--append", *FAST], capsys)
    assert files(folder / "shards") == before
    assert not (folder / "none").exists()


def test_a_lost_plan_is_refused(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(begun / "shards", tmp_path / "shards")
    (tmp_path / "shards/.pack/plan.json").write_text("{")
    assert "plan.json is damaged: delete" in refused([begun / "data", tmp_path / "shards", *FAST], capsys)
    (tmp_path / "shards/.pack/plan.json").unlink()
    assert "has lost the plan of its shards: delete" in refused([begun / "data", tmp_path / "shards", *FAST], capsys)


def test_a_lost_video_cannot_be_packed_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in rows_of(folder / "shards") if row["split"] == "val")
    (folder / "shards/val-000000.tar").unlink()
    (folder / "data" / row["source"]).unlink()
    assert run(folder / "data", folder / "shards", "--append", *FAST) == 1
    error = capsys.readouterr().err
    assert f"1 video ({row['source']}) must be packed again, but changed or went since" in error


def test_a_new_video_that_joins_two_splits_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data", {"a": 8}, 3)
    options = [*FAST, r"--split.group-regex=(video \d)"]
    assert run(data, tmp_path / "shards", *options) == 0
    splits = {row["source"]: row["split"] for row in rows_of(tmp_path / "shards")}
    of_train, of_test = (
        next(source for source, name in splits.items() if name == split) for split in ("train", "test")
    )
    shutil.copy(data / of_train, data / of_test.replace(".mp4", " again.mp4"))
    message = refused([data, tmp_path / "shards", "--append", *options], capsys)
    assert "videos of one recording, or of equal content, would be in two splits" in message
    assert of_test in message


def test_folds_are_not_appended_to(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(begun / "data", data)
    assert run(data, tmp_path / "shards", *FAST, "--split.num-folds=3") == 0
    write_numbered_video(data / "b/new.mp4", 9)
    message = refused([data, tmp_path / "shards", "--append", *FAST, "--split.num-folds=3"], capsys)
    assert "a pack with --split.num-folds takes no more videos" in message
