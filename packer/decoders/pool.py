"""Decodes videos in processes that can be killed: a video that crashes, hangs or takes all memory harms no other.

A thread drives each decoder: it hands over one video at a time and waits for the answer.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

from configs.pack import ClipConfig, DecodeLimits
from packer.decoders.process import CLOSED, ClipDecoder, ProcessDecoder
from packer.video.clip import Clip


class ClipFuture(Future[Clip]):
    """A clip to come; `started_at` is the `time.monotonic()` at which a decoder took the video, and is set then."""

    started_at: float

    def set_running_or_notify_cancel(self) -> bool:
        """Notes the time; the pool calls it when a decoder takes the video."""
        self.started_at = time.monotonic()
        return super().set_running_or_notify_cancel()


_Task = tuple[ClipFuture, str | bytes, ClipConfig]


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
        if self._closing:
            raise RuntimeError(CLOSED)
        future = ClipFuture()
        self._tasks.put((future, source, clip))
        return future

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
            future, source, clip = task
            if self._closing:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(decoder.read_clip(source, clip))
            except Exception as error:  # whatever happens, the caller that waits must get it
                future.set_exception(error)
