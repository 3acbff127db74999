"""A pack can always be completed, and a video that once failed can always come in."""

import csv
import shutil
import threading
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from packer.shards.manifest import read_manifest
from tests.support.packs import assert_same_pack, files, refused, rows_of, run
from tests.support.s3 import put_folder, s3_server
from tests.support.videos import write_classes, write_numbered_video

FAST = ["--workers=1", "--clip.num-frames=2", "--clip.short-side-px=16", "--max-rejected-fraction=1"]


def rejected(folder: Path) -> dict[str, str]:
    """Returns the reasons of rejected.csv by source."""
    with (folder / "rejected.csv").open(newline="") as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def first_of(shards: Path, split: str, class_name: str) -> str:
    return next(row["source"] for row in rows_of(shards) if (row["split"], row["class_name"]) == (split, class_name))


@pytest.mark.integration
def test_credentials_that_are_refused_stop_the_pack_and_reject_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "data", {"a": 12, "b": 12}, 4)
    assert run(data, tmp_path / "whole", *FAST, "--shards.max-samples=2") == 0
    with s3_server(tmp_path / "log") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        def refuse_after(num_requests: int) -> None:
            address = f"{environment['AWS_ENDPOINT_URL_S3']}/moto-api/reset-auth"
            urlopen(Request(address, str(num_requests).encode(), {"Content-Type": "text/plain"})).close()

        import fsspec

        system = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        system.mkdir("videos")
        put_folder(data, "s3://videos/data")
        target = tmp_path / "shards"
        refuse_after(24 + 20)  # about as many requests as the search and some of the videos take
        assert run("s3://videos/data", target, *FAST, "--shards.max-samples=2") == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "the storage refuses these credentials (PermissionError: " in error
        assert "then the same command continues it" in error
        assert "Traceback" not in error
        assert not (target / "rejected.csv").exists()
        assert not (target / "manifest.json").exists()
        refuse_after(0)
        assert run("s3://videos/data", target, *FAST, "--shards.max-samples=2") == 1
        assert "refuses these credentials" in capsys.readouterr().err
        refuse_after(10**9)
        assert run("s3://videos/data", target, *FAST, "--shards.max-samples=2") == 0
    assert_same_pack(target, tmp_path / "whole")


@pytest.mark.integration
def test_names_with_two_colons_are_names(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data", {"a": 4, "b::c": 4}, 4)
    (data / "a/video 0.mp4").rename(data / "a/cam::file.mp4")
    (data / "a/video 1.mp4").rename(data / "a/s3::x")
    put_folder(data, f"{bucket}/my::data")
    assert run(data, tmp_path / "local", *FAST) == 0
    assert run(f"{bucket}/my::data", tmp_path / "shards", *FAST) == 0
    assert_same_pack(tmp_path / "shards", tmp_path / "local")
    message = refused([f"zip://::{bucket}/data.zip", tmp_path / "other"], capsys)
    assert f"chains file systems (::), which is not supported: give the address {bucket}/data.zip itself" in message


def test_a_video_that_was_replaced_comes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data", {"a": 10, "b": 10}, 6)
    broken = [data / f"a/video {number}.mp4" for number in (3, 5, 7)]
    whole = [path.read_bytes() for path in broken]
    broken[0].write_bytes(whole[0][:900])  # cut off
    broken[1].write_bytes(bytes(len(whole[1])))  # zeros, as long as the video
    broken[2].unlink()
    broken[2].symlink_to(tmp_path / "not mounted")
    options = [data, tmp_path / "shards", *FAST]
    assert run(*options) == 0
    assert set(rejected(tmp_path / "shards").values()) == {"truncated", "not_a_video", "unreadable"}
    before = rows_of(tmp_path / "shards")
    tars = {path: path.read_bytes() for path in (tmp_path / "shards").glob("*.tar")}
    unchanged = files(tmp_path / "shards")
    assert run(*options, "--append") == 0  # nothing has changed: nothing is tried
    assert files(tmp_path / "shards") == unchanged
    for path, content in zip(broken[:2], whole[:2], strict=True):
        path.write_bytes(content)
    message = refused(options, capsys)
    assert "2 videos (a/video 3.mp4, a/video 5.mp4) rejected then and replaced since: --append packs what is" in message
    (tmp_path / "not mounted").write_bytes(whole[2])
    assert run(*options) == 0  # what only could not be read needs no option
    assert rejected(tmp_path / "shards").keys() == {"a/video 3.mp4", "a/video 5.mp4"}
    assert run(*options, "--append") == 0
    after = rows_of(tmp_path / "shards")
    assert len(after) == 20
    assert rejected(tmp_path / "shards") == {}
    assert [row for row in after if row in before] == before
    assert all(path.read_bytes() == content for path, content in tars.items())
    assert run("verify", tmp_path / "shards") == 0
    assert run("repair", tmp_path / "shards", data) == 0


def test_a_pack_that_stopped_takes_replaced_and_grown_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "data", {"a": 10, "b": 10}, 6)
    assert run(data, tmp_path / "whole", *FAST) == 0
    shards = shutil.copytree(tmp_path / "whole", tmp_path / "shards")
    (shards / "manifest.json").unlink()
    for path in [*shards.glob("train-*.tar"), *shards.glob(".pack/train-*.json")]:
        path.unlink()
    grown, gone = (row["source"] for row in rows_of(tmp_path / "whole")[:2])
    write_numbered_video(data / grown, 40)
    assert run(data, shards, *FAST) == 0
    assert {row["source"]: row["num_frames"] for row in rows_of(shards)}[grown] == 40
    (shards / "manifest.json").unlink()
    for path in [*shards.glob("train-*.tar"), *shards.glob(".pack/train-*.json")]:
        path.unlink()
    (data / gone).rename(tmp_path / "gone.mp4")
    assert f"1 video ({gone}) gone: give the earlier settings and videos, give --append to go on without" in refused(
        [data, shards, *FAST], capsys
    )
    assert run(data, shards, *FAST, "--append") == 0
    assert rejected(shards) == {gone: "unreadable"}
    (tmp_path / "gone.mp4").rename(data / gone)
    assert run(data, shards, *FAST) == 0
    assert len(rows_of(shards)) == 20


