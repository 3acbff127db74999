"""The exact stream: shards to batches of clips, deterministic, resumable, and the same for any number of processes.

It is a WebDataset pipeline. `RowSource` reads the samples that the schedule names, each by one contiguous read that
the index locates (Python's tarfile costs 2.4 ms per sample, a quarter of all the work), and yields ordinary WebDataset
sample dicts; `decode`, `augment` and `batch` are its further stages. The tars are ordinary too: `wds.WebDataset` reads
them. A sample that cannot be read or decoded is never dropped silently and never shortens a batch: it keeps its row at
weight 0 and its error travels with the batch.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from packer.jpeg import decode_frames
from packer.manifest import read_manifest, read_samples
from trainer.schedule import Row, Schedule

TAR_BLOCK_BYTES = 512
MAX_OPEN_SHARDS = 64
FILL_VALUE = 128
PRELOADED = ["trainer.stream", "trainer.augment"]
"""What loader processes share: each would else spend 5 s of CPU on importing torch and torchvision."""

Sample = dict[str, Any]
View = Callable[[NDArray[np.uint8], Row], NDArray[np.uint8]]


class SampleError(ValueError):
    """A sample that cannot be read; its text names the sample's place and what is wrong there."""


class ShardReader(Protocol):
    """Reads a range of a shard; opened inside the process that reads."""

    def read(self, shard: str, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes of `shard` from `offset`; fewer only where the shard ends."""
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


@dataclass(frozen=True)
class SampleIndex:
    """Where the samples of one split lie; arrays of one entry per sample, in shard order, then tar order."""

    folder: Path
    shards: tuple[str, ...]
    shard_sizes: tuple[int, ...]
    shard_of: NDArray[np.int32]
    offsets: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    labels: NDArray[np.int64]
    num_frames: int

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return len(self.labels)

    @classmethod
    def open(cls, folder: Path, split: str) -> "SampleIndex":
        """Returns the index of a split.

        Raises:
            ManifestError: The folder holds no complete pack, or one of a newer format.
        """
        manifest = read_manifest(folder)
        shards = manifest.splits[split].shards
        table = read_samples(folder, split, columns=["shard", "offset", "num_bytes", "class_index"])
        names = tuple(shard.name for shard in shards)
        numbers = {name: number for number, name in enumerate(names)}
        return cls(
            folder=folder,
            shards=names,
            shard_sizes=tuple(shard.num_samples for shard in shards),
            shard_of=np.array([numbers[name] for name in table["shard"].to_pylist()], dtype=np.int32),
            offsets=table["offset"].to_numpy().astype(np.int64),
            num_bytes=table["num_bytes"].to_numpy().astype(np.int64),
            labels=table["class_index"].to_numpy().astype(np.int64),
            num_frames=manifest.clip.num_frames,
        )

    def read(self, reader: ShardReader, index: int) -> Sample:
        """Returns a sample as WebDataset gives it: `__key__`, `__url__`, `000.jpg` ..., `cls` and `json`, all bytes.

        Raises:
            SampleError: The bytes at the sample's place are not one whole sample.
        """
        shard = self.shards[self.shard_of[index]]
        offset, num_bytes = int(self.offsets[index]), int(self.num_bytes[index])
        place = f"sample {index} ({shard} at byte {offset})"
        try:
            data = reader.read(shard, offset, num_bytes)
        except OSError as error:
            raise SampleError(f"{place} cannot be read: {error}") from error
        if len(data) != num_bytes:
            raise SampleError(f"{place} ends after {len(data)} of {num_bytes} bytes: the shard is cut short")
        sample = {"__url__": str(self.folder / shard), **_members(data, place)}
        if sample.get("cls") != str(self.labels[index]).encode():
            raise SampleError(f"{place} holds class {sample.get('cls')}, not {self.labels[index]} as its index says")
        return sample


@dataclass
class Batch:
    """One rank's part of a global batch."""

    step: int
    """Number of the step, counted from the schedule's start."""
    clips: torch.Tensor
    """`(B, T, 3, S, S) uint8 RGB`, laid out channels_last."""
    labels: torch.Tensor
    """`(B,) int64` class indices."""
    weights: torch.Tensor
    """`(B,) float32`; 0 for padding and for samples that could not be read."""
    rows: tuple[Row, ...]
    """Epoch and sample of each row."""
    errors: tuple[str, ...]
    """One sentence for each sample that could not be read; padding repeats samples and has none."""

    def pin_memory(self) -> "Batch":
        """Returns the batch in pinned memory, from where copies to a GPU do not wait."""
        return replace(
            self,
            clips=self.clips.pin_memory(),
            labels=self.labels.pin_memory(),
            weights=self.weights.pin_memory(),
        )


class RowSource(IterableDataset[Sample]):
    """The pipeline's source: this rank's samples, step by step.

    Loader worker w of W takes the steps w, w + W, ... counted from the schedule's start: DataLoader asks its workers in
    turn, so the batches come out in order and do not depend on W.
    """

    def __init__(self, index: SampleIndex, schedule: Schedule, rank: int, world_size: int) -> None:
        super().__init__()
        self._index = index
        self._schedule = schedule
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[Sample]:
        """Yields sample dicts with their row, the step they belong to, and whether they are the step's last."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        with closing(LocalReader(self._index.folder)) as reader:
            for step in range(first, self._schedule.num_steps, stride):
                rows = self._schedule.rows(step, self._rank, self._world_size)
                for place, row in enumerate(rows):
                    mark: Sample = {"__row__": row, "__step__": step, "__last__": place == len(rows) - 1}
                    try:
                        yield {**self._index.read(reader, row.index), **mark}
                    except SampleError as error:
                        yield {"__key__": f"sample-{row.index}", "__error__": str(error), **mark}


def decode(samples: Iterable[Sample], *, num_frames: int) -> Iterator[Sample]:
    """Turns each sample's JPEGs into `clip`, `(T, H, W, 3) uint8 RGB`, and its `cls` into `label`."""
    names = [f"{number:03d}.jpg" for number in range(num_frames)]
    for sample in samples:
        if "__error__" not in sample:
            try:
                sample["clip"] = decode_frames([sample[name] for name in names])
                sample["label"] = int(sample["cls"])
            except (KeyError, ValueError) as error:
                sample["__error__"] = f"{sample['__key__']} ({sample['__url__']}) cannot be decoded: {error}"
        yield sample


def augment(samples: Iterable[Sample], *, view: View) -> Iterator[Sample]:
    """Replaces each `clip` by the view of it that the model sees."""
    for sample in samples:
        if "__error__" not in sample:
            sample["clip"] = view(sample["clip"], sample["__row__"])
        yield sample


def batch(samples: Iterable[Sample], *, num_frames: int, size_px: int) -> Iterator[Batch]:
    """Gathers the samples of one step, cut at the source's marks and never by counting."""
    gathered: list[Sample] = []
    for sample in samples:
        gathered.append(sample)
        if sample["__last__"]:
            yield _assemble(gathered, (num_frames, size_px, size_px, 3))
            gathered = []


def make_loader(
    index: SampleIndex,
    schedule: Schedule,
    view: View,
    size_px: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> "DataLoader[Batch]":
    """Returns a loader of this rank's batches, one for each step of the schedule.

    Args:
        index: The split's samples.
        schedule: Which sample comes when.
        view: Gives the model's picture, `(T, S, S, 3) uint8`, from stored frames and their row; must be picklable.
        size_px: Side S of the picture.
        rank: This process's number.
        world_size: Number of processes that share each global batch.
        num_workers: Loader processes; 0 reads in this process. The batches do not depend on it.
        pin_memory: Whether batches are put in pinned memory.
    """
    schedule.rows(0, rank, world_size)  # refuses too many ranks here, not inside a loader worker
    pipeline = wds.DataPipeline(
        RowSource(index, schedule, rank, world_size),
        partial(decode, num_frames=index.num_frames),
        partial(augment, view=view),
        partial(batch, num_frames=index.num_frames, size_px=size_px),
    )
    return DataLoader(
        pipeline,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        multiprocessing_context=_forkserver() if num_workers else None,
        in_order=True,
    )


def _forkserver() -> ForkServerContext:
    # Not a plain fork: forking a process that holds Ray's threads can deadlock.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _assemble(samples: list[Sample], shape_TSSC: tuple[int, int, int, int]) -> Batch:
    good = [sample for sample in samples if "__error__" not in sample]
    # Filled rows weigh nothing, but batch norm sees them: a real clip keeps its statistics, zeros would not.
    filler = good[0]["clip"] if good else FILL_VALUE
    # One new buffer per batch: one that is used again would change batches that still wait in the queue.
    clips = np.empty((len(samples), *shape_TSSC), dtype=np.uint8)
    labels = np.zeros(len(samples), dtype=np.int64)
    weights = np.zeros(len(samples), dtype=np.float32)
    for place, sample in enumerate(samples):
        if "__error__" in sample:
            clips[place] = filler
        else:
            clips[place] = sample["clip"]
            labels[place] = sample["label"]
            weights[place] = sample["__row__"].weight
    return Batch(
        step=samples[0]["__step__"],
        clips=torch.from_numpy(clips).permute(0, 1, 4, 2, 3),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
        rows=tuple(sample["__row__"] for sample in samples),
        errors=tuple(sample["__error__"] for sample in samples if "__error__" in sample and sample["__row__"].weight),
    )


def _members(data: bytes, place: str) -> Sample:
    """Returns the members of one sample's tar range by suffix; its headers say themselves whether it is whole."""
    sample: Sample = {}
    position = 0
    while position < len(data):
        header = data[position : position + TAR_BLOCK_BYTES]
        if header[257:262] != b"ustar":
            raise SampleError(f"{place} holds no tar header at byte {position}: the shard and its index differ")
        key, _, suffix = header[:100].rstrip(b"\0").decode("ascii", "replace").partition(".")
        if sample.setdefault("__key__", key) != key:
            raise SampleError(f"{place} runs into {key} from {sample['__key__']}: the shard and its index differ")
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError as error:
            raise SampleError(f"{place} holds a damaged tar header at byte {position}") from error
        start = position + TAR_BLOCK_BYTES
        if not 0 <= size <= len(data) - start:
            raise SampleError(f"{place} holds a member that does not end within it: {key}.{suffix}")
        sample[suffix] = data[start : start + size]
        position = start + -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
    return sample
