"""The exact stream: shards to batches of clips, deterministic, resumable, and the same for any number of processes.

It is a WebDataset pipeline: `trainer.stream.source` reads the samples that the schedule names, the stages of
`trainer.stream.stages` and `trainer.stream.batch` turn them into batches. Each sample is one contiguous read that the
index locates: Python's tarfile costs 2.4 ms per sample, a quarter of all the work. The tars are ordinary too:
`wds.WebDataset` reads them.
"""

import multiprocessing
import sys
from collections.abc import Iterable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader

from trainer.schedule.schedule import Schedule
from trainer.stream.batch import Batch, batch
from trainer.stream.device_decoder import DeviceDecoder
from trainer.stream.index import SampleIndex
from trainer.stream.source import RowSource
from trainer.stream.stages import Stage, View, augment, decode, gather, inspect, mix
from trainer.views.frames import FixedFrames, Frames
from trainer.views.mixing import Mixing

PRELOADED = ["trainer.stream.loader", "trainer.views.train_view"]
"""Modules that loader processes share: otherwise each would spend seconds of CPU on importing torch and WebDataset."""


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
        view: Gives what the model sees of a stored clip.
        size_px: Side of the view's frames, S.
        rank: This process's number.
        world_size: Number of processes that share each global batch.
        num_workers: Loader processes; 0: this process reads. The batches do not depend on it.
        pin_memory: Whether batches are put in pinned memory.
        frames: Which of the packed frames are read; None: all.
        views_per_frame: How many views `view` gives of each frame, one whole clip after another.
        mixing: Mixes each clip with another of the global batch; None: clips stay as they are.
        decode_on: The device on which this process decodes, crops and mixes; None: the loader processes do.

    Raises:
        ValueError: There are more ranks than rows in a global batch.
        DecoderError: The device decodes no JPEG.
    """
    frames = frames or FixedFrames(range(index.num_frames))
    schedule.rows(0, rank, world_size)  # refuses too many ranks here, not inside a loader process
    source = RowSource(index, schedule, rank, world_size, with_partners=mixing is not None)
    finish: list[Stage] = [
        partial(augment, view=view),
        *([partial(mix, mixing=mixing)] if mixing else []),
        partial(batch, num_frames=frames.num_frames * views_per_frame, size_px=size_px, device=decode_on),
    ]
    in_loader: list[Stage] = [partial(inspect, frames=frames, index=index), gather]
    if decode_on is None:
        in_loader = [partial(decode, frames=frames), *finish]
    loader: DataLoader[Any] = DataLoader(
        wds.DataPipeline(source, *in_loader),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory and decode_on is None,
        persistent_workers=num_workers > 0,
        multiprocessing_context=_forkserver() if num_workers else None,
        in_order=True,
    )
    return DeviceDecoder(loader, decode_on, finish) if decode_on else loader


def start_forkserver() -> None:
    """Starts the process that loader processes are forked from, without waiting for its imports."""
    _forkserver()
    forkserver.ensure_running()


def _forkserver() -> ForkServerContext:
    # Not a plain fork: forking a process that holds Ray's threads can deadlock.
    context = multiprocessing.get_context("forkserver")
    # A forked process imports its parent's main module again, and a Ray worker's imports Ray: 0.4 s for each loader.
    context.set_forkserver_preload([*PRELOADED, *({"ray"} & sys.modules.keys())])
    return context
