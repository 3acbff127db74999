"""A pack that was stopped in any way is finished by the same command, to the bytes of one that was never stopped."""

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.packs import assert_same_pack, command, files, run
from tests.support.videos import write_classes

FAST = ["--clip.num-frames=2", "--clip.short-side-px=16", "--shards.max-samples=2"]
# Kills itself, as kill -9 does, before one of its next steps in the target, whichever it is; then begins again.
KILLED = """
import os, random, signal, sys
from packer.__main__ import main
import packer.report

_, num_kills, target, *arguments = sys.argv
random.seed(7)
for number in range(int(num_kills)):
    steps = random.randrange(1, 60)
    if (child := os.fork()) == 0:
        def step(event, args):
            global steps
            steps -= str(args[0]).startswith(target) if args else 0
            if not steps:
                steps = -1  # os.kill is a step too
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(step)
        sys.stdout = sys.stderr
        os._exit(main([*arguments, target, f"--workers={1 + number % 3}"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("resume") / "data", {"a": 15, "b": 14}, 4)
    (folder / "b/broken.mp4").write_bytes(bytes(2000))
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    assert run(data, data.parent / "shards", *FAST, "--workers=1") == 0
    return data.parent / "shards"


def kill_often(num_kills: int, target: Path, data: Path, *options: str) -> list[int]:
    """Returns the exit codes of as many commands, most of which are killed."""
    arguments = [sys.executable, "-c", KILLED, str(num_kills), str(target), str(data), *FAST, *options]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    codes = list(map(int, done.stdout.split()))
    assert len(codes) == num_kills
    assert set(codes) <= {-9, 0, 2}  # 2: complete already
    assert codes.count(-9) >= num_kills // 2
    return codes


def test_kills_at_random_moments(data: Path, whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    if 0 not in kill_often(12, target, data):
        assert run(data, target, *FAST) == 0
    assert_same_pack(target, whole)


def test_kills_while_appending(data: Path, whole: Path, tmp_path: Path) -> None:
    more = shutil.copytree(data, tmp_path / "data")
    for path in write_classes(tmp_path / "more", {"a": 5, "c": 4}, 5).rglob("*.mp4"):
        (more / path.parent.name).mkdir(exist_ok=True)
        path.rename(more / path.parent.name / f"new {path.name}")
    once, often = (shutil.copytree(whole, tmp_path / name) for name in ("once", "often"))
    assert run(more, once, *FAST, "--append") == 0
    kill_often(6, often, more, "--append")
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
    assert files(target) == [".pack/lock", ".pack/plan.json"]
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