def test_a_file_that_grows_is_packed_once_it_rests(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 6, "b": 6}, 4)
    recording = write_numbered_video(data / "b/recording.ts", 100, height_px=128, width_px=128)
    more = recording.read_bytes()[:1880]
    ended = threading.Event()

    def record() -> None:
        with recording.open("ab", buffering=0) as file:
            while not ended.is_set():
                file.write(more)
                time.sleep(0.02)

    recorder = threading.Thread(target=record)
    recorder.start()
    try:
        assert run(data, tmp_path / "shards", *FAST) == 0
    finally:
        ended.set()
        recorder.join()
    assert rejected(tmp_path / "shards") == {"b/recording.ts": "changed"}
    assert run(data, tmp_path / "shards", *FAST) == 0
    assert rejected(tmp_path / "shards") == {}
    assert len(rows_of(tmp_path / "shards")) == 13


def test_a_class_whose_only_val_video_is_broken_gets_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "data", {"a": 6, "b": 6, "c": 3}, 4)
    assert run(data, tmp_path / "good", *FAST) == 0
    for number, (split, name) in enumerate((("val", "a"), ("test", "b"), ("val", "c"))):
        (data / first_of(tmp_path / "good", split, name)).write_bytes(bytes(1000 + number))
    capsys.readouterr()
    assert run(data, tmp_path / "shards", *FAST) == 0
    printed = capsys.readouterr().out
    assert "which had no readable video of class 'a'" in printed
    assert "lacking   val has no video of class 'c'" in printed  # train has but one of it
    splits = read_manifest(tmp_path / "shards").splits
    assert [[splits[split].num_per_class[name] for split in ("train", "val", "test")] for name in "abc"] == [
        [3, 1, 1],
        [3, 1, 1],
        [1, 0, 1],
    ]
    assert run("verify", tmp_path / "shards") == 0
    assert run("inspect", tmp_path / "shards") == 0
    # A pack that is stopped between the splits comes out the same.
    stopped = shutil.copytree(tmp_path / "shards", tmp_path / "stopped")
    for path in [stopped / "manifest.json", stopped / "val-000001.tar", *stopped.glob("train-*.tar")]:
        path.unlink()
    assert run(data, stopped, *FAST) == 0
    assert_same_pack(stopped, tmp_path / "shards")


def test_a_class_without_a_readable_video_waits_for_whole_ones(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 6, "b": 6}, 4)
    whole = {path: path.read_bytes() for path in data.glob("b/*.mp4")}
    for number, path in enumerate(whole):
        path.write_bytes(bytes([0, number]) * 500)
    assert run(data, tmp_path / "shards", *FAST) == 1
    for path, content in whole.items():
        path.write_bytes(content)
    assert run(data, tmp_path / "shards", *FAST) == 0
    assert len(rows_of(tmp_path / "shards")) == 12
