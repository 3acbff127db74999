"""Reads byte ranges of shards, from a local folder or from an address; `trainer.stream.cache` has a third reader.

A reader is opened inside the process that reads, and closed by it. It knows nothing of samples.
"""

import os
from pathlib import Path
from typing import Protocol

from packer.storage.location import RemotePath

MAX_OPEN_SHARDS = 64
"""Shards that one process keeps open: far below the 1,024 files that a process may usually have open."""


class ShardReader(Protocol):
    """Reads a range of a shard."""

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only if the shard ends before."""
        ...

    def close(self) -> None:
        """Lets go of what is open."""
        ...


class LocalReader:
    """Reads shards in a local folder and keeps the most recently used ones open.

    Args:
        folder: Of the shards.
        max_open: Most shards that are open at once.
    """

    def __init__(self, folder: Path, max_open: int = MAX_OPEN_SHARDS) -> None:
        self._folder = folder
        self._max_open = max_open
        self._descriptors: dict[str, int] = {}
        """By shard, the least recently used first."""

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only if the shard ends before."""
        return os.pread(self._descriptor(shard), num_bytes, offset)

    def close(self) -> None:
        """Closes the shards that are open."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, shard: str) -> int:
        descriptor = self._descriptors.pop(shard, None)
        if descriptor is None:
            if len(self._descriptors) >= self._max_open:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = os.open(self._folder / shard, os.O_RDONLY)
        self._descriptors[shard] = descriptor
        return descriptor


class RemoteReader:
    """Reads shards at an address by range requests; each is repeated if the store fails."""

    def __init__(self, folder: RemotePath) -> None:
        self._folder = folder

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only if the shard ends before."""
        return (self._folder / shard).read_range(offset, num_bytes)

    def close(self) -> None:
        """Does nothing: no shard stays open."""
