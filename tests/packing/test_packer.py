"""The command as a user gives it: it packs, continues, refuses and verifies."""

import csv
import json
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from packer.__main__ import main
from packer.shards.manifest import read_manifest, read_samples
from packer.video.jpeg import decode_frames
from tests.support.packs import assert_same_pack, command, files, refused
from tests.support.videos import read_number, write_classes, write_numbered_video

NUM_FRAMES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("packer") / "data", {"walk": 9, "run": 12}, NUM_FRAMES)
    (folder / "walk/broken.mp4").write_bytes(b"\0" * 2000)
    (folder / "walk/labels.txt").write_text("a text among the videos")
    return folder


@pytest.fixture(scope="module")
def shards(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packer") / "shards"
    assert main([str(data), str(folder), "--workers", "1"]) == 0
    return folder


def test_pack_holds_every_video_once(data: Path, shards: Path) -> None:
    manifest = read_manifest(shards)
    assert manifest.class_names == ("run", "walk")
    assert manifest.num_videos == 23
    assert manifest.rejected == {"not_a_video": 2}
    rows = [row for split in manifest.splits for row in read_samples(shards, split).to_pylist()]
    assert sorted(row["source"] for row in rows) == sorted(
        path.relative_to(data).as_posix() for path in data.rglob("video*.mp4")
    )
    assert len({row["key"] for row in rows}) == 21
    for split, summary in manifest.splits.items():
        of_split = [row for row in rows if row["split"] == split]
        assert summary.num_samples == len(of_split) == sum(summary.num_per_class.values())
        assert all(summary.num_per_class.values())


def test_plain_tar_reads_what_the_index_says(data: Path, shards: Path) -> None:
    manifest = read_manifest(shards)
    sources = {path.relative_to(data).as_posix(): path for path in data.rglob("video*.mp4")}
    for split, summary in manifest.splits.items():
        rows = iter(read_samples(shards, split).to_pylist())
        for shard in summary.shards:
            with tarfile.open(shards / shard.name) as tar:
                members = tar.getmembers()
                contents = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
            assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}
            assert len(members) == shard.num_samples * 18
            for start in range(0, len(members), 18):
                row = next(rows)
                suffixes = [f"{number:03d}.jpg" for number in range(16)] + ["cls", "json"]
                assert [member.name for member in members[start : start + 18]] == [
                    f"{row['key']}.{suffix}" for suffix in suffixes
                ]
                assert members[start].offset == row["offset"]
                assert [member.offset_data - row["offset"] for member in members[start : start + 18]] == row[
                    "member_offsets"
                ]
                *jpegs, label, metadata = contents[start : start + 18]
                assert [len(content) for content in contents[start : start + 18]] == row["member_sizes"]
                assert int(label) == row["class_index"] == manifest.class_names.index(row["class_name"])
                assert json.loads(metadata).items() <= row.items()
                first = int(read_number(decode_frames(jpegs)[0]))
                numbers = [read_number(frame) - first for frame in decode_frames(jpegs)]
                assert numbers == row["frame_indices"]
                assert first % NUM_FRAMES == 0
                assert sources[row["source"]].stat().st_size > 0


def test_any_number_of_workers_writes_the_same_bytes(data: Path, shards: Path, tmp_path: Path) -> None:
    assert main([str(data), str(tmp_path / "shards"), "--workers", "3"]) == 0
    assert_same_pack(tmp_path / "shards", shards)


