"""A lock file: only one process holds it at a time, and it is free again when that process ends.

The lock is the kernel's (flock). It guards what lies on this machine's disks, and on network disks that support it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.section import UsageError


class LockHeldError(UsageError):
    """Another process holds the lock."""


@contextmanager
def hold_lock(path: Path, busy: str = "", *, wait: bool = False, create: bool = True) -> Iterator[int]:
    """Holds a lock file while the block runs.

    Args:
        path: The lock file.
        busy: The sentence of the error if another process holds the lock; by default it names the path.
        wait: Wait for a process that holds the lock, instead of raising.
        create: Make the file if it is missing, and open it to be read and written. If False, the file must be there,
            and is opened to be read.

    Yields:
        The descriptor of the open file, in which the holder may keep notes.

    Raises:
        LockHeldError: Another process holds the lock, and `wait` is False.
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockHeldError(busy or f"{path} is locked by another process") from error
        yield descriptor
    finally:
        os.close(descriptor)
