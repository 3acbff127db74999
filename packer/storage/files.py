"""Where videos, shards and their index lie: a local folder, or an address such as s3://bucket/shards.

A local place is a `pathlib.Path`; a remote one is a `RemotePath`, which has the few methods of Path that the packer
uses and goes through fsspec, which is imported only then. Files are written so that a reader, and a next run after a
kill, finds each whole or not at all: locally by a rename, remotely by one upload, which stores make visible at its end.
Remote files are read as byte ranges or as temporary copies, one file at a time.
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

_NUM_READERS = 32

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def read_many(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], is_remote: bool, num_ahead: int = 1000
) -> Generator[ResultT, None, None]:
    """Yields `function(item)` for every item, in order.

    Where each waits for a distant answer, 32 are read at once, and up to `num_ahead` before they are asked for.
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
    """Returns `num_bytes` bytes of a file from `offset`; fewer only where it ends."""
    if isinstance(location, RemotePath):
        return location.read_range(offset, num_bytes)
    with location.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), num_bytes, offset)


@contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """Yields the file as a local one: itself, or a temporary copy that goes with the block."""
    if isinstance(location, Path):
        yield location
        return
    with tempfile.NamedTemporaryFile(prefix="clipstream-") as file:
        location.download(Path(file.name))
        yield Path(file.name)


@contextmanager
def write_atomically(path: Location) -> Iterator[BufferedRandom]:
    """Yields a file that gets its name, durably, only when the block ends well; otherwise it is removed."""
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
    """Makes the names of a folder's files durable."""
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
    """Returns the sha256 of an open file's bytes, those just written among them."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
