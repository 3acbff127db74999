"""One decoder process: `ProcessDecoder` drives it from outside, `_serve` runs inside it.

The process is a plain `python -m packer.decoders.process` at the other end of a socket. `multiprocessing`, and pebble
on top of it, were refused: their workers first run the caller's main script again, so that in a Ray replica each
decoder would import Ray.
"""

import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, Protocol

import psutil

from configs.home import code_path
from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import Clip, read_clip
from packer.video.container import VideoError
from packer.video.segment import Segment
from packer.video.segments import read_segments

CLOSED = "the decode pool is closed: it takes no more videos"
_START_SECONDS = 60.0
_PARENT_CHECK_SECONDS = 1.0
_SURVEY_BYTES, _SURVEY_BYTES_PER_PIXEL = 96 * 2**20, 9
"""Memory for reading a video's header and packets: FFmpeg decodes some frames to know the stream."""
_DECODE_BYTES_PER_PIXEL = 120
"""Memory for decoding on top of that, per pixel of a frame: 17 frames (H.264, H.265) in three planes of 16 bits."""


class ClipDecoder(Protocol):
    """A decoder, as the thread that drives it sees it."""

    def read_clip(self, source: str | bytes, clip: ClipConfig) -> Clip:
        """Returns the clip of a video, or raises VideoError."""
        ...

    def read_segments(
        self, source: str | bytes, segments: Sequence[Segment], clip: ClipConfig
    ) -> Generator[Clip | VideoError, None, None]:
        """Yields the clip of each segment of a video, or why it has none; raises VideoError if the decoder fails."""
        ...

    def close(self) -> None:
        """Ends the process, even while another thread waits for its answer."""
        ...


class ProcessDecoder:
    """A decoder process on this machine.

    If a video crashes it or takes too long, the process is killed, and a new one starts before the next video comes.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        """Takes what one video may cost."""
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._is_started = False
        self._connection: Connection
        self._start()

    def read_clip(self, source: str | bytes, clip: ClipConfig) -> Clip:
        """Returns the clip of a video.

        Raises:
            VideoError: The video gives no clip.
            OSError: The video's storage fails, or the process cannot be started.
        """
        self._ask(source, clip, None)
        answer: Clip | VideoError | OSError = self._answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def read_segments(
        self, source: str | bytes, segments: Sequence[Segment], clip: ClipConfig
    ) -> Generator[Clip | VideoError, None, None]:
        """Yields the clip of each segment of a video in order, or why it has none.

        Raises:
            VideoError: The video takes too long, or crashes the process.
            OSError: The video's storage fails, or the process cannot be started.
        """
        self._ask(source, clip, segments)
        for _ in segments:
            answer: Clip | VideoError | OSError = self._answer()
            if isinstance(answer, OSError):
                raise answer
            try:
                yield answer
            except GeneratorExit:  # the process goes on sending, and the next video must not get its answers
                self._kill()
                raise

    def _ask(self, source: str | bytes, clip: ClipConfig, segments: Sequence[Segment] | None) -> None:
        if self._process is None or self._process.poll() is not None:
            self._start()
        self._wait_for_start()
        try:
            self._connection.send((source, clip, self._limits, segments))
        except OSError as error:
            raise self._crash() from error

    def _answer(self) -> Any:
        try:
            if not self._connection.poll(self._limits.timeout_seconds):
                raise self._too_slow()
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._crash() from error

    def close(self) -> None:
        """Ends the process."""
        self._closed = True
        self._kill()

    def _kill(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process, self._is_started = None, False
                # The connection stays open until the next start: a thread may wait for its answer.

    def _start(self) -> None:
        ours, theirs = Pipe()
        with self._lock:
            if self._closed:
                return
            self._process = subprocess.Popen(
                [sys.executable, "-m", "packer.decoders.process", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": code_path()},
            )
        theirs.close()
        self._connection, self._is_started = ours, False

    def _wait_for_start(self) -> None:
        if self._is_started:
            return
        with suppress(EOFError):
            self._is_started = not self._closed and self._connection.poll(_START_SECONDS) and self._connection.recv()
        if not self._is_started:  # the cause is no video: the whole pack must stop
            self._kill()
            if self._closed:
                raise RuntimeError(CLOSED)
            raise ChildProcessError("a decoder process did not start: see its own message above")

    def _too_slow(self) -> VideoError:
        self._kill()
        self._start()
        seconds = self._limits.timeout_seconds
        return VideoError("timeout", f"the video took longer than {seconds:g} s (limits.timeout_seconds)")

    def _crash(self) -> VideoError:
        process = self._process
        exit_code = process.wait() if process is not None else None
        self._kill()
        self._start()
        if exit_code == -signal.SIGPROF:
            return VideoError("timeout", "the video's header or packets took too long to read")
        hint = ", perhaps because memory ran out" if exit_code == -signal.SIGKILL else ""
        return VideoError("decoder_crash", f"the decoder crashed on the video (exit code {exit_code}{hint})")


def _serve(connection: Connection, parent: int) -> None:
    """Answers each video until the parent closes the connection or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its decoders
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send(True)
    while True:
        try:
            source, clip, limits, segments = connection.recv()
        except EOFError:
            return
        if segments is None:
            answer = _answer(source, clip, limits)
            _limit(math.inf, math.inf)
            connection.send(answer)
        else:
            for answer in _answers(source, segments, clip, limits):
                connection.send(answer)
            _limit(math.inf, math.inf)


