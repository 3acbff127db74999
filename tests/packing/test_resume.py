"""A pack that was stopped in any way is finished by the same command, to the bytes of one that was never stopped."""

import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.killing import kill_often
from tests.support.packs import assert_same_pack, command, files, run
from tests.support.videos import write_classes

FAST = ["--clip.num-frames=2", "--clip.short-side-px=16", "--shards.max-samples=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("resume") / "data", {"a": 15, "b": 14}, 4)
    (folder / "b/broken.mp4").write_bytes(bytes(2000))
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    assert run(data, data.parent / "shards", *FAST, "--workers=1") == 0
    return data.parent / "shards"


def test_kills_at_random_moments(data: Path, whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    if 0 not in kill_often(12, target, data, *FAST):
        assert run(data, target, *FAST) == 0
    assert_same_pack(target, whole)


def test_kills_while_appending(data: Path, whole: Path, tmp_path: Path) -> None:
    more = shutil.copytree(data, tmp_path / "data")
    for path in write_classes(tmp_path / "more", {"a": 5, "c": 4}, 5).rglob("*.mp4"):
        (more / path.parent.name).mkdir(exist_ok=True)
        path.rename(more / path.parent.name / f"new {path.name}")
    once, often = (shutil.copytree(whole, tmp_path / name) for name in ("once", "often"))
    assert run(more, once, *FAST, "--append") == 0
    kill_often(6, often, more, *FAST, "--append")
    assert run(more, often, *FAST, "--append") == 0
    assert_same_pack(often, once)


def test_a_full_disk_is_said_and_continued(data: Path, whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    most = min(path.stat().st_size for path in whole.glob("*.tar")) - 1
    done = subprocess.run(
        command([data, target, *FAST, "--workers=1"]),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "File too large: make room, then the same command continues it" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(target) == [".gitignore", ".pack/lock", ".pack/plan.json"]
    assert run(data, target, *FAST, "--workers=2") == 0
    assert_same_pack(target, whole)


def test_a_lost_target_is_said_and_made_again(data: Path, whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    process = subprocess.Popen(command([data, target, *FAST, "--workers=1"]), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (target / ".pack/train-000000.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    target.rename(tmp_path / "lost")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No such file or directory" in errors
    assert "Traceback" not in errors
    assert run(data, target, *FAST) == 0
    assert_same_pack(target, whole)
    assert run(data, tmp_path / "lost", *FAST) == 0  # what was there goes on too
    assert_same_pack(tmp_path / "lost", whole)
