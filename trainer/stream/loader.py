"""The exact stream: shards to batches of clips, deterministic, resumable, and the same for any number of processes.

It is a WebDataset pipeline. `RowSource` reads the samples that the schedule names, each by one contiguous read that
the index locates (Python's tarfile costs 2.4 ms per sample, a quarter of all the work), and yields ordinary WebDataset
sample dicts; `pick`, `decode`, `augment`, `mix` and `batch` are its further stages. The tars are ordinary too:
`wds.WebDataset` reads them. A sample that cannot be read or decoded is never dropped silently and never shortens a
batch: it keeps its row at weight 0 and its error travels with the batch.
"""

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from packer.storage.files import read_many
from packer.storage.location import RemotePath
from trainer.schedule.schedule import Schedule
from trainer.stream.batch import Batch, batch
from trainer.stream.device_decoder import DeviceDecoder
from trainer.stream.index import Sample, SampleError, SampleIndex, ShardReader
from trainer.stream.stages import Stage, View, augment, decode, gather, inspect, mix, pick
from trainer.views.frames import FixedFrames, Frames
from trainer.views.mixing import Mixing

NUM_AHEAD = 64
"""Samples at an address that a loader process reads ahead of the one it decodes: next batches', some 10 MB."""
PRELOADED = ["trainer.stream.loader", "trainer.views.train_view"]
"""What loader processes share: each would else spend seconds of CPU on importing torch and WebDataset."""


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
