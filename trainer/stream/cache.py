"""A bounded cache of whole shards on a machine's own disk, for shards at an address; all its processes share it.

It never makes anybody wait: what is not there yet is read by range, as without a cache, while the whole shard comes in
behind. A shard gets its name only once its sha256 is the manifest's, so a kill at any moment leaves nothing that is
read. Beside `KEY.tar` lies `KEY.lock`: whoever downloads or checks the shard holds it by flock, which a killed process
lets go of; it says what the file looked like when its sha256 was checked, so that a file that was changed since is
checked again; and its time tells when the shard was last read. The least recently read ones make room for a new one,
before it is downloaded. Readers hold nothing: a file that is open while it is deleted keeps its bytes until it is read.
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
    """A cache's folder and its bound; any number of packs and runs may share it."""

    folder: Path
    max_bytes: int


class CachedShard:
    """One shard of an address, as this machine may hold it."""

    def __init__(self, cache: ShardCache, remote: RemotePath, summary: ShardSummary) -> None:
        self.remote = remote
        self._cache = cache
        self._summary = summary
        self._is_asked_for = False
        key = hashlib.sha256(f"{remote} {summary.sha256}".encode()).hexdigest()
        self._path = cache.folder / f"{key}.tar"
        self._lock = cache.folder / f"{key}.lock"
        # Its size is in its name: it is taken from the room that is left before the first byte comes.
        self._partial = cache.folder / f"{key}.{summary.num_bytes}{PARTIAL_SUFFIX}"
        self._checked = ""

    def read(self, offset: int, num_bytes: int) -> bytes | None:
        """Returns bytes of the shard, or None where the cache does not hold it, whole and unchanged since its check."""
        try:
            with self._path.open("rb", buffering=0) as file:
                look = _look(file)
                if look != self._checked:
                    self._checked = self._lock.read_text().rstrip()
                if look != self._checked:
                    return None
                now = time.time_ns()  # the kernel's own time for files stands still for milliseconds
                os.utime(self._lock, ns=(now, now))
                return os.pread(file.fileno(), num_bytes, offset)
        except FileNotFoundError:
            return None

    def fetch_by(self, executor: ThreadPoolExecutor) -> None:
        """Lets another thread download the shard, unless one was asked to already."""
        if not self._is_asked_for:
            self._is_asked_for = True
            executor.submit(self._fetch)

    def _fetch(self) -> None:
        """Downloads the shard, unless another process does, or it is there; a shard that cannot be had is let be."""
        try:
            with hold_lock(self._lock) as lock:
                self._partial.unlink(missing_ok=True)  # of a process that was killed
                os.utime(lock)
                if self._is_whole(self._path) or self._download():
                    with self._path.open("rb", buffering=0) as file:
                        os.pwrite(lock, _look(file).encode().ljust(128), 0)
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
                raise OSError("its sha256 is not the manifest's")
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)
        return True

    def _make_room(self) -> bool:
        """Deletes the least recently read shards until this one fits, and takes its room; False where it cannot fit."""
        folder = self._cache.folder
        with hold_lock(folder / ".lock", wait=True):
            self._path.unlink(missing_ok=True)  # not whole, or there would be nothing to download
            room = self._cache.max_bytes - sum(map(_room_of, folder.glob(f"*{PARTIAL_SUFFIX}")))
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
    """Reads shards at an address through a cache; opened inside the process that reads."""

    def __init__(self, cache: ShardCache, folder: RemotePath, summaries: tuple[ShardSummary, ...]) -> None:
        cache.folder.mkdir(parents=True, exist_ok=True)
        self._cache = cache
        self._folder = folder
        self._summaries = {summary.name: summary for summary in summaries}
        self._shards: dict[str, CachedShard] = {}
        # One at a time: the window of the order moves through the shards one after the other.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="shard-cache")

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only where the shard ends."""
        if shard not in self._shards:
            self._shards[shard] = CachedShard(self._cache, self._folder / shard, self._summaries[shard])
        cached = self._shards[shard]
        data = cached.read(offset, num_bytes)
        if data is None:
            cached.fetch_by(self._executor)
            data = cached.remote.read_range(offset, num_bytes)
        return data

    def close(self) -> None:
        """Downloads no more than what has begun."""
        self._executor.shutdown(cancel_futures=True)


def _look(file: FileIO) -> str:
    """Returns what changes when a file does."""
    status = os.fstat(file.fileno())
    return f"inode={status.st_ino} bytes={status.st_size} changed={status.st_mtime_ns}"


def _room_of(partial: Path) -> int:
    """Returns the bytes that a download takes, or will; one whose process was killed is deleted and takes none."""
    key, num_bytes = partial.name.removesuffix(PARTIAL_SUFFIX).split(".")
    try:
        with hold_lock(partial.with_name(f"{key}.lock")):
            partial.unlink(missing_ok=True)
            return 0
    except LockHeldError:
        return int(num_bytes)
