"""Hands a run's points and files to a tracking server that may be slow or down, from a thread of its own.

Nothing here ends a training or makes it wait for long. What the server refuses is kept, in order, and sent again. What
has not arrived when a checkpoint is written goes into the checkpoint, so that not even a kill loses it. What the points
and files mean is up to the caller.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

SEND_INTERVAL_SECONDS = 1.0
"""Shortest time between two rounds of sending."""
RETRY_INTERVAL_SECONDS = 10.0
"""The same for a server that did not answer last time."""
FLUSH_SECONDS = 10.0
"""Longest that a checkpoint waits for the server."""
MAX_POINTS_PER_REQUEST = 1000
"""As many as MLflow takes in one request."""
MAX_POINTS = 100_000
"""Newest points that are kept for a server that does not answer: some 10 MB, in every checkpoint too."""

PointT = TypeVar("PointT")


class Delivery(Generic[PointT]):
    """Points and files on their way to a server.

    Args:
        send: Sends at most `MAX_POINTS_PER_REQUEST` points, or raises.
    """

    def __init__(self, send: Callable[[list[PointT]], None]) -> None:
        self._send_points = send
        self._points: list[PointT] = []
        self._files: dict[str, Callable[[], object]] = {}
        self._num_lost = 0
        self._lock = threading.Lock()
        self._answers = True
        self._sending: Future[None] | None = None
        self._sent_at_seconds = time.monotonic()

    def add(self, points: list[PointT]) -> None:
        """Takes points; if the last round of sending is long enough ago, a new one starts."""
        with self._lock:
            self._points += points
        self._send_if_due()

    def add_file(self, path: str, upload: Callable[[], object]) -> None:
        """Takes a file to upload; it replaces a file of the same path that still waits."""
        with self._lock:
            self._files[path] = upload
        self._send_if_due()

    def undelivered(self) -> list[PointT]:
        """Returns the points that have not arrived."""
        with self._lock:
            return list(self._points)

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Waits at most `seconds` until everything has arrived; not at all if the server did not answer last time."""
        deadline = time.monotonic() + seconds
        while self._answers and self._waits():
            if not self._wait(deadline):
                self._answers = False
                logger.warning("tracking does not answer within seconds=%g; the training goes on", seconds)
        self._send_if_due()

    def close(self, seconds: float) -> None:
        """Delivers what is left for at most `seconds`, then logs what was lost."""
        deadline = time.monotonic() + seconds
        while self._waits() and self._wait(deadline):
            if not self._answers:
                time.sleep(SEND_INTERVAL_SECONDS)
        num_lost = self._num_lost + len(self._points)
        if num_lost or self._files:
            logger.error("tracking lost num_points=%d files=%s", num_lost, ",".join(self._files) or "none")

    def _waits(self) -> bool:
        return bool(self._points or self._files or (self._sending and not self._sending.done()))

    def _wait(self, deadline: float) -> bool:
        """Returns whether a round of sending ended before the deadline."""
        left = deadline - time.monotonic()
        return left > 0 and bool(wait([self._send()], left).done)

    def _send_if_due(self) -> None:
        pause = SEND_INTERVAL_SECONDS if self._answers else RETRY_INTERVAL_SECONDS
        if self._waits() and time.monotonic() - self._sent_at_seconds > pause:
            self._send()

    def _send(self) -> "Future[None]":
        if self._sending is None or self._sending.done():
            self._sent_at_seconds = time.monotonic()
            self._sending = Future()
            # No executor: if Ctrl-C comes while it starts its thread, it forgets the thread, and the process waits for
            # it for ever when it ends (CPython 3.11). A daemon is waited for by `close` alone.
            threading.Thread(target=self._round, args=(self._sending,), name="delivery", daemon=True).start()
        return self._sending

    def _round(self, sending: "Future[None]") -> None:
        try:
            self._deliver()
        finally:
            sending.set_result(None)

    def _deliver(self) -> None:
        try:
            while part := self._points[:MAX_POINTS_PER_REQUEST]:
                self._send_points(part)
                with self._lock:
                    del self._points[: len(part)]
            with self._lock:
                files = list(self._files.items())
            for path, upload in files:
                upload()
                with self._lock:
                    if self._files[path] is upload:
                        del self._files[path]
        except Exception as error:  # whatever the libraries below raise: tracking must not end a training
            self._drop_surplus()
            if self._answers:
                logger.warning(
                    "tracking refused num_points=%d reason=%s; it is sent again later", len(self._points), error
                )
            self._answers = False
        else:
            if not self._answers:
                logger.info("tracking answers again")
            self._answers = True

    def _drop_surplus(self) -> None:
        with self._lock:
            surplus = max(0, len(self._points) - MAX_POINTS)
            del self._points[:surplus]
            self._num_lost += surplus
