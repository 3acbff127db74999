"""Keeps a second writer out of a target folder, local or remote.

A local target has a lock file. A store has no file locks, so a remote target has an object that names its owner. The
owner writes it again every 30 seconds and deletes it at the end. Another process takes over an owner whose process is
gone from this machine, or that has not written for 300 seconds; the machines' clocks must agree to a minute or two.
If the store can refuse to overwrite an object (S3, Google), only one of two packers that start at the same moment goes
on. If it cannot, both may go on: with equal commands they write equal bytes twice.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from pydantic import Field

from configs.section import Section, UsageError
from packer.storage.files import PARTIAL_SUFFIX
from packer.storage.location import Location, RemotePath
from packer.storage.lock import hold_lock

RECORDS = ".pack"
"""Folder in the target for the shards' records, the plan and the lock."""

BEAT_SECONDS = 30.0
DEAD_SECONDS = 300.0


@contextmanager
def locked(target: Location) -> Iterator[None]:
    """Creates the target and keeps other writers out while the block runs; the lock ends with the process.

    Raises:
        UsageError: Another process writes the target, or it cannot be written to.
    """
    if isinstance(target, RemotePath):
        with _owned(target / RECORDS / "owner.json"):
            yield
        return
    records = target / RECORDS
    busy = f"{target} is being written by another process: wait for it, or stop it"
    with ExitStack() as stack:
        try:
            records.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(records / "lock", busy))
            _hide_from_git(target)
        except OSError as error:
            raise UsageError(f"{target} cannot be written to: {error.strerror}") from error
        for folder in (target, records):
            for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
                partial.unlink()
        yield


def _hide_from_git(target: Path) -> None:
    """Makes git, and Ray's upload of a working directory, pass over the pack, whatever its folder is called."""
    if not (target / ".gitignore").exists():
        (target / ".gitignore").write_text("*\n", encoding="utf-8")


class _Owner(Section):
    """What the object of a remote target holds."""

    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    born: float = Field(default_factory=lambda: psutil.Process().create_time())
    beat: float = Field(default_factory=time.time)

    @property
    def lives(self) -> bool:
        if self.host == socket.gethostname():
            return psutil.pid_exists(self.pid) and psutil.Process(self.pid).create_time() == self.born
        return time.time() - self.beat < DEAD_SECONDS


@contextmanager
def _owned(path: RemotePath) -> Iterator[None]:
    """Owns a remote target, by the object at `path`, while the block runs."""
    try:
        owner = _Owner.model_validate_json(path.read_bytes())
        if owner.lives:
            raise UsageError(
                f"{path} says that process {owner.pid} on {owner.host} packs there: wait for it, or stop it; if it "
                f"died on another machine, wait {DEAD_SECONDS:g} s and give the command again"
            )
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    try:
        path.write_bytes(_Owner().model_dump_json().encode(), "create")
    except FileExistsError as error:
        raise UsageError(f"{path} was just written by another packer: wait for it, or stop it") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), name="owner", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        path.unlink(missing_ok=True)


def _beat(path: RemotePath, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):  # a store that fails for good fails the pack itself
            path.write_bytes(_Owner().model_dump_json().encode())