def test_a_killed_pack_is_continued(data: Path, shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    process = subprocess.Popen(command([data, target, "--workers", "2"]), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((target / ".pack").glob("train-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = len(list((target / ".pack").glob("*-*.json")))
    assert done < 10
    assert not (target / "manifest.json").exists()
    (target / ".train-000009.tar.partial").write_bytes(b"left by the kill")
    kept = {path: path.stat().st_mtime_ns for path in target.glob("*-*.tar")}
    assert main([str(data), str(target)]) == 0
    assert_same_pack(target, shards)
    unchanged = [path for path, changed in kept.items() if path.stat().st_mtime_ns == changed]
    assert len(unchanged) >= done


def test_a_damaged_shard_is_packed_again(data: Path, shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    shutil.copytree(shards, target)
    (target / "manifest.json").unlink()
    tar = target / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1000])
    (target / "val-000000.tar").unlink()
    assert main([str(data), str(target)]) == 0
    assert_same_pack(target, shards)


def test_a_torn_index_is_rebuilt(data: Path, shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    shutil.copytree(shards, target)
    (target / "samples.parquet").write_bytes(b"torn")
    assert main([str(data), str(target)]) == 0
    assert_same_pack(target, shards)


def test_what_cannot_be_done_is_refused(
    data: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "shards"
    (tmp_path / "few").mkdir()
    few = write_classes(tmp_path / "few/data", {"a": 2, "b": 5})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = files(tmp_path)
    assert f"{tmp_path}/gone does not exist" in refused([tmp_path / "gone", target], capsys)
    assert f"{tmp_path}/file is not a folder" in refused([tmp_path / "file", target], capsys)
    assert "holds no videos" in refused([tmp_path / "empty", target], capsys)
    assert "class 'a' has too few videos (2" in refused([few, target], capsys)
    assert "is a file" in refused([data, tmp_path / "file"], capsys)
    assert "cannot be written to" in refused([data, tmp_path / "file/shards"], capsys)
    assert "cannot be written to" in refused([data, "/proc/shards"], capsys)
    assert "lies inside" in refused([data, data / "shards"], capsys)
    assert "holds other files" in refused([data, tmp_path], capsys)
    assert "holds a complete pack already" in refused([data, shards], capsys)
    assert "--clip.num-frames: Input should be greater" in refused([data, target, "--clip.num-frames", "0"], capsys)
    assert files(tmp_path) == before
    assert not target.exists()


def test_a_wrong_folder_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/data does not exist" in refused(["data", "shards"], capsys)
    assert f"{tmp_path}/shards holds no complete pack" in refused(["verify", "shards"], capsys)
    assert f"{tmp_path}/shards holds no complete pack" in refused(["repair", "shards", "data"], capsys)
    assert f"{tmp_path}/shards holds no complete pack" in refused(["inspect", "shards"], capsys)
    assert f"looked for {tmp_path}/pack.yaml" in refused(["--config", "pack.yaml", "data", "shards"], capsys)
    write_classes(tmp_path / "data", {"a": 3}, 3)
    options = ["data", "shards", "--split.method=csv", "--lists=splits.csv"]
    assert f"{tmp_path}/splits.csv cannot be read as CSV: No such file" in refused(options, capsys)


def test_other_settings_are_not_mixed(
    data: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "shards"
    shutil.copytree(shards, target)
    (target / "manifest.json").unlink()
    before = files(target)
    message = refused([data, target, "--clip.num-frames", "8"], capsys)
    assert (
        "was packed with other settings or videos: --clip.num-frames was 16 and is 8 now: give the earlier settings"
        in message
    )
    assert files(target) == before


def test_a_second_packer_is_refused_and_ctrl_c_leaves_a_pack_to_continue(
    data: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "shards"
    first = subprocess.Popen(command([data, target]), stderr=subprocess.PIPE, text=True)
    while not (target / ".pack/plan.json").exists():
        assert first.poll() is None
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    try:
        assert "is being written by another process" in refused([data, target], capsys)
    finally:
        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "the same command continues it" in errors
    assert "Traceback" not in errors
    assert not list(target.glob(".*.partial"))
    assert main([str(data), str(target)]) == 0
    assert_same_pack(target, shards)


def test_rejected_videos_are_listed_and_may_fail_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_classes(tmp_path / "data", {"a": 12})
    cut = write_numbered_video(tmp_path / "cut.mp4", 30).read_bytes()[:1200]
    (folder / 'a/cut, and "quoted".mp4').write_bytes(cut)
    assert main([str(folder), str(tmp_path / "shards")]) == 1
    assert "7.7% of the videos were rejected, more than --max-rejected-fraction (5.0%)" in capsys.readouterr().err
    with (tmp_path / "shards/rejected.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["class_name"], row["reason"]) for row in rows] == [
        ('a/cut, and "quoted".mp4', "a", "truncated")
    ]
    half = write_numbered_video(tmp_path / "half.avi", 60, codec="mpeg4", options={"g": "5"}).read_bytes()
    (folder / "a/half.avi").write_bytes(half[: len(half) * 4 // 5])
    capsys.readouterr()
    assert main([str(folder), str(tmp_path / "again"), "--max-rejected-fraction", "0.1"]) == 0
    assert "damaged   1 of the packed" in capsys.readouterr().out


def test_a_class_emptied_by_rejection_is_not_declared_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_classes(tmp_path / "data", {"a": 6})
    (folder / "b").mkdir()
    for number in range(6):
        (folder / f"b/{number}.mp4").write_bytes(bytes([0, number]) * (900 + number))
    assert main([str(folder), str(tmp_path / "shards")]) == 1
    assert "no video of class 'b' for train can be read: see" in capsys.readouterr().err
    assert not (tmp_path / "shards/manifest.json").exists()


def test_no_argument_prints_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--max-rejected-fraction" in capsys.readouterr().out


def test_verify_names_the_bad_shard(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "shards"
    shutil.copytree(shards, target)
    assert main(["verify", str(target)]) == 0
    row = read_samples(target, "train").to_pylist()[0]
    with (target / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + row["member_offsets"][0])
        file.write(b"\0\0\0\0")
    (target / "test-000000.tar").unlink()
    capsys.readouterr()
    assert main(["verify", str(target)]) == 1
    printed = capsys.readouterr().out
    assert f"{row['shard']}: its sha256 differs from the manifest's" in printed
    assert f"{row['shard']}: sample {row['key']}: a frame is no JPEG" in printed
    assert "test-000000.tar: No such file or directory" in printed
    assert "val-000000.tar" not in printed
    assert main(["verify", str(tmp_path)]) == 2
    with pytest.raises(SystemExit):
        main(["verify"])
