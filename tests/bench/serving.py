"""What the benches of the server share: contenders under load by turns, and a table of rates and latencies.

The load comes from one process of its own (tests/support/load.py, closed loop). Contenders take turns at each
concurrency, round by round, in alternating order; the others wait idle meanwhile.
"""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from tests.support.load import Load, load

CONCURRENCIES = (1, 8, 32)
SECONDS = 8.0
"""A turn's length; its start and its last answers, when not all clients are at work, take a fiftieth of it."""
START_SECONDS = 120.0
PERCENTS = (50, 95, 99)


@dataclass(frozen=True)
class Contender:
    """A server that is up, and what it is sent."""

    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """A bound on ours divided by a peer's."""

    peer: str
    concurrency: int
    bound: float
    is_latency: bool = False
    """Of the median seconds, which must stay below the bound; otherwise of the rate, which must reach it."""


@dataclass
class ServingRow:
    """Contenders on the same work; the first is ours."""

    name: str
    work: str
    """What is equal between the contenders, and what is not."""
    loads: dict[str, dict[int, list[Load]]]
    """By contender and concurrency, one per round."""
    goals: list[Goal]

    def rate(self, name: str, concurrency: int) -> float:
        """Returns the median over the rounds of the answers per second."""
        return statistics.median(one.throughput for one in self.loads[name][concurrency])

    def seconds(self, name: str, concurrency: int, percent: float) -> float:
        """Returns a percentile over the requests of all rounds."""
        rounds = self.loads[name][concurrency]
        together = Load([outcome for one in rounds for outcome in one.outcomes], sum(one.seconds for one in rounds))
        return together.percentile(percent)

    def ratio(self, goal: Goal) -> float:
        """Returns ours divided by the peer's."""
        ours = next(iter(self.loads))
        if goal.is_latency:
            return self.seconds(ours, goal.concurrency, 50) / self.seconds(goal.peer, goal.concurrency, 50)
        return self.rate(ours, goal.concurrency) / self.rate(goal.peer, goal.concurrency)

    def as_json(self) -> dict[str, Any]:
        figures = {
            name: {
                str(concurrency): {
                    "per_second": [round(one.throughput, 3) for one in rounds],
                    "seconds": {f"p{percent}": self.seconds(name, concurrency, percent) for percent in PERCENTS},
                    "num_requests": [len(one.outcomes) for one in rounds],
                }
                for concurrency, rounds in of_contender.items()
            }
            for name, of_contender in self.loads.items()
        }
        goals = [vars(goal) | {"ratio": round(self.ratio(goal), 4)} for goal in self.goals]
        return {"name": self.name, "work": self.work, "contenders": figures, "goals": goals}

    def as_text(self) -> str:
        lines = [f"{self.name}: answers per second (ours : its), milliseconds p50 p95 p99", f"    {self.work}"]
        ours = next(iter(self.loads))
        width = max(map(len, self.loads))
        for concurrency in self.loads[ours]:
            lines.append(f"    {concurrency} at a time")
            for name in self.loads:
                rate = self.rate(name, concurrency)
                times = " ".join(f"{1e3 * self.seconds(name, concurrency, percent):8.1f}" for percent in PERCENTS)
                lines.append(f"      {name:<{width}} {rate:7.1f} {self.rate(ours, concurrency) / rate:6.2f}x {times}")
        for goal in self.goals:
            what, relation = ("p50", "<=") if goal.is_latency else ("rate", ">=")
            told = f"ours : {goal.peer} {self.ratio(goal):.2f}x, goal {relation} {goal.bound:g}x"
            lines.append(f"    {what} at {goal.concurrency}: {told}")
        return "\n".join(lines)


def measure(
    contenders: dict[str, Contender], num_rounds: int, concurrencies: Sequence[int] = CONCURRENCIES
) -> dict[str, dict[int, list[Load]]]:
    """Returns every contender's load at every concurrency, one per round, after a short one that is not counted.

    Raises:
        SystemExit: A request was not answered.
    """
    loads: dict[str, dict[int, list[Load]]] = {name: {each: [] for each in concurrencies} for name in contenders}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as generator:
        for name, contender in contenders.items():
            _checked(name, generator.submit(_load, contender, 8, 1.0).result())
        for number in range(1, num_rounds + 1):
            names = list(contenders) if number % 2 else list(reversed(contenders))
            for concurrency in concurrencies:
                for name in names:
                    result = generator.submit(_load, contenders[name], concurrency, SECONDS).result()
                    loads[name][concurrency].append(_checked(name, result))
                    told = f"round {number}/{num_rounds}: {name}, {concurrency} at a time: {result}"
                    print(f"  {told}", file=sys.stderr, flush=True)
    return loads


@contextmanager
def running(command: Sequence[str], port: str, ready_path: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Runs Python as a server until the block ends; yields its address once it answers."""
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **environment}, stdout=sys.stderr, process_group=0
    )
    base, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while not _answers(base + ready_path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: python {' '.join(command)} does not answer")
            time.sleep(0.2)
        yield base
    finally:
        process.terminate()
        process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # MLflow leaves its server to itself


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _load(contender: Contender, concurrency: int, seconds: float) -> Load:
    return asyncio.run(
        load(contender.url, [contender.body], concurrency=concurrency, seconds=seconds, headers=contender.headers)
    )


def _checked(name: str, result: Load) -> Load:
    if result.failed:
        raise SystemExit(f"bench: {name} did not answer {len(result.failed)} requests, such as {result.failed[0]}")
    return result
