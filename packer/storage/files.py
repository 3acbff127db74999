"""Reads and writes whole files and ranges of files, local and remote alike.

A file is written so that a reader, or the next run after a kill, finds it whole or not at all: a local file is renamed
at the end, a remote one is uploaded at once, and stores show an upload only when it has ended. A remote file is read by
byte ranges or as a temporary copy.
"""

import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import TypeVar

from packer.storage.location import Location, RemotePath

PARTIAL_SUFFIX = ".partial"
"""End of the name that a local file has while it is written."""

_NUM_READERS = 32
"""Threads that read a remote store at once."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def read_many(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], is_remote: bool, num_ahead: int = 1000
) -> Generator[ResultT, None, None]:
    """Yields `function(item)` for every item, in order.

    If the items are remote, 32 threads read them, up to `num_ahead` items before the caller asks for them.
    """
    if not is_remote:
        yield from map(function, items)
        return
    waiting: deque[Future[ResultT]] = deque()
    executor = ThreadPoolExecutor(_NUM_READERS)
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def read_range(location: Location, offset: int, num_bytes: int) -> bytes:
    """Returns `num_bytes` bytes of a file from `offset`; fewer only at its end."""
    if isinstance(location, RemotePath):
        return location.read_range(offset, num_bytes)
    with location.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), num_bytes, offset)


@contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """Yields the path of a local file: the file itself, or a temporary copy that is deleted when the block ends."""
    if isinstance(location, Path):
        yield location
        return
    with tempfile.NamedTemporaryFile(prefix="clipstream-") as file:
        location.download(Path(file.name))
        yield Path(file.name)


@contextmanager
def write_atomically(path: Location) -> Iterator[BufferedRandom]:
    """Yields an open file that gets its name, on disk for good, only if the block ends without an error."""
    if isinstance(path, RemotePath):
        with tempfile.NamedTemporaryFile(prefix="clipstream-") as temporary:
            with Path(temporary.name).open("w+b") as file:
                yield file
            path.upload(Path(temporary.name))
        return
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        with partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes sure that the names of a folder's files survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Location) -> str:
    """Returns the sha256 of a file's bytes, in hex."""
    with local_copy(path) as local, local.open("rb") as file:
        return open_sha256(file)


def open_sha256(file: BufferedRandom | BufferedReader) -> str:
    """Returns the sha256, in hex, of all bytes of an open file, including those just written."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
