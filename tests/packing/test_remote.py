"""Packs from and to a real S3 server: the bytes, refusals and repairs are those of local folders."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from packer.storage.files import write_atomically
from packer.storage.location import RemotePath
from tests.support.packs import assert_same_pack, command, refused, run
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.s3 import get_folder, put_folder
from tests.support.training import project
from tests.support.videos import write_classes
from tests.support.web import web_server
from trainer.schedule.order import Shuffle
from trainer.schedule.rows import Row
from trainer.schedule.schedule import Schedule
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader

pytestmark = [pytest.mark.integration, *MLFLOW_WARNINGS]

FAST = ["--clip.num-frames=2", "--clip.short-side-px=16", "--shards.max-samples=2", "--max-rejected-fraction=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("remote") / "data", {"a": 9, "b": 8}, 4)
    (folder / "a/sub folder").mkdir()
    shutil.copy(folder / "a/video 0.mp4", folder / "a/sub folder/#1 [é] 100%?.mp4")
    (folder / "b/notes.txt").write_text("no video")
    (folder / "b/empty.mp4").touch()
    (folder / "b/broken.mp4").write_bytes(bytes(2000))
    (folder / "readme").write_text("beside the classes")
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    assert run(data, data.parent / "shards", *FAST, "--workers=1") == 0
    return data.parent / "shards"


def assert_same_remote(url: str, whole: Path, tmp_path: Path) -> None:
    got = get_folder(url, tmp_path / "got")
    (got / ".pack/lock").touch()  # the lock of a local pack is a file that stays
    shutil.copy(whole / ".gitignore", got)  # a store has no use for it
    assert_same_pack(got, whole)


def test_the_bytes_are_those_of_a_local_pack(data: Path, whole: Path, bucket: str, tmp_path: Path) -> None:
    put_folder(data, f"{bucket}/data")
    assert run(f"{bucket}/data/", f"{bucket}/deep/shards", *FAST, "--workers=2") == 0
    assert_same_remote(f"{bucket}/deep/shards", whole, tmp_path)


def test_a_killed_pack_is_continued(data: Path, whole: Path, bucket: str, tmp_path: Path) -> None:
    target = f"{bucket}/shards"
    process = subprocess.Popen(command([data, target, *FAST, "--workers=1"]), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not RemotePath(f"{target}/.pack/train-000001.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not RemotePath(f"{target}/manifest.json").exists()
    before = RemotePath(f"{target}/.pack/train-000000.json").read_bytes()
    assert run(data, target, *FAST) == 0
    assert RemotePath(f"{target}/.pack/train-000000.json").read_bytes() == before
    assert_same_remote(target, whole, tmp_path)


def test_a_second_packer_is_refused(data: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{bucket}/shards"
    lock = RemotePath(f"{target}/.pack/owner.json")
    born = psutil.Process().create_time()
    here = {"host": socket.gethostname(), "pid": os.getpid(), "born": born, "beat": time.time()}
    for owner, lives in [
        (here, True),
        (here | {"host": "elsewhere", "pid": 1}, True),
        (here | {"host": "elsewhere", "pid": 1, "beat": time.time() - 301}, False),
        (here | {"born": 0}, False),
    ]:
        lock.write_bytes(json.dumps(owner).encode())
        if lives:
            assert f"process {owner['pid']} on {owner['host']} packs there" in refused([data, target, *FAST], capsys)
    assert run(data, target, *FAST) == 0
    assert not lock.exists()
    lock.write_bytes(b"", "create")
    with pytest.raises(FileExistsError):
        lock.write_bytes(b"", "create")


def test_verify_repair_inspect_and_append(
    data: Path, whole: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"{bucket}/shards"
    put_folder(whole, target)
    assert run("verify", target) == 0
    shard = RemotePath(f"{target}/train-000001.tar")
    damaged = bytearray(shard.read_bytes())
    damaged[5000] ^= 1
    shard.write_bytes(bytes(damaged))
    RemotePath(f"{target}/val-000000.tar").unlink()
    capsys.readouterr()
    assert run("verify", target) == 1
    output = capsys.readouterr().out
    assert "train-000001.tar: its sha256 differs from the manifest's" in output
    assert "val-000000.tar: No such file or directory" in output
    assert run("repair", target, data) == 0
    assert run("verify", target) == 0
    assert_same_remote(target, whole, tmp_path)
    assert run("inspect", target, "--sheet", str(tmp_path / "sheet.html")) == 0
    more = shutil.copytree(data, tmp_path / "data")
    shutil.copy(data / "a/video 1.mp4", more / "a/new.mp4")
    local = shutil.copytree(whole, tmp_path / "local")
    for where in (target, local):
        assert run(more, where, *FAST, "--append") == 0
    assert_same_remote(target, local, tmp_path / "appended")


def test_what_cannot_be_is_refused(data: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused([f"{bucket}/nothing", f"{bucket}/shards"], capsys)
    assert "does not exist" in refused(["s3://no-such-bucket-at-all/x", f"{bucket}/shards"], capsys)
    put_folder(data, f"{bucket}/data")
    assert "lies inside" in refused([f"{bucket}/data", f"{bucket}/data/shards"], capsys)
    assert "holds other files" in refused([data, f"{bucket}/data"], capsys)
    assert "Protocol not known: nowhere" in refused([data, "nowhere://shards"], capsys)
    assert "holds no complete pack" in refused(["verify", f"{bucket}/data"], capsys)


def test_large_files_go_up_in_parts(bucket: str, tmp_path: Path) -> None:
    path = RemotePath(f"{bucket}/large")
    block = os.urandom(2**20)
    with write_atomically(path) as file:
        for _ in range(101):
            file.write(block)
    path.download(tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == block * 101
    from fsspec import filesystem

    assert filesystem("s3").info(path.url)["ETag"].strip('"').endswith("-3")  # how S3 marks an upload of 3 parts
    with pytest.raises(OSError, match="stopped"), write_atomically(RemotePath(f"{bucket}/other")):
        raise OSError("stopped")
    assert not RemotePath(f"{bucket}/other").exists()


def test_the_trainer_streams_what_it_streams_from_a_folder(packed: Path, bucket: str) -> None:
    put_folder(packed, f"{bucket}/shards")
    streams = []
    for folder in (packed, RemotePath(f"{bucket}/shards")):
        index = SampleIndex.open(folder, "train")
        schedule = Schedule(index.shard_sizes, 4, num_epochs=2, shuffle=Shuffle(seed=0, block=8))
        streams.append(list(make_loader(index, schedule, as_stored, 32)))
    assert len(streams[0]) > 8
    for local, remote in zip(*streams, strict=True):
        assert torch.equal(local.clips, remote.clips)
        assert (local.rows, local.errors) == (remote.rows, remote.errors) == (local.rows, ())


def test_the_trainer_counts_a_sample_that_cannot_be_read(packed: Path, bucket: str) -> None:
    put_folder(packed, f"{bucket}/shards")
    index = SampleIndex.open(RemotePath(f"{bucket}/shards"), "val")
    RemotePath(f"{bucket}/shards/{index.shards[0]}").unlink()
    batches = list(make_loader(index, Schedule(index.shard_sizes, 4), as_stored, 32))
    assert "val-000000.tar at byte 0) cannot be read: [Errno 2] No such file or directory" in batches[0].errors[0]


def test_a_sample_that_was_damaged_on_its_way_is_read_again(packed: Path) -> None:
    with web_server(packed, "--damage-first") as server:
        index = SampleIndex.open(RemotePath(server.url), "train")
        batches = list(make_loader(index, Schedule(index.shard_sizes, 7), as_stored, 32))
        asked = server.counts()["part"]
    assert not [error for batch in batches for error in batch.errors]
    assert sum(asked[f"/{shard}"] for shard in index.shards) == 2 * index.num_samples


@pytest.mark.timeout(1800)
def test_a_training(packed: Path, bucket: str, tmp_path: Path) -> None:
    put_folder(packed, f"{bucket}/shards")
    with project(tmp_path, packed) as made:
        options = ["--epochs", "1", "--loader-workers", "1", "--shards", f"{bucket}/shards", "--cache", "cache"]
        done = made.train(*options, "--run", "far")
        assert done.code == 0
        assert list((made.home / "cache").glob("*.tar"))
        assert "registered clipstream version 1" in done.log


def as_stored(frames: torch.Tensor, row: Row) -> torch.Tensor:
    return frames
