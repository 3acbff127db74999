"""Where the samples of a split lie in its shards, and how one of them is read.

A sample is one contiguous range of a tar, which the index locates: one read, no walk through the tar. What comes back
is an ordinary WebDataset sample dict.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from packer.shards.manifest import SAMPLES, ManifestError, ShardSummary, read_manifest, read_samples
from packer.shards.sample import members_crc32, read_members
from packer.storage.location import Location, RemotePath
from trainer.stream.cache import CachedReader, ShardCache
from trainer.stream.shared_array import mapped

MAX_OPEN_SHARDS = 64

Sample = dict[str, Any]


class SampleError(ValueError):
    """A sample that cannot be read; its text names the sample's place and what is wrong there."""


class ShardReader(Protocol):
    """Reads a range of a shard; opened inside the process that reads."""

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only where the shard ends."""
        ...

    def close(self) -> None:
        """Lets go of what is open."""
        ...


class LocalReader:
    """Reads shards below a local folder and keeps the most recently opened ones open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptors: dict[str, int] = {}

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only where the shard ends."""
        return os.pread(self._descriptor(shard), num_bytes, offset)

    def close(self) -> None:
        """Closes the shards that are open."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, shard: str) -> int:
        descriptor = self._descriptors.pop(shard, None)
        if descriptor is None:
            if len(self._descriptors) >= MAX_OPEN_SHARDS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = os.open(self._folder / shard, os.O_RDONLY)
        self._descriptors[shard] = descriptor
        return descriptor


class RemoteReader:
    """Reads shards at an address by range requests, each tried again where the store fails."""

    def __init__(self, folder: RemotePath) -> None:
        self._folder = folder

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only where the shard ends."""
        return (self._folder / shard).read_range(offset, num_bytes)

    def close(self) -> None:
        """Does nothing: no shard stays open."""


@dataclass(frozen=True)
class SampleIndex:
    """Where the samples of one split lie; arrays of one entry per sample, in shard order, then tar order.

    A process shares them with its loader processes: 32 bytes a sample once, not once for each of them.
    """

    folder: Location
    shards: tuple[str, ...]
    shard_sizes: tuple[int, ...]
    shard_of: NDArray[np.int32]
    offsets: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    crcs: NDArray[np.uint32]
    """Of each sample's members; 0 where it is not known."""
    labels: NDArray[np.int64]
    num_frames: int
    cache: ShardCache | None = None
    summaries: tuple[ShardSummary, ...] = ()
    """Of each shard, for the cache."""

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return len(self.labels)

    @classmethod
    def open(cls, folder: Location, split: str, cache: ShardCache | None = None) -> "SampleIndex":
        """Returns the index of a split, whose shards are read through a cache if one is given and they lie far away.

        Raises:
            ManifestError: The folder holds no complete pack, or one of a newer format.
        """
        manifest = read_manifest(folder)
        shards = manifest.splits[split].shards
        sizes = tuple(shard.num_samples for shard in shards)
        table = read_samples(folder, split, columns=["offset", "num_bytes", "crc32", "class_index"])
        if table.num_rows != sum(sizes):
            raise ManifestError(
                f"{folder / SAMPLES} has {table.num_rows} samples in its {split} split, the manifest {sum(sizes)}: run "
                "the packer again, it rebuilds the index"
            )
        return cls(
            folder=folder,
            shards=tuple(shard.name for shard in shards),
            shard_sizes=sizes,
            # By the manifest, whose shards the rows follow: a name for each of 100 million rows takes gigabytes.
            shard_of=mapped(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)),
            offsets=mapped(table["offset"].to_numpy()),
            num_bytes=mapped(table["num_bytes"].to_numpy()),
            crcs=mapped(_crcs(table)),
            labels=mapped(table["class_index"].to_numpy().astype(np.int64)),
            num_frames=manifest.clip.num_frames,
            cache=cache,
            summaries=shards if cache else (),
        )

    def take(self, samples: Sequence[int]) -> "SampleIndex":
        """Returns an index of some of the samples alone, in this order, as if they were of one shard."""
        chosen = np.asarray(samples, dtype=np.int64)
        return replace(
            self,
            shard_sizes=(len(chosen),),
            shard_of=self.shard_of[chosen],
            offsets=self.offsets[chosen],
            num_bytes=self.num_bytes[chosen],
            crcs=self.crcs[chosen],
            labels=self.labels[chosen],
        )

    def reader(self) -> ShardReader:
        """Returns a reader of the shards where they lie, for the process that asks."""
        if isinstance(self.folder, Path):
            return LocalReader(self.folder)
        return CachedReader(self.cache, self.folder, self.summaries) if self.cache else RemoteReader(self.folder)

    def read(self, reader: ShardReader, index: int) -> Sample:
        """Returns a sample as WebDataset gives it: `__key__`, `__url__`, `000.jpg` ..., `cls` and `json`, all bytes.

        Raises:
            SampleError: The bytes at the sample's place are not that sample, whole and as it was packed.
        """
        try:
            return self._read(reader, index)
        except SampleError:
            if isinstance(self.folder, Path):
                raise
            return self._read(reader, index)  # it may have been damaged on its way here

    def _read(self, reader: ShardReader, index: int) -> Sample:
        shard = self.shards[self.shard_of[index]]
        offset, num_bytes = int(self.offsets[index]), int(self.num_bytes[index])
        place = f"sample {index} ({shard} at byte {offset})"
        try:
            data = reader.read(shard, offset, num_bytes)
        except OSError as error:
            raise SampleError(f"{place} cannot be read: {error}") from error
        if len(data) != num_bytes:
            raise SampleError(f"{place} ends after {len(data)} of {num_bytes} bytes: the shard is cut short")
        try:
            stored = read_members(data)
        except ValueError as error:
            raise SampleError(f"{place} {error}") from error
        sample = {"__url__": str(self.folder / shard), "__key__": stored.key, **stored.members}
        if sample.get("cls") != str(self.labels[index]).encode():
            raise SampleError(f"{place} holds class {sample.get('cls')}, not {self.labels[index]} as its index says")
        if self.crcs[index] not in {0, members_crc32(stored.members.values())}:
            raise SampleError(
                f"{place}, {stored.key}, is not as it was packed (its crc32 differs): run `python -m packer verify`"
            )
        return sample


def _crcs(table: pa.Table) -> NDArray[np.uint32]:
    if "crc32" not in table.column_names:
        return np.zeros(table.num_rows, np.uint32)
    return np.asarray(pc.fill_null(table["crc32"], 0).to_numpy(), np.uint32)
