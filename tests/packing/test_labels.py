"""No label is taken from a folder that is none, and what contradicts itself is told."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packer.video.catalog import find_videos
from tests.support.packs import refused, rows_of, run
from tests.support.videos import number_picture, write_classes, write_numbered_video

FAST = ["--workers=1", "--clip.num-frames=2", "--clip.short-side-px=16"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders a and b, to be copied."""
    return write_classes(tmp_path_factory.mktemp("labels") / "data", {"a": 4, "b": 4}, 4)


def lay_out(videos: Path, data: Path, folders: dict[str, tuple[str, ...]]) -> Path:
    """Writes folders of splits, each with its classes; no two videos are equal."""
    number = 5000
    for folder, class_names in folders.items():
        for name in class_names:
            (data / folder / name).mkdir(parents=True)
            for place in range(4):
                write_numbered_video(data / folder / name / f"{place}.mp4", 4, first_number=number)
                number += 4
    return data


@pytest.mark.parametrize(
    "names",
    [
        ("train", "validation", "test"),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "valid"),
        ("train", "dev", "test"),
        ("train", "validate", "test"),
    ],
)
def test_folders_of_splits_are_no_classes(
    videos: Path, tmp_path: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data = lay_out(videos, tmp_path / "data", dict.fromkeys(names, ("a", "b")))
    message = refused([data, tmp_path / "shards", *FAST], capsys)
    assert f"holds {' and '.join(sorted(names))}, not classes: give --split.method folders" in message
    (data / "extra").mkdir()
    assert "--split.method folders, and move extra out of it" in refused([data, tmp_path / "shards", *FAST], capsys)
    (data / "extra").rmdir()
    assert run(data, tmp_path / "shards", *FAST, "--split.method=folders") == 0
    assert {row["class_name"] for row in rows_of(tmp_path / "shards")} == {"a", "b"}
    meaning = {"t": "test", "tr": "train", "v": "val", "d": "val"}
    for row in rows_of(tmp_path / "shards"):
        folder = row["source"].split("/")[0].lower()
        wanted = meaning.get(folder[:2]) or meaning[folder[0]]
        assert row["split"] == wanted or (row["split"], "val" in map(meaning.get, "vd")) == ("val", True)
    lay_out(videos, data, {"Val": ("a",), "validation" if "validation" not in names else "dev": ("a",)})
    assert "which both mean val" in refused([data, tmp_path / "other", *FAST, "--split.method=folders"], capsys)


def test_a_class_that_a_given_split_lacks_is_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"train": ("a", "b", "rare"), "val": ("a", "b"), "test": ("a", "b", "rare")}
    data = lay_out(videos, tmp_path / "data", folders)
    for option in (["--dry-run"], []):
        assert run(data, tmp_path / "shards", *FAST, "--split.method=folders", *option) == 0
        assert "lacking   val has no video of class 'rare'" in capsys.readouterr().out


