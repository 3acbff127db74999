"""Rows: the stream from a server that is far away and fails now and then, against WebDataset's own reading over HTTP.

The server is tests/support/web.py on this machine: every request waits 20 to 80 ms, one in a hundred is answered by
503. Ours makes a request for each clip, WebDataset one for each shard (`curl --retry 30 --retry-delay 2`).
"""

import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from packer.__main__ import main as pack
from packer.storage.location import Location, RemotePath
from tests.bench.measure import spread
from tests.bench.stream import BATCH, NUM_EPOCHS, UNMEASURED_BATCHES, ours, webdataset
from tests.bench.videos import make_sets
from tests.support.web import web_server
from trainer.stream.cache import ShardCache
from trainer.stream.index import SampleIndex

SERVER = ["--latency-ms", "20", "80", "--failing", "0.01"]
STEP_FACTOR = 1.5
"""The paced consumer takes this many times what a batch takes the local stream: a stream without stalls keeps up."""


@dataclass
class RemoteRow:
    """One stream's rounds."""

    name: str
    clips_per_second: list[float] = field(default_factory=list)
    stall_share: list[float] = field(default_factory=list)
    """Of the time of a consumer that takes STEP_FACTOR times the local stream's time for a batch."""
    longest_stall_seconds: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return vars(self)

    def as_text(self) -> str:
        rate, share, longest = map(spread, (self.clips_per_second, self.stall_share, self.longest_stall_seconds))
        return (
            f"{self.name}: {rate['median']:.0f} clips/s ({rate['min']:.0f}-{rate['max']:.0f}); a paced consumer waits "
            f"{share['median']:.1%} of its time, {longest['median']:.2f} s at most (worst round {longest['max']:.2f} s)"
        )


def rows(num_rounds: int, folder: Path) -> list[RemoteRow]:
    _, videos = list(make_sets(folder / "videos", num_per_class=100).items())[-1]
    shards = folder / "shards"
    options = ["--split.val-fraction=0.1", "--split.test-fraction=0.1", "--shards.min-train-shards=4"]
    if pack([str(videos), str(shards), *options]):
        raise SystemExit("bench: packing the videos failed")
    with web_server(shards, *SERVER) as server:
        cache = ShardCache(folder / "cache", 10**9)
        far = partial(_index, RemotePath(server.url))
        index = _index(shards)
        urls = [f"{server.url}/{name}" for name in index.shards]
        streams: dict[str, Callable[[], Iterator[int]]] = {
            "local folder": lambda: ours(index),
            "ours, by range": lambda: ours(far()),
            "ours, empty cache": lambda: ours(far(_emptied(cache))),
            "ours, filled cache": lambda: ours(far(cache)),
            "WebDataset, http": lambda: webdataset(urls),
        }
        made = {name: RemoteRow(f"remote, {name}") for name in streams}
        step_seconds = STEP_FACTOR * BATCH / _rate(streams["local folder"](), index.num_samples)
        for number, (name, stream) in itertools.product(range(1, num_rounds + 1), streams.items()):
            row = made[name]
            row.clips_per_second.append(_rate(stream(), index.num_samples))
            share, longest = _stalls(stream(), index.num_samples, step_seconds)
            row.stall_share.append(share)
            row.longest_stall_seconds.append(longest)
            print(f"  round {number}/{num_rounds}: {row.as_text()}", file=sys.stderr, flush=True)
    return list(made.values())


def _index(folder: Location, cache: ShardCache | None = None) -> SampleIndex:
    return SampleIndex.open(folder, "train", cache)


def _emptied(cache: ShardCache) -> ShardCache:
    shutil.rmtree(cache.folder, ignore_errors=True)
    return cache


def _rate(batches: Iterator[int], num_samples: int) -> float:
    """Returns the clips per second of a consumer that takes no time, after the first batches, while processes start."""
    num_left = num_clips = num_samples * NUM_EPOCHS - sum(itertools.islice(batches, UNMEASURED_BATCHES))
    start = time.perf_counter()
    while num_left > 0:
        num_left -= next(batches)
    return num_clips / (time.perf_counter() - start)


def _stalls(batches: Iterator[int], num_samples: int, step_seconds: float) -> tuple[float, float]:
    """Returns the share of its time that a consumer of a fixed pace waits, and the longest that it waited at once."""
    num_left = num_samples * NUM_EPOCHS - sum(itertools.islice(batches, UNMEASURED_BATCHES))
    waits = []
    start = time.perf_counter()
    while num_left > 0:
        asked = time.perf_counter()
        num_left -= next(batches)
        waits.append(time.perf_counter() - asked)
        time.sleep(step_seconds)
    return sum(waits) / (time.perf_counter() - start), max(waits)
