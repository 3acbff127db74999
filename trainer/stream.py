"""The exact stream: shards to batches of clips, deterministic, resumable, and the same for any number of processes.

It is a WebDataset pipeline. `RowSource` reads the samples that the schedule names, each by one contiguous read that
the index locates (Python's tarfile costs 2.4 ms per sample, a quarter of all the work), and yields ordinary WebDataset
sample dicts; `pick`, `decode`, `augment`, `mix` and `batch` are its further stages. The tars are ordinary too:
`wds.WebDataset` reads them. A sample that cannot be read or decoded is never dropped silently and never shortens a
batch: it keeps its row at weight 0 and its error travels with the batch.
"""

import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from packer.storage import RemotePath, read_many
from trainer.decoding import DeviceDecoder, Stage, decode, ends_step, gather, inspect
from trainer.frames import FixedFrames, Frames, pick
from trainer.index import Sample, SampleError, SampleIndex, ShardReader
from trainer.mixing import Mixing, mix
from trainer.schedule import Row, Schedule

FILL_VALUE = 128
NUM_AHEAD = 64
"""Samples at an address that a loader process reads ahead of the one it decodes: next batches', some 10 MB."""
PRELOADED = ["trainer.stream", "trainer.augment"]
"""What loader processes share: each would else spend seconds of CPU on importing torch and WebDataset."""

