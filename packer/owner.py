"""Keeps a second packer out of a target that has no file locks: an object says who packs, and that it still does.

The owner writes it anew every `BEAT_SECONDS` and deletes it at the end. One that is dead, on this machine, or that has
not written for `DEAD_SECONDS`, is succeeded; machines' clocks are taken to agree within a minute or two. Where a store
can create an object only if there is none (S3, Google), two packers that start at the same moment are told apart; where
it cannot, they may both go on: under equal commands they then write equal bytes twice.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import psutil
from pydantic import Field, ValidationError

from configs.load import Section, UsageError
from packer.storage import RemotePath

BEAT_SECONDS = 30.0
DEAD_SECONDS = 300.0


class _Owner(Section):
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    born: float = Field(default_factory=lambda: psutil.Process().create_time())
    beat: float = Field(default_factory=time.time)

    @classmethod
    def read(cls, path: RemotePath) -> Self | None:
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

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
        if (owner := _Owner.read(path)) is not None:
            if owner.lives:
                raise _taken(path, owner)
            path.unlink(missing_ok=True)
        path.write_bytes(_Owner().model_dump_json().encode(), "create")
    except FileExistsError as error:
        raise _taken(path, _Owner.read(path)) from error
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
        path.write_bytes(_Owner().model_dump_json().encode())


def _taken(path: RemotePath, owner: _Owner | None) -> UsageError:
    who = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return UsageError(
        f"{path} says that {who} packs there: wait for it, or stop it; one that died on another machine is succeeded "
        f"after {DEAD_SECONDS:g} s"
    )
