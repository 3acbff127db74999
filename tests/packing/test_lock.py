"""Only one process holds a lock file at a time, and a lock ends with its process, even if that is killed."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from packer.storage.lock import LockHeldError, hold_lock

HOLDER = """
import sys, time
from pathlib import Path
from packer.storage.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_lock_is_refused_until_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockHeldError, match=r"^wait for it$"), hold_lock(path, "wait for it"):
            pass
        with pytest.raises(LockHeldError, match=f"{path} is locked by another process"), hold_lock(path):
            pass
        holder.kill()
    with hold_lock(path):
        pass


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    events = []

    def wait() -> None:
        with hold_lock(tmp_path / "lock", wait=True):
            events.append("second")

    with hold_lock(tmp_path / "lock"):
        second = threading.Thread(target=wait)
        second.start()
        second.join(0.2)
        events.append("first")
    second.join(30)
    assert events == ["first", "second"]


def test_an_existing_file_is_locked_without_being_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), hold_lock(tmp_path / "lock", create=False):
        pass
    (tmp_path / "lock").write_text("notes")
    (tmp_path / "lock").chmod(0o444)
    lock = hold_lock(tmp_path / "lock", create=False)
    with lock, pytest.raises(LockHeldError), hold_lock(tmp_path / "lock", create=False):
        pass
    assert (tmp_path / "lock").read_text() == "notes"