View = Callable[[torch.Tensor, Row], torch.Tensor]


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
    other_labels: torch.Tensor | None = None
    """`(B,) int64` classes of what was mixed into the clips; None if nothing was."""
    shares: torch.Tensor | None = None
    """`(B,) float32` shares, 0 to 1, of the clips' own classes; the rest is the others'."""

    @property
    def targets(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Class and weight of each row, `(B,) int64` and `(B,) float32`; twice where clips are mixed of two.

        Cross entropy is linear in its target, so a row of two classes is two rows that share its weight.
        """
        if self.other_labels is None or self.shares is None:
            return [(self.labels, self.weights)]
        own = self.weights * self.shares
        return [(self.labels, own), (self.other_labels, self.weights - own)]

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

    def __init__(
        self, index: SampleIndex, schedule: Schedule, rank: int, world_size: int, with_partners: bool = False
    ) -> None:
        super().__init__()
        self._index = index
        self._schedule = schedule
        self._rank = rank
        self._world_size = world_size
        self._with_partners = with_partners

    def __iter__(self) -> Iterator[Sample]:
        """Yields sample dicts with their row, their step, and their place among the step's rows.

        Where clips are mixed, a row's partner comes just before it and is marked `__partner__`.
        """
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        places = self._places(range(first, self._schedule.num_steps, stride))
        is_remote = isinstance(self._index.folder, RemotePath)
        with (
            closing(self._index.reader()) as reader,
            closing(read_many(partial(self._read, reader), places, is_remote, NUM_AHEAD)) as samples,
        ):
            yield from samples

    def _places(self, steps: Iterable[int]) -> Iterator[Sample]:
        for step in steps:
            share = (step, self._rank, self._world_size)
            rows = self._schedule.rows(*share)
            partners = self._schedule.partners(*share) if self._with_partners else (None,) * len(rows)
            for place, (row, other) in enumerate(zip(rows, partners, strict=True)):
                if other:
                    yield {"__row__": other, "__partner__": True}
                yield {"__row__": row, "__step__": step, "__place__": place, "__num_rows__": len(rows)}

    def _read(self, reader: ShardReader, place: Sample) -> Sample:
        index = place["__row__"].index
        try:
            return {**self._index.read(reader, index), **place}
        except SampleError as error:
            return {"__key__": f"sample-{index}", "__error__": str(error), **place}


def augment(samples: Iterable[Sample], *, view: View) -> Iterator[Sample]:
    """Replaces each `clip` by the view of it that the model sees."""
    for sample in samples:
        if "__error__" not in sample:
            sample["clip"] = view(sample["clip"], sample["__row__"])
        yield sample


def batch(
    samples: Iterable[Sample], *, num_frames: int, size_px: int, device: torch.device | None = None
) -> Iterator[Batch]:
    """Gathers the clips of one step, on a device if one is given, cut at the source's marks and never by counting."""
    gathering: _Gathering | None = None
    for sample in samples:
        if gathering is None:
            shape_BTSSC = (sample["__num_rows__"], num_frames, size_px, size_px, 3)
            gathering = _Gathering(sample["__step__"], shape_BTSSC, device)
        gathering.add(sample)
        if ends_step(sample):
            yield gathering.batch()
            gathering = None


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
    frames: Frames | None = None,
    views_per_frame: int = 1,
    mixing: Mixing | None = None,
    decode_on: torch.device | None = None,
) -> Iterable[Batch]:
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
        frames: Which of the packed frames are read; None: all.
        views_per_frame: Pictures that `view` gives of each of them, one clip after another.
        mixing: Mixes each clip with another of the global batch; None: clips stay as they are.
        decode_on: The device that decodes, crops and mixes in this process; None: the loader processes do.
    """
    frames = frames or FixedFrames(range(index.num_frames))
    schedule.rows(0, rank, world_size)  # refuses too many ranks here, not inside a loader worker
    source = RowSource(index, schedule, rank, world_size, with_partners=mixing is not None)
    num_frames = frames.num_frames
    stages: list[Stage] = [
        partial(augment, view=view),
        *([partial(mix, mixing=mixing)] if mixing else []),
        partial(batch, num_frames=num_frames * views_per_frame, size_px=size_px, device=decode_on),
    ]
    in_loader: list[Stage] = [partial(inspect, index=index, num_frames=num_frames), gather]
    if decode_on is None:
        in_loader = [partial(decode, num_frames=num_frames), *stages]
    loader: DataLoader[Any] = DataLoader(
        wds.DataPipeline(source, partial(pick, frames=frames), *in_loader),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory and decode_on is None,
        persistent_workers=num_workers > 0,
        multiprocessing_context=_forkserver() if num_workers else None,
        in_order=True,
    )
    return DeviceDecoder(loader, decode_on, stages) if decode_on else loader


def start_forkserver() -> None:
    """Starts the process that loader processes are forked from, without waiting for what it imports."""
    _forkserver()
    forkserver.ensure_running()


def _forkserver() -> ForkServerContext:
    # Not a plain fork: forking a process that holds Ray's threads can deadlock.
    context = multiprocessing.get_context("forkserver")
    # A forked process imports its parent's main module anew, which in a Ray worker imports Ray: 0.4 s for each loader.
    context.set_forkserver_preload([*PRELOADED, *({"ray"} & sys.modules.keys())])
    return context


class _Gathering:
    """A batch while its rows come in; each clip is copied at once, since the next one is decoded over it."""

    def __init__(self, step: int, shape_BTSSC: tuple[int, ...], device: torch.device | None) -> None:
        self._step = step
        # New memory for every batch: memory used again would change batches that still wait in the queue.
        self._clips = torch.empty(shape_BTSSC, dtype=torch.uint8, device=device) if device else _empty(shape_BTSSC)
        self._labels = torch.zeros(shape_BTSSC[0], dtype=torch.int64)
        self._weights = torch.zeros(shape_BTSSC[0], dtype=torch.float32)
        self._other_labels = torch.zeros(shape_BTSSC[0], dtype=torch.int64)
        self._shares = torch.ones(shape_BTSSC[0], dtype=torch.float32)
        self._is_mixed = False
        self._rows: list[Row] = []
        self._bad: list[int] = []
        self._errors: list[str] = []

    def add(self, sample: Sample) -> None:
        place, row = sample["__place__"], sample["__row__"]
        self._rows.append(row)
        if "__error__" not in sample:
            self._clips[place] = sample["clip"]
            self._labels[place] = self._other_labels[place] = sample["label"]
            self._weights[place] = row.weight
            if "share" in sample:
                self._other_labels[place], self._shares[place] = sample["other_label"], sample["share"]
                self._is_mixed = True
            return
        self._bad.append(place)
        if row.weight:
            self._errors.append(sample["__error__"])

    def batch(self) -> Batch:
        # Filled rows weigh nothing, but batch norm sees them: a real clip keeps its statistics, zeros would not.
        good = next((place for place in range(len(self._rows)) if place not in self._bad), None)
        for place in self._bad:
            self._clips[place] = FILL_VALUE if good is None else self._clips[good]
        return Batch(
            step=self._step,
            clips=self._clips.permute(0, 1, 4, 2, 3),
            labels=self._labels,
            weights=self._weights,
            rows=tuple(self._rows),
            errors=tuple(self._errors),
            other_labels=self._other_labels if self._is_mixed else None,
            shares=self._shares if self._is_mixed else None,
        )


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    """Returns an uninitialised uint8 tensor; in a loader worker, in the memory that it is handed over in."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's own default_collate does it; otherwise the queue copies the batch once more.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
