"""The clips of many videos, in order: a pool here or on a Ray cluster, a bounded number ahead, and a progress bar."""

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm

from configs.pack import ClipConfig, DecodeLimits
from packer.decoders.pool import DecodePool
from packer.video.catalog import Video
from packer.video.clip import Clip
from packer.video.container import VideoError

logger = logging.getLogger(__name__)

_LOGGED_SECONDS = 30.0
"""How often a log, unlike a terminal, is told of the progress."""
_LOAD_REASONS = frozenset({"timeout", "out_of_memory", "decoder_crash"})
"""Reasons that may lie with the machine's load rather than with the video; a system short of memory kills."""


def progress_bar(num_videos: int) -> "tqdm[NoReturn]":
    """Returns a bar that also tells how many videos were rejected."""
    bar = tqdm(total=num_videos, unit="video", mininterval=0.1 if sys.stderr.isatty() else _LOGGED_SECONDS)
    bar.set_postfix(rejected=0)
    return bar


@contextmanager
def open_pool(limits: DecodeLimits, workers: int, num_videos: int, cluster: str = "") -> Iterator[DecodePool]:
    """Yields a pool of decoders that is closed with the block.

    Args:
        limits: What one video may cost.
        workers: Processes that decode; 0: one per core.
        num_videos: Videos that there are; more processes than that are not started.
        cluster: Address of the Ray cluster that decodes; empty: this machine does.
    """
    if not cluster:
        num_workers = workers or len(os.sched_getaffinity(0))
        with DecodePool(min(num_workers, max(1, num_videos)), limits) as pool:
            yield pool
        return
    from packer.decoders.ray_decoder import ClusterDecoder, joined

    with joined(cluster) as num_cpus:  # an actor more than there are CPUs would wait, and its video with it
        num_workers = min(workers or num_cpus, num_cpus)
        with DecodePool(min(num_workers, max(1, num_videos)), limits, ClusterDecoder) as pool:
            yield pool


def read_clips(pool: DecodePool, videos: Sequence[Video], clip: ClipConfig, window: int) -> Iterator[Clip | VideoError]:
    """Yields, per video and in order, its clip or why it has none; at most `window` clips wait in memory."""
    waiting = iter(videos)
    pending: deque[tuple[Video, Future[Clip]]] = deque()
    while True:
        while len(pending) < window and (video := next(waiting, None)) is not None:
            pending.append((video, pool.submit(video.path, clip)))
        if not pending:
            return
        video, future = pending.popleft()
        try:
            try:
                yield future.result()
            except VideoError as error:
                if error.reason not in _LOAD_REASONS:
                    raise
                logger.warning("retry alone source=%s reason=%s", video.source, error.reason)
                wait([other for _, other in pending])
                yield pool.submit(video.path, clip).result()
        except VideoError as error:
            yield error
