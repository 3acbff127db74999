"""The clips of many videos, in order: decoded here or on a Ray cluster, a bounded number of them ahead."""

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from configs.pack import ClipConfig, DecodeLimits
from packer.decoders.pool import DecodePool, SpooledClips
from packer.video.catalog import Video
from packer.video.clip import Clip
from packer.video.container import VideoError

logger = logging.getLogger(__name__)

WINDOW_PER_WORKER = 4
"""Videos per decoder that a pack decodes, or keeps in memory, at one time."""

_LOAD_REASONS = frozenset({"timeout", "out_of_memory", "decoder_crash"})
"""Reasons that may be due to a busy machine instead of the video: a system short of memory kills processes."""


@contextmanager
def open_pool(limits: DecodeLimits, workers: int, num_videos: int, cluster: str = "") -> Iterator[DecodePool]:
    """Yields a pool of decoders, which is closed when the block ends.

    Args:
        limits: What one video may cost.
        workers: Processes that decode; 0: one per core.
        num_videos: How many videos there are; no more processes than that are started.
        cluster: Address of the Ray cluster that decodes; empty: this machine decodes.
    """
    if not cluster:
        num_workers = workers or len(os.sched_getaffinity(0))
        with DecodePool(min(num_workers, max(1, num_videos)), limits) as pool:
            yield pool
        return
    from packer.decoders.ray_decoder import ClusterDecoder, joined

    with joined(cluster) as num_cpus:  # an actor without a CPU would wait, and its video with it
        num_workers = min(workers or num_cpus, num_cpus)
        with DecodePool(min(num_workers, max(1, num_videos)), limits, ClusterDecoder) as pool:
            yield pool


def read_clips(pool: DecodePool, videos: Sequence[Video], clip: ClipConfig, window: int) -> Iterator[Clip | VideoError]:
    """Yields, for each video in order, its clip or the reason why it has none.

    Segments of one file that follow one another are decoded in one pass, by one decoder. A file that fails for a
    reason that may be due to a busy machine is decoded once more, alone.

    Args:
        pool: The decoders.
        videos: The videos.
        clip: What a clip is.
        window: Most files that are decoded, or wait in memory or on disk, at one time.

    Raises:
        OSError: A video's storage fails, which is no property of the video.
    """
    waiting = _tasks(videos)
    pending: deque[tuple[list[Video], Future[Any]]] = deque()
    while True:
        while len(pending) < window and (task := next(waiting, None)) is not None:
            pending.append((task, _submit(pool, task, clip)))
        if not pending:
            return
        task, future = pending.popleft()
        outcomes, reasons = _outcomes(task, future)
        if reasons := reasons & _LOAD_REASONS:
            logger.warning("retry alone source=%s reason=%s", task[0].file_source, ",".join(sorted(reasons)))
            wait([other for _, other in pending])
            outcomes, _ = _outcomes(task, _submit(pool, task, clip))
        yield from outcomes


def _tasks(videos: Iterable[Video]) -> Iterator[list[Video]]:
    """Yields whole videos one by one, and the segments of one file together."""
    for (_, is_whole), group in groupby(videos, key=lambda video: (video.path, video.segment is None)):
        if is_whole:
            yield from ([video] for video in group)
        else:
            yield list(group)


def _submit(pool: DecodePool, task: Sequence[Video], clip: ClipConfig) -> Future[Any]:
    segments = [video.segment for video in task if video.segment is not None]
    path = task[0].path
    return pool.submit_segments(path, segments, clip) if segments else pool.submit(path, clip)


def _outcomes(task: Sequence[Video], future: Future[Any]) -> tuple[Iterable[Clip | VideoError], set[str]]:
    """Returns the outcome of each video of a task, and the reasons of those that have no clip."""
    try:
        result: Clip | SpooledClips = future.result()
    except VideoError as error:
        return [error] * len(task), {error.reason}
    return (result, result.reasons) if isinstance(result, SpooledClips) else ([result], set())
