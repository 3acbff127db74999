"""Decodes videos in processes that can be killed: a video that crashes, hangs or takes all memory harms no other.

A thread drives each decoder: it hands over one video at a time and waits for the answer.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from configs.pack import ClipConfig, DecodeLimits
from packer.decoders.process import CLOSED, ClipDecoder, ProcessDecoder
from packer.video.clip import Clip
from packer.video.container import VideoError
from packer.video.segment import Segment
from packer.video.spool import Spool


class ClipFuture(Future[Clip]):
    """A clip to come; `started_at` is the `time.monotonic()` at which a decoder took the video, and is set then."""

    started_at: float

    def set_running_or_notify_cancel(self) -> bool:
        """Notes the time; the pool calls it when a decoder takes the video."""
        self.started_at = time.monotonic()
        return super().set_running_or_notify_cancel()


class SpooledClips:
    """The outcomes of the segments of one video, on disk, in order: each a clip or the reason why there is none.

    They can be read once: the disk is freed when the last one has been read.
    """

    def __init__(self, outcomes: Generator[Clip | VideoError, None, None]) -> None:
        """Takes all outcomes."""
        self._spool = Spool()
        self._places: list[int] = []
        self.reasons: set[str] = set()
        """Why segments have no clip."""
        try:
            for outcome in outcomes:
                self._places.append(self._spool.add(outcome))
                if isinstance(outcome, VideoError):
                    self.reasons.add(outcome.reason)
        except BaseException:
            outcomes.close()
            self._spool.close()
            raise

    def __iter__(self) -> Iterator[Clip | VideoError]:
        """Yields the outcomes."""
        with self._spool as spool:
            for place in self._places:
                outcome: Clip | VideoError = spool.read(place)
                yield outcome


_Task = tuple[Future[Any], Callable[[ClipDecoder], Any]]


class DecodePool:
    """A fixed number of decoder processes, which start before the first video comes.

    Example:
        with DecodePool(2, DecodeLimits()) as pool:
            clip = pool.submit("video.mp4", ClipConfig()).result()
    """

    def __init__(
        self, num_workers: int, limits: DecodeLimits, start: Callable[[DecodeLimits], ClipDecoder] = ProcessDecoder
    ) -> None:
        """Takes the number of decoders, what one video may cost, and what starts a decoder."""
        self.num_workers = num_workers
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._decoders = [start(limits) for _ in range(num_workers)]
        self._threads = [
            threading.Thread(target=self._drive, args=(decoder,), name="decoder", daemon=True)
            for decoder in self._decoders
        ]
        self._closing = False
        for thread in self._threads:
            thread.start()

    def submit(self, source: str | bytes, clip: ClipConfig) -> ClipFuture:
        """Returns the future clip of a video, which is a path or the file's bytes; it may fail with VideoError.

        If the video's storage fails, it fails with OSError.

        Raises:
            RuntimeError: The pool is closed.
        """
        future = ClipFuture()
        self._put(future, lambda decoder: decoder.read_clip(source, clip))
        return future

    def submit_segments(
        self, source: str | bytes, segments: Sequence[Segment], clip: ClipConfig
    ) -> Future[SpooledClips]:
        """Returns the future clips of the segments of one video, which one decoder reads in one pass.

        It fails with VideoError only if the decoder takes too long or crashes, and with OSError if storage fails.

        Raises:
            RuntimeError: The pool is closed.
        """
        future: Future[SpooledClips] = Future()
        self._put(future, lambda decoder: SpooledClips(decoder.read_segments(source, segments, clip)))
        return future

    def _put(self, future: Future[Any], work: Callable[[ClipDecoder], Any]) -> None:
        if self._closing:
            raise RuntimeError(CLOSED)
        self._tasks.put((future, work))

    def close(self) -> None:
        """Kills the decoders; videos that wait are cancelled, and videos that are being decoded fail."""
        self._closing = True
        for _ in self._threads:
            self._tasks.put(None)
        for decoder, thread in zip(self._decoders, self._threads, strict=True):
            decoder.close()
            thread.join()

    def __enter__(self) -> "DecodePool":
        """Returns the pool, which is closed when the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the pool."""
        self.close()

    def _drive(self, decoder: ClipDecoder) -> None:
        while (task := self._tasks.get()) is not None:
            future, work = task
            if self._closing:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(decoder))
            except Exception as error:  # whatever happens, the caller that waits must get it
                future.set_exception(error)
