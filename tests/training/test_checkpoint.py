"""Checkpoints survive a kill, a full disk and an incomplete copy."""

import json
import logging
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from configs.section import UsageError
from trainer.stream.loader import PRELOADED
from trainer.worker.checkpoint import CheckpointStore, State

# What Python tells an audit hook before it touches a file: a process can be killed at each of these moments.
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree"}


def state(step: int) -> State:
    return {"model": {"weight": torch.full((1000,), float(step))}, "global_step": step, "best": None, "figures": [0.5]}


def save(store: CheckpointStore, *steps: int, best_step: int | None = None) -> None:
    for step in steps:
        store.save(state(step), step, best_step)


def newest(store: CheckpointStore) -> int | None:
    """The step of the newest checkpoint, whose content must be what was saved."""
    loaded = store.load_newest()
    if loaded is None:
        return None
    assert torch.equal(loaded["model"]["weight"], state(loaded["global_step"])["model"]["weight"])
    assert loaded.keys() == state(0).keys()
    return int(loaded["global_step"])


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def test_a_new_run_has_no_checkpoint(store: CheckpointStore) -> None:
    assert store.steps() == []
    assert store.load_newest() is None


def test_the_newest_two_and_the_best_are_kept(store: CheckpointStore) -> None:
    kept = []
    for step, best_step in ((5, None), (9, 9), (12, 9), (99, 9), (100, 9), (1000, 1000), (1001, 1000)):
        save(store, step, best_step=best_step)
        kept.append(store.steps())
    assert kept == [[5], [9, 5], [12, 9], [99, 12, 9], [100, 99, 9], [1000, 100], [1001, 1000]]
    assert newest(store) == 1001
    assert store.load(1000)["global_step"] == 1000
    assert sorted(path.name for path in store.folder.glob("*/")) == [".writing", "step-0000001000", "step-0000001001"]


def test_a_folder_holds_the_state_and_its_digest(store: CheckpointStore) -> None:
    path = store.save(state(7), 7, None)
    assert path == store.folder / "step-0000000007"
    assert sorted(file.name for file in path.iterdir()) == ["COMPLETE.json", "state.pt"]
    complete = json.loads((path / "COMPLETE.json").read_text())
    assert complete["state.pt"]["bytes"] == (path / "state.pt").stat().st_size
    assert torch.load(path / "state.pt", weights_only=True)["global_step"] == 7


def test_the_same_step_is_written_again(store: CheckpointStore) -> None:
    save(store, 3, 4)
    store.save({**state(4), "figures": [0.9]}, 4, None)
    loaded = store.load_newest()
    assert loaded is not None
    assert loaded["figures"] == [0.9]
    assert store.steps() == [4, 3]


def cut(path: Path) -> None:
    os.truncate(path / "state.pt", 1000)


def empty(path: Path) -> None:
    (path / "state.pt").write_bytes(b"")


def lose(path: Path) -> None:
    (path / "state.pt").unlink()


def flip(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


def lose_complete(path: Path) -> None:
    (path / "COMPLETE.json").unlink()


def cut_complete(path: Path) -> None:
    os.truncate(path / "COMPLETE.json", 30)


def zero_complete(path: Path) -> None:
    (path / "COMPLETE.json").write_bytes(bytes(100))


def empty_complete(path: Path) -> None:
    (path / "COMPLETE.json").write_text("{}")


def number_complete(path: Path) -> None:
    (path / "COMPLETE.json").write_text("5")


def empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


BREAKS = [
    cut,
    empty,
    lose,
    flip,
    lose_complete,
    cut_complete,
    zero_complete,
    empty_complete,
    number_complete,
    empty_folder,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_a_broken_checkpoint_falls_back_to_the_one_before(
    store: CheckpointStore, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, 10, 20)
    damage(store.folder / "step-0000000020")  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert newest(store) == 10
    (record,) = caplog.records
    assert record.getMessage().startswith(f"checkpoint ignored path={store.folder / 'step-0000000020'} reason=")
    with pytest.raises(UsageError, match=r"step-0000000020 is not a complete checkpoint: start the run anew"):
        store.load(20)
    save(store, 15)
    assert newest(store) == 15
    save(store, 20)
    assert newest(store) == 20


def test_a_checkpoint_just_written_stays_though_broken_later_ones_are_there(store: CheckpointStore) -> None:
    save(store, 10, best_step=10)
    save(store, 20, 30, best_step=10)
    for step in (20, 30):
        flip(store.folder / f"step-{step:010d}")
    assert newest(store) == 10
    save(store, 12, best_step=10)
    assert newest(store) == 12
    assert store.steps() == [12, 10]


def test_a_storage_that_cannot_be_read_is_not_taken_for_an_empty_one(store: CheckpointStore) -> None:
    """Otherwise the run would begin anew and lose its checkpoints."""
    save(store, 10, 20)
    make_unreadable(store.folder / "step-0000000020" / "state.pt")
    assert newest(store) == 10
    make_unreadable(store.folder / "step-0000000010" / "state.pt")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        store.load_newest()
    with pytest.raises(OSError, match="Too many levels"):
        store.load(20)
    save(store, 20)
    assert newest(store) == 20


def make_unreadable(path: Path) -> None:
    """Makes every attempt to read a file fail, for root too."""
    path.unlink()
    path.symlink_to(path)


def test_a_missing_checkpoint_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(UsageError, match=r"step-0000000003 is not a complete checkpoint"):
        store.load(3)


def save_and_die(folder: Path, step: int, moment: int) -> None:
    """Saves a checkpoint and kills itself just before it touches a file for the `moment`-th time."""
    num_events = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal num_events
        if event in FILE_EVENTS:
            num_events += 1
            if num_events == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save(CheckpointStore(folder), step, best_step=10)


def die_at_every_moment(folder: Path, step: int) -> None:
    """Leaves `<folder>/<moment>` as a process killed at each moment left it; the last one was not killed."""
    moment, killed = 0, True
    while killed:
        moment += 1
        save(CheckpointStore(folder / str(moment)), 10, 15, 20, best_step=10)
        child = os.fork()
        if not child:
            save_and_die(folder / str(moment), step, moment)
            os._exit(0)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize(("step", "fewest"), [(30, 10), (20, 12)])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, step: int, fewest: int) -> None:
    """Of a new step, and of one that is written again over a folder that is there."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=die_at_every_moment, args=(tmp_path, step))
    process.start()
    process.join()
    assert process.exitcode == 0
    left = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(left) > fewest
    for folder in left:
        store = CheckpointStore(folder)
        assert newest(store) in ({step} if folder == left[-1] else {15, 20, step})
        assert store.load(10)["global_step"] == 10
        save(store, step, best_step=10)
        assert newest(store) == step
        assert not list(folder.glob(".*/*"))


@pytest.fixture
def _small_files() -> Iterator[None]:
    """Files of this process may have 300 kB, as if the disk were full then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("_small_files")
@pytest.mark.parametrize("num_values", [75_000, 200_000, 2_000_000])
def test_a_full_disk_leaves_the_checkpoint_before(store: CheckpointStore, num_values: int) -> None:
    save(store, 1, 2)
    large = {**state(3), "model": {"weight": torch.zeros(num_values)}}
    with pytest.raises(OSError, match="File too large"):
        store.save(large, 3, None)
    assert newest(store) == 2
    assert store.steps() == [2, 1]
    save(store, 3)
    assert newest(store) == 3


def test_an_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        save(CheckpointStore(tmp_path / "file" / "checkpoints"), 1)
