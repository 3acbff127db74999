"""Keeps a second packer out of a target that has no file locks: an object says who packs, and that it still does.

The owner writes it anew every `BEAT_SECONDS` and deletes it at the end. One that is dead, on this machine, or that has
not written for `DEAD_SECONDS`, is succeeded; machines' clocks are taken to agree within a minute or two. Where a store
can create an object only if there is none (S3, Google), two packers that start at the same moment are told apart; where
it cannot, they may both go on: under equal commands they then write equal bytes twice.
"""

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from pydantic import Field

from configs.section import Section, UsageError
from packer.storage.files import PARTIAL_SUFFIX
from packer.storage.location import Location, RemotePath

RECORDS = ".pack"
"""Folder in the target for the shards' records, the plan and the lock."""

BEAT_SECONDS = 30.0
DEAD_SECONDS = 300.0


class _Owner(Section):
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
def owned(path: RemotePath) -> Iterator[None]:
    """Holds the object at `path` for this process.

    Raises:
        UsageError: Another process holds it, or it cannot be written.
    """
    try:
        owner = _Owner.model_validate_json(path.read_bytes())
        if owner.lives:
            raise UsageError(
                f"{path} says that process {owner.pid} on {owner.host} packs there: wait for it, or stop it; one that "
                f"died on another machine is succeeded after {DEAD_SECONDS:g} s"
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


@contextmanager
def locked(target: Location) -> Iterator[None]:
    """Creates the target and keeps other packers out; the lock goes with the process, however it ends."""
    if isinstance(target, RemotePath):
        with owned(target / RECORDS / "owner.json"):
            yield
        return
    records = target / RECORDS
    try:
        records.mkdir(parents=True, exist_ok=True)
        lock = (records / "lock").open("wb")
    except OSError as error:
        raise UsageError(f"{target} cannot be written to: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{target} is being written by another process: wait for it, or stop it") from None
        for folder in (target, records):
            for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
                partial.unlink()
        yield