def test_class_names_that_are_spelled_alike_are_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(videos, tmp_path / "data")
    write_classes(tmp_path / "more", {"Non Fight": 3, "nonfight": 3}, 7)
    write_classes(tmp_path / "accents", {unicodedata.normalize("NFC", "café"): 3}, 11)
    write_classes(tmp_path / "others", {unicodedata.normalize("NFD", "café"): 3}, 13)
    for folder in ("more", "accents", "others"):
        for path in (tmp_path / folder).iterdir():
            path.rename(data / path.name)
    assert run(data, tmp_path / "shards", *FAST, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "classes   'Non Fight' and 'nonfight' differ in case, spaces or accents only" in printed
    assert r"'cafe\u0301' and 'caf\xe9' differ in case" in printed
    own = lay_out(videos, tmp_path / "own", {"train": ("Fight", "b"), "val": ("fight", "b")})
    message = refused([own, tmp_path / "other", *FAST, "--split.method=folders"], capsys)
    assert "class 'fight' has no video for train: 'fight' may be the same class as 'Fight'" in message


def test_one_folder_around_all_classes_and_flat_videos_are_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(videos, tmp_path / "data/set/frames")
    (tmp_path / "data/readme.txt").write_text("a text")
    (tmp_path / "data/__MACOSX").mkdir()
    message = refused([tmp_path / "data", tmp_path / "shards", *FAST], capsys)
    assert f"holds one folder, set/frames, around a, b, which seem to be classes: give {tmp_path}/data/set" in message
    shutil.copytree(videos, tmp_path / "splits/train/videos")
    message = refused([tmp_path / "splits", tmp_path / "shards", *FAST, "--split.method=folders"], capsys)
    assert "one folder, videos, around a, b, which seem to be classes: move the class folders out of videos" in message
    message = refused([videos / "a", tmp_path / "shards", *FAST], capsys)
    assert "holds 4 files outside class folders, and no video in one: put the videos of each class into" in message
    one = shutil.copytree(videos / "a", tmp_path / "one/a")
    assert run(one.parent, tmp_path / "shards", *FAST, "--dry-run") == 0
    assert "classes   there is one class only, 'a'" in capsys.readouterr().out


def test_equal_files_of_two_classes_are_listed_and_under_reject_not_packed(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(videos, tmp_path / "data")
    for number in range(4, 8):
        for name in "ab":
            write_numbered_video(data / f"{name}/{number}.mp4", 5, first_number=number * 10 + 300 * (name == "b"))
    shutil.copy(data / "a/video 1.mp4", data / "b/copy.mp4")
    (data / "b/link.mp4").symlink_to(data / "a/video 2.mp4")
    for options in (["--dry-run"], [], ["--duplicates=reject"]):
        assert run(data, tmp_path / "-".join(["shards", *options]), *FAST, *options) == 0
        printed = capsys.readouterr().out
        assert "labels    2 times, equal files have different labels" in printed
        assert "a/video 1.mp4, b/copy.mp4" in printed
        assert "a/video 2.mp4, b/link.mp4" in printed
    assert "rejected  4 contradiction (rejected.csv)" in printed
    sources = {row["source"] for row in rows_of(tmp_path / "shards---duplicates=reject")}
    assert sources.isdisjoint({"a/video 1.mp4", "b/copy.mp4", "a/video 2.mp4", "b/link.mp4"})
    assert len(sources) == 14
    shutil.copy(data / "a/video 3.mp4", data / "b/late.mp4")
    target = tmp_path / "shards---duplicates=reject"
    assert run(data, target, *FAST, "--duplicates=reject", "--append") == 0
    assert {row["source"] for row in rows_of(target)} == sources  # what is packed stays
    assert "b/late.mp4" in (target / "rejected.csv").read_text()


def test_a_recording_in_two_files_is_in_one_split(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        for name in "ab":
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            first = number * 20 + 400 * (name == "b")
            write_numbered_video(tmp_path / f"data/{name}/Clip{number}.avi", 6, codec="mpeg4", first_number=first)
            write_numbered_video(tmp_path / f"data/{name}/clip{number}.MP4", 6, first_number=first)
    assert run(tmp_path / "data", tmp_path / "shards", *FAST) == 0
    rows = rows_of(tmp_path / "shards")
    assert len(rows) == 32
    splits = {(row["source"][:-4].lower(), row["split"]) for row in rows}
    assert len(splits) == 16
    assert {split for _, split in splits} == {"train", "val", "test"}
    assert "groups    16 recordings in several files each, by their names (a/Clip0.avi, a/clip0.MP4" in (
        capsys.readouterr().out
    )


def test_what_lies_beside_videos_takes_no_place_in_a_split(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(videos, tmp_path / "data")
    sound = tmp_path / "sound.m4a"
    write_sound(sound)
    for number in range(4):
        for name in "ab":
            np.save(data / f"{name}/video {number}.npy", np.full((4, 16), number, np.float32))
            (data / f"{name}/video {number}.pkl").write_bytes(b"\x80\x04\x95\x05\0\0\0\0\0\0\0\x8c\x01a\x94.")
            shutil.copy(sound, data / f"{name}/video {number}.m4a")
            shutil.copy(data / f"{name}/video {number}.mp4", data / f"{name}/GOPR{number}.LRV")
            Image.fromarray(number_picture(number)).save(data / f"{name}/GOPR{number}.THM", "JPEG")
    shutil.make_archive(str(data / "a/archive"), "zip", tmp_path / "data/b")
    shutil.copy(data / "a/video 0.mp4", data / "a/no extension")
    catalog = find_videos(data)
    assert len(catalog.videos) == 9
    assert {error.reason for _, error in catalog.non_videos} == {"not_a_video", "no_video_stream", "proxy"}
    assert run(data, tmp_path / "shards", *FAST, "--strict") == 0
    printed = capsys.readouterr().out
    assert "rejected  16 proxy (rejected.csv)" in printed
    assert "proxies   16 videos (a/GOPR0.LRV, a/GOPR0.THM, " in printed
    assert len(rows_of(tmp_path / "shards")) == 9


def write_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=44_100)
        for place in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44_100, place * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_failed_downloads_count_as_rejected(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(videos, tmp_path / "data")
    (data / "a/empty.mp4").touch()
    (data / "a/page.mp4").write_text("<!DOCTYPE html><html><body>404 not found</body></html>")
    (data / "a/pointer.mov").write_text("version https://git-lfs.github.com/spec/v1\nsize 12345\n")
    (data / "a/labels.txt").write_text("a text is no failed video")
    assert run(data, tmp_path / "shards", *FAST) == 1
    said = capsys.readouterr()
    assert "27.3% of the videos were rejected" in said.err
    assert "failed    3 videos (a/empty.mp4, a/page.mp4, a/pointer.mov) empty or no video inside" in said.out
    assert run(data, tmp_path / "strict", *FAST, "--strict") == 1
    assert "a/empty.mp4 is rejected: the file is empty; repair or remove it" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "shards")) == 8
