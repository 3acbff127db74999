"""Where the samples of a split lie in its shards, and how one of them is read.

A sample is one contiguous range of a tar, which the index locates: one read, no walk through the tar. What is read is
checked (class, checksum, the tar's own headers) and comes back as an ordinary WebDataset sample; its JPEGs are not
decoded here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from packer.shards.manifest import SAMPLES, ManifestError, ShardSummary, read_manifest, read_samples
from packer.shards.sample import members_crc32, read_members
from packer.storage.location import Location
from trainer.stream.cache import CachedReader, ShardCache
from trainer.stream.readers import LocalReader, RemoteReader, ShardReader
from trainer.stream.sample import SourceSample
from trainer.stream.shared_array import share


class SampleError(ValueError):
    """A sample that cannot be read; its text names the sample's place and what is wrong there."""


@dataclass(frozen=True)
class SampleIndex:
    """Where the samples of one split lie; arrays of one entry per sample, in shard order, then tar order.

    A process shares the arrays with its loader processes: 32 bytes a sample, once for all of them.
    """

    folder: Location
    shards: tuple[str, ...]
    shard_sizes: tuple[int, ...]
    shard_of: NDArray[np.int32]
    offsets: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    crcs: NDArray[np.uint32]
    """Checksum of each sample's members; 0: not known, as of older packs."""
    labels: NDArray[np.int64]
    num_frames: int
    cache: ShardCache | None = None
    summaries: tuple[ShardSummary, ...] = ()
    """What the manifest says of each shard; for the cache."""

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return len(self.labels)

    @classmethod
    def open(cls, folder: Location, split: str, cache: ShardCache | None = None) -> "SampleIndex":
        """Returns the index of a split.

        Args:
            folder: Of the pack.
            split: Name of the split.
            cache: Where whole shards are kept on this machine, if the folder is an address.

        Raises:
            ManifestError: The folder holds no complete pack, one of a newer format, or an index that does not fit it.
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
            # From the manifest, in whose order of shards the rows stand: names of 100 million rows take gigabytes.
            shard_of=share(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)),
            offsets=share(table["offset"].to_numpy()),
            num_bytes=share(table["num_bytes"].to_numpy()),
            crcs=share(_crcs(table)),
            labels=share(table["class_index"].to_numpy().astype(np.int64)),
            num_frames=manifest.clip.num_frames,
            cache=cache,
            summaries=shards if cache else (),
        )

    def take(self, samples: Sequence[int]) -> "SampleIndex":
        """Returns an index of these samples only, in this order, as if one shard held them."""
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
        """Returns a new reader of the shards, for the process that asks; the caller closes it."""
        if isinstance(self.folder, Path):
            return LocalReader(self.folder)
        return CachedReader(self.cache, self.folder, self.summaries) if self.cache else RemoteReader(self.folder)

    def read(self, reader: ShardReader, index: int) -> SourceSample:
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

    def _read(self, reader: ShardReader, index: int) -> SourceSample:
        shard = self.shards[self.shard_of[index]]
        offset, num_bytes = int(self.offsets[index]), int(self.num_bytes[index])
        url = str(self.folder / shard)
        place = f"sample {index} ({url} at byte {offset})"
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
        if stored.members.get("cls") != str(self.labels[index]).encode():
            raise SampleError(
                f"{place} holds class {stored.members.get('cls')!r}, not {self.labels[index]} as its index says"
            )
        if self.crcs[index] not in {0, members_crc32(stored.members.values())}:
            raise SampleError(
                f"{place}, {stored.key}, is not as it was packed (its crc32 differs): run `python -m packer verify`"
            )
        return cast(SourceSample, {"__key__": stored.key, "__url__": url, **stored.members})


def _crcs(table: pa.Table) -> NDArray[np.uint32]:
    if "crc32" not in table.column_names:
        return np.zeros(table.num_rows, np.uint32)
    return np.asarray(pc.fill_null(table["crc32"], 0).to_numpy(), np.uint32)
