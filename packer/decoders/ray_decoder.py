"""Decoders on a Ray cluster: each is an actor of one CPU that drives a decoder process on its machine.

Only decoding is spread. This process plans and writes the shards, so their bytes equal those of a local pack. Every
machine of the cluster must have this version of clipstream and be able to read the source.
"""

import logging
import re
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from configs.pack import ClipConfig, DecodeLimits
from configs.section import UsageError
from packer.decoders.process import ProcessDecoder
from packer.video.clip import Clip, library_versions
from packer.video.container import VideoError
from packer.video.segment import Segment

_HOST_AND_PORT = re.compile(r"([^:/]+):([0-9]+)")
_CONNECT_SECONDS = 10


@contextmanager
def joined(address: str) -> Iterator[int]:
    """Joins a cluster while the block runs and yields how many of its CPUs are free, at least 1.

    Raises:
        UsageError: No cluster answers at the address.
    """
    try:
        if match := _HOST_AND_PORT.fullmatch(address):  # without an answer, Ray itself would try for many minutes
            socket.create_connection((match[1], int(match[2])), _CONNECT_SECONDS).close()
        ray.init(address=address, logging_level=logging.WARNING)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray cluster answers at {address} (--ray), or it wants another token") from error
    try:
        yield max(1, int(ray.available_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


class ClusterDecoder:
    """An actor that decodes; if its machine is lost, Ray starts it again elsewhere."""

    def __init__(self, limits: DecodeLimits) -> None:
        """Takes what one video may cost."""
        self._actor: Any = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Actor).remote(limits)
        self._is_checked = False

    def read_clip(self, source: str | bytes, clip: ClipConfig) -> Clip:
        """Returns the clip of a video.

        Raises:
            VideoError: The video gives no clip.
            OSError: The video's storage fails, or no decoder process starts.
            UsageError: The machine has other versions of the libraries that decide the bytes.
        """
        self._check()
        answer: Clip | VideoError | OSError = ray.get(self._actor.read_clip.remote(source, clip))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def read_segments(
        self, source: str | bytes, segments: Sequence[Segment], clip: ClipConfig
    ) -> Generator[Clip | VideoError, None, None]:
        """Yields the clip of each segment of a video in order, or why it has none.

        Raises:
            VideoError: The video takes too long, or crashes its decoder.
            OSError: The video's storage fails, or no decoder process starts.
            UsageError: The machine has other versions of the libraries that decide the bytes.
        """
        self._check()
        for reference in self._actor.read_segments.options(num_returns="streaming").remote(source, segments, clip):
            is_outcome, answer = ray.get(reference)
            if not is_outcome:
                raise answer
            yield answer

    def _check(self) -> None:
        if not self._is_checked:
            there, here = ray.get(self._actor.versions.remote()), library_versions()
            if there != here:
                raise UsageError(f"a machine of the cluster has {there}, this one {here}: install the same on all")
            self._is_checked = True

    def close(self) -> None:
        """Ends the actor and its decoder."""
        ray.kill(self._actor)


class _Actor:
    def __init__(self, limits: DecodeLimits) -> None:
        self._decoder = ProcessDecoder(limits)

    def versions(self) -> dict[str, str]:
        return library_versions()

    def read_clip(self, source: str | bytes, clip: ClipConfig) -> Clip | VideoError | OSError:
        try:
            return self._decoder.read_clip(source, clip)
        except (VideoError, OSError) as error:
            return _plain(error)

    def read_segments(
        self, source: str | bytes, segments: Sequence[Segment], clip: ClipConfig
    ) -> Iterator[tuple[bool, Clip | VideoError | OSError]]:
        """Yields outcomes, each with True, or with False what the caller must raise."""
        try:
            for outcome in self._decoder.read_segments(source, segments, clip):
                yield True, outcome
        except (VideoError, OSError) as error:
            yield False, _plain(error)


def _plain(error: VideoError | OSError) -> VideoError | OSError:
    """Returns an error without its cause, which may not pickle."""
    if isinstance(error, VideoError):
        return VideoError(error.reason, str(error))
    return OSError(*error.args, *([error.filename] if error.filename else []))
