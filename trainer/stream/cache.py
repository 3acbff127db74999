"""A bounded cache of whole shards on a machine's own disk, for shards at an address; all its processes share it.

It never makes anyone wait: a shard that is not cached yet is read by range, as without a cache, while a thread
downloads it whole. A shard gets its name `KEY.tar` only once its sha256 is that of the manifest, so a process that is
killed at any moment leaves no damaged shard to be read. Beside it lies `KEY.lock`, which does three things:

- a process that downloads or checks the shard locks it; the lock ends with the process, even if that is killed;
- its text describes the file as it was when its sha256 was checked, so a file that has changed since is checked again;
- its time tells when the shard was last read: the least recently read shards make room for a new one.

Readers hold no lock: an open file that is deleted keeps its bytes until it is closed.
"""

import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from packer.shards.manifest import ShardSummary
from packer.storage.files import PARTIAL_SUFFIX, file_sha256
from packer.storage.location import RemotePath
from packer.storage.lock import LockHeldError, hold_lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardCache:
    """A cache's folder and its size; any number of packs and runs may share it."""

    folder: Path
    max_bytes: int


class CachedShard:
    """One shard at an address, and the copy of it that this machine may have."""

    def __init__(self, cache: ShardCache, remote: RemotePath, summary: ShardSummary) -> None:
        self.remote = remote
        self._cache = cache
        self._summary = summary
        self._is_asked_for = False
        key = hashlib.sha256(f"{remote} {summary.sha256}".encode()).hexdigest()
        self._path = cache.folder / f"{key}.tar"
        self._lock = cache.folder / f"{key}.lock"
        # The shard's size is in the name, so its room counts as taken before the first byte arrives.
        self._partial = cache.folder / f"{key}.{summary.num_bytes}{PARTIAL_SUFFIX}"
        self._checked = ""

    def read(self, offset: int, num_bytes: int) -> bytes | None:
        """Returns bytes of the shard, or None unless the cache holds it whole and unchanged since its check."""
        try:
            with self._path.open("rb", buffering=0) as file:
                state = _state_of(file)
                if state != self._checked:
                    self._checked = self._lock.read_text().rstrip()
                if state != self._checked:
                    return None
                now = time.time_ns()  # finer than the kernel's own time stamps, which stand still for milliseconds
                os.utime(self._lock, ns=(now, now))
                return os.pread(file.fileno(), num_bytes, offset)
        except FileNotFoundError:
            return None

    def fetch_by(self, executor: ThreadPoolExecutor) -> None:
        """Lets a thread of `executor` download the shard, unless one has been asked to already."""
        if not self._is_asked_for:
            self._is_asked_for = True
            executor.submit(self._fetch)

    def _fetch(self) -> None:
        """Downloads the shard, unless it is there or another process does; a failure is logged and not repeated."""
        try:
            with hold_lock(self._lock) as lock:
                self._partial.unlink(missing_ok=True)  # left by a process that was killed
                os.utime(lock)
                if self._is_whole(self._path) or self._download():
                    with self._path.open("rb", buffering=0) as file:
                        os.pwrite(lock, _state_of(file).encode().ljust(128), 0)
            self._is_asked_for = False
        except LockHeldError:
            self._is_asked_for = False
        except OSError as error:
            logger.warning("shard not cached shard=%s reason=%s", self.remote, error)

    def _is_whole(self, path: Path) -> bool:
        return path.exists() and file_sha256(path) == self._summary.sha256

    def _download(self) -> bool:
        try:
            if not self._make_room():
                return False
            self.remote.download(self._partial)
            if not self._is_whole(self._partial):
                raise OSError("its sha256 differs from the manifest's")
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)
        return True

    def _make_room(self) -> bool:
        """Deletes the least recently read shards until this one fits, and reserves its room; False if it cannot fit."""
        folder = self._cache.folder
        with hold_lock(folder / ".lock", wait=True):
            self._path.unlink(missing_ok=True)  # it is not whole: otherwise nothing would be downloaded
            room = self._cache.max_bytes - sum(map(_bytes_reserved, folder.glob(f"*{PARTIAL_SUFFIX}")))
            if room < self._summary.num_bytes:
                return False
            shards = sorted(folder.glob("*.tar"), key=lambda path: path.with_suffix(".lock").stat().st_mtime)
            room -= sum(path.stat().st_size for path in shards)
            for oldest in shards:
                if room >= self._summary.num_bytes:
                    break
                room += oldest.stat().st_size
                oldest.unlink()
            self._partial.touch()
            return True


class CachedReader:
    """Reads shards at an address through a cache; a `trainer.stream.readers.ShardReader`.

    Args:
        cache: Its folder is created.
        folder: Of the shards.
        summaries: What the manifest says of each shard.
    """

    def __init__(self, cache: ShardCache, folder: RemotePath, summaries: tuple[ShardSummary, ...]) -> None:
        cache.folder.mkdir(parents=True, exist_ok=True)
        self._cache = cache
        self._folder = folder
        self._summaries = {summary.name: summary for summary in summaries}
        self._shards: dict[str, CachedShard] = {}
        # One download at a time: the order's window moves through the shards one after another.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="shard-cache")

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only if the shard ends before."""
        if shard not in self._shards:
            self._shards[shard] = CachedShard(self._cache, self._folder / shard, self._summaries[shard])
        cached = self._shards[shard]
        data = cached.read(offset, num_bytes)
        if data is None:
            cached.fetch_by(self._executor)
            data = cached.remote.read_range(offset, num_bytes)
        return data

    def close(self) -> None:
        """Waits for a download that has begun, and starts no other."""
        self._executor.shutdown(cancel_futures=True)


def _state_of(file: FileIO) -> str:
    """Returns a text that changes when the file does."""
    status = os.fstat(file.fileno())
    return f"inode={status.st_ino} bytes={status.st_size} changed={status.st_mtime_ns}"


def _bytes_reserved(partial: Path) -> int:
    """Returns the bytes that a download will take; one whose process was killed is deleted and takes none."""
    key, num_bytes = partial.name.removesuffix(PARTIAL_SUFFIX).split(".")
    try:
        with hold_lock(partial.with_name(f"{key}.lock")):
            partial.unlink(missing_ok=True)
            return 0
    except LockHeldError:
        return int(num_bytes)
