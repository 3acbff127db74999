"""The clips of many videos, in order: decoded here or on a Ray cluster, a bounded number of them ahead."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager

from configs.pack import ClipConfig, DecodeLimits
from packer.decoders.pool import DecodePool
from packer.video.catalog import Video
from packer.video.clip import Clip
from packer.video.container import VideoError

logger = logging.getLogger(__name__)

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

    A video that fails for a reason that may be due to a busy machine is decoded once more, alone.

    Args:
        pool: The decoders.
        videos: The videos.
        clip: What a clip is.
        window: Most videos that are decoded, or wait in memory, at one time.

    Raises:
        OSError: A video's storage fails, which is no property of the video.
    """
    waiting = iter(videos)
    pending: deque[tuple[Video, Future[Clip]]] = deque()
    while True:
        while len(pending) < window and (video := next(waiting, None)) is not None:
            pending.append((video, pool.submit(video.path, clip)))
        if not pending:
            return
        video, future = pending.popleft()
        outcome = _outcome(future)
        if isinstance(outcome, VideoError) and outcome.reason in _LOAD_REASONS:
            logger.warning("retry alone source=%s reason=%s", video.source, outcome.reason)
            wait([other for _, other in pending])
            outcome = _outcome(pool.submit(video.path, clip))
        yield outcome


def _outcome(future: Future[Clip]) -> Clip | VideoError:
    try:
        return future.result()
    except VideoError as error:
        return error
