"""Row: greedy batching against Ray's own, under a stand-in device, each in a real Ray Serve deployment.

The device takes 50 ms a batch and 2 ms an item, as a GPU does whose forward pass has a fixed part: a sleep, so that the
machine's own speed does not matter. `python -m tests.bench.serve_batching PORT` is the server.
"""

import asyncio
import logging
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray import serve as ray_serve
from starlette.requests import Request

from serve.replica.batcher import GreedyBatcher
from tests.bench.serving import CONCURRENCIES, Contender, Goal, ServingRow, measure, running
from tests.support.ports import free_ports

BATCH_SECONDS, ITEM_SECONDS = 0.05, 0.002
MAX_BATCH_SIZE = 32
SATURATED = 2 * MAX_BATCH_SIZE
"""Clients that leave a full batch waiting while another one runs."""
TUNED_WAIT_SECONDS = 0.06
"""About one forward pass: the shortest wait that fills the batches of a full load."""
MAX_ONGOING_REQUESTS = 100
"""Ray's default of 5 would let no batch grow beyond 5."""
DEFAULTS, TUNED = "@serve.batch, defaults", "@serve.batch, hand-tuned"


class Device:
    """One batch at a time, in a thread."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)

    async def run(self, items: list[int]) -> Sequence[int]:
        seconds = BATCH_SECONDS + ITEM_SECONDS * len(items)
        await asyncio.get_running_loop().run_in_executor(self._executor, time.sleep, seconds)
        return items


class Greedy:
    def __init__(self) -> None:
        self._batcher: GreedyBatcher[int, int] = GreedyBatcher(Device().run, MAX_BATCH_SIZE)

    async def __call__(self, request: Request) -> dict[str, int]:
        return {"num_bytes": await self._batcher.submit(len(await request.body()))}


class Default:
    def __init__(self) -> None:
        self._device = Device()

    @ray_serve.batch
    async def _run(self, items: list[int]) -> Sequence[int]:
        return await self._device.run(items)

    async def __call__(self, request: Request) -> dict[str, int]:
        return {"num_bytes": await self._run(len(await request.body()))}


class Tuned(Default):
    @ray_serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=TUNED_WAIT_SECONDS)
    async def _run(self, items: list[int]) -> Sequence[int]:
        return await self._device.run(items)


def rows(num_rounds: int, folder: Path) -> list[ServingRow]:
    (port,) = free_ports(1)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    with running(["-m", "tests.bench.serve_batching", port], port, f"/{Tuned.__name__}", environment) as base:
        deployments = {"greedy": Greedy, DEFAULTS: Default, TUNED: Tuned}
        contenders = {name: Contender(f"{base}/{made.__name__}", b"x" * 1000) for name, made in deployments.items()}
        loads = measure(contenders, num_rounds, (*CONCURRENCIES, SATURATED))
    work = (
        f"same work: a sleep of {BATCH_SECONDS:g} s and {ITEM_SECONDS:g} s per item in one thread, the same proxy and "
        f"max_ongoing_requests={MAX_ONGOING_REQUESTS}; batches up to {MAX_BATCH_SIZE} (defaults: 10, 10 ms), tuned to "
        f"wait {TUNED_WAIT_SECONDS:g} s"
    )
    loaded = (max(CONCURRENCIES), SATURATED)
    goals = [Goal(peer, clients, bound) for clients in loaded for peer, bound in ((DEFAULTS, 2.5), (TUNED, 1.0))]
    goals.append(Goal(TUNED, 1, 0.55, is_latency=True))
    return [ServingRow("batching, stand-in device", work, loads, goals)]


def serve(port: int, ray_folder: str) -> None:
    """Serves every deployment below its name until SIGTERM."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING"}
    ray.init(address="local", include_dashboard=False, num_cpus=3, logging_level=logging.WARNING, _temp_dir=ray_folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
        for deployment in (Greedy, Default, Tuned):
            made = ray_serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)(deployment)
            name = deployment.__name__
            ray_serve.run(made.bind(), name=name, route_prefix=f"/{name}", logging_config=quiet)
        threading.Event().wait()
    finally:
        ray_serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="clipstream-", dir="/tmp", ignore_cleanup_errors=True) as own_folder:
        serve(int(sys.argv[1]), own_folder)  # the path of a socket may have 107 bytes