def _answer(source: str | bytes, clip: ClipConfig, limits: DecodeLimits) -> Clip | VideoError | OSError:
    try:
        return read_clip(source, clip, limits, _limit_to(limits))
    except (VideoError, OSError) as error:
        return _plain(error)


def _answers(
    source: str | bytes, segments: Sequence[Segment], clip: ClipConfig, limits: DecodeLimits
) -> Iterator[Clip | VideoError | OSError]:
    try:
        for outcome in read_segments(source, segments, clip, limits, _limit_to(limits)):
            yield _plain(outcome) if isinstance(outcome, VideoError) else outcome
    except OSError as error:
        yield _plain(error)


def _plain(error: VideoError | OSError) -> VideoError | OSError:
    """Returns an error without its cause, which may not pickle."""
    if isinstance(error, VideoError):
        return VideoError(error.reason, str(error))
    return OSError(error.errno, error.strerror, error.filename)


def _limit_to(limits: DecodeLimits) -> Callable[[int], None]:
    """Limits this process to what reading a header may cost; returns what then limits it to what decoding may cost."""
    overhead_bytes = psutil.Process().memory_info().vms
    # The limit is for tables of a few bytes that claim millions of frames, compressed headers and endless metadata.
    # Real videos of 32 MiB were seen to need a third of it before their first frame.
    survey_bytes = _SURVEY_BYTES + _SURVEY_BYTES_PER_PIXEL * limits.max_pixels

    def limit(num_bytes: int, cpu_seconds: float) -> None:
        _limit(overhead_bytes + min(num_bytes, limits.memory_bytes), cpu_seconds)

    def before_decode(num_pixels: int) -> None:
        # Twice as long as the parent waits by the clock: if both ended at once, the wrong reason might be reported.
        limit(survey_bytes + _DECODE_BYTES_PER_PIXEL * num_pixels, 2 * limits.timeout_seconds)

    limit(survey_bytes, limits.survey_share * limits.timeout_seconds)
    return before_decode


def _limit(num_bytes: float, cpu_seconds: float) -> None:
    """Limits the address space of this process, and the processor time after which SIGPROF kills it."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = min(num_bytes, math.inf if hard == resource.RLIM_INFINITY else hard)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY if soft == math.inf else math.ceil(soft), hard))
    # A timer, because RLIMIT_CPU counts in whole seconds.
    signal.setitimer(signal.ITIMER_PROF, 0 if cpu_seconds == math.inf else cpu_seconds)


def _die_with(parent: int) -> None:
    # A decoder that is busy with an endless video would not notice that its connection was closed.
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
