"""Loads an HTTP server with videos and keeps what came of every request.

    python -m tests.support.load http://127.0.0.1:8000/v1/predict a.mp4 b.mp4 --concurrency 8 --seconds 10

Closed loop (`--concurrency`): each of so many clients sends its next request once the last one is answered; this shows
throughput. Open loop (`--rate`): requests fall due at a constant rate whatever the server does, and their seconds count
from when they were due, so that a pause costs every request that it delays. Run it in a process of its own.

Kept tools were tried. hey and Locust show one slow answer if the server pauses for a second at 20 requests per second,
because their clients wait instead; hey and wrk also lose each answer's error code, model version and Retry-After.
"""

import argparse
import asyncio
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import numpy as np


@dataclass(frozen=True)
class Outcome:
    """What came of one request."""

    start: float
    """When it was sent, or in open loop fell due: `time.monotonic`, which all processes of a machine share."""
    seconds: float
    status: int
    """HTTP status; 0 if no answer came."""
    code: str | None = None
    """The error answer's code, or the kind of failure if no answer came."""
    version: str | None = None
    """Model version that answered."""
    retry_after: str | None = None


@dataclass(frozen=True)
class Load:
    """The outcomes of a time under load."""

    outcomes: list[Outcome]
    seconds: float

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == 200]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    @property
    def throughput(self) -> float:
        """Videos answered per second."""
        return len(self.answered) / self.seconds

    def percentile(self, percent: float) -> float:
        """Returns the seconds within which that share of the answers came; 100: the worst."""
        return float(np.percentile([outcome.seconds for outcome in self.answered] or [np.nan], percent))

    def between(self, start: float, end: float) -> "Load":
        """Returns the part that started in the half-open interval."""
        return Load([outcome for outcome in self.outcomes if start <= outcome.start < end], end - start)

    def __str__(self) -> str:
        failures = Counter(f"{outcome.status} {outcome.code}" for outcome in self.failed)
        times = " ".join(f"p{percent}={self.percentile(percent):.3f}" for percent in (50, 95, 99))
        return (
            f"requests={len(self.outcomes)} answered={len(self.answered)} per_second={self.throughput:.1f} "
            f"seconds: {times} worst={self.percentile(100):.3f} failed={dict(failures)}"
        )


@dataclass
class Client:
    """Posts videos in turn to one address."""

    url: str
    videos: Sequence[bytes]
    headers: dict[str, str] = field(default_factory=dict)
    timeout_seconds: float = 120.0
    outcomes: list[Outcome] = field(default_factory=list)

    async def closed_loop(self, concurrency: int, stop: asyncio.Event, num_requests: int | None = None) -> None:
        """Keeps `concurrency` requests under way until `stop`, or until so many have been sent."""
        numbers = iter(range(num_requests)) if num_requests else itertools.count()

        async def client(post: Callable[[int, float], Awaitable[None]]) -> None:
            while not stop.is_set() and (number := next(numbers, None)) is not None:
                await post(number, time.monotonic())

        async with self._session() as session:
            await asyncio.gather(*(client(self._poster(session)) for _ in range(concurrency)))

    async def open_loop(self, rate: float, stop: asyncio.Event) -> None:
        """Sends `rate` requests per second until `stop`, then waits for the last answers."""
        async with self._session() as session, asyncio.TaskGroup() as group:
            post, start = self._poster(session), time.monotonic()
            for number in itertools.count():
                due = start + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if stop.is_set():
                    return
                group.create_task(post(number, due))

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=self.timeout_seconds)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=self.headers)

    def _poster(self, session: aiohttp.ClientSession) -> Callable[[int, float], Awaitable[None]]:
        async def post(number: int, start: float) -> None:
            status, body, retry_after = 0, b"", None
            try:
                async with session.post(self.url, data=self.videos[number % len(self.videos)]) as answer:
                    status, retry_after, body = answer.status, answer.headers.get("Retry-After"), await answer.read()
                code, version = _read_answer(body)
            except (aiohttp.ClientError, TimeoutError) as error:
                status, code, version = 0, type(error).__name__, None
            seconds = time.monotonic() - start
            self.outcomes.append(Outcome(start, seconds, status, code, version, retry_after))

        return post


def _read_answer(body: bytes) -> tuple[str | None, str | None]:
    try:
        answer = json.loads(body)
        return answer.get("error", {}).get("code"), answer.get("model", {}).get("version")
    except (ValueError, AttributeError):
        return "no_json", None


async def load(
    url: str,
    videos: Sequence[bytes],
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    seconds: float | None = None,
    num_requests: int | None = None,
    headers: dict[str, str] | None = None,
) -> Load:
    """Returns what came of a closed loop at a concurrency, or of an open one at a rate (requests per second).

    It ends after `seconds`, after `num_requests` (closed loop), or at SIGINT, once all that was sent is answered.
    """
    client, stop, start = Client(url, videos, headers or {}), asyncio.Event(), time.monotonic()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    if concurrency is not None:
        await client.closed_loop(concurrency, stop, num_requests)
    elif rate is not None:
        await client.open_loop(rate, stop)
    return Load(client.outcomes, time.monotonic() - start)


def write_outcomes(outcomes: Iterable[Outcome], path: Path) -> None:
    path.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))


def read_outcomes(path: Path) -> list[Outcome]:
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.load", description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("videos", type=Path, nargs="+")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--concurrency", type=int, help="closed loop: requests under way at a time")
    kind.add_argument("--rate", type=float, help="open loop: requests per second")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--num-requests", type=int, help="closed loop: end after so many")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--out", type=Path, help="file for the outcomes, one JSON object per line")
    options = parser.parse_args()
    result = asyncio.run(
        load(
            options.url,
            [path.read_bytes() for path in options.videos],
            concurrency=options.concurrency,
            rate=options.rate,
            seconds=options.seconds,
            num_requests=options.num_requests,
            headers={"Authorization": f"Bearer {options.key}"} if options.key else None,
        )
    )
    if options.out:
        write_outcomes(result.outcomes, options.out)
    print(result)


if __name__ == "__main__":
    main()
