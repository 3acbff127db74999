"""Sends damaged videos to a server over several connections, and says what it should not have answered or kept."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from tests.support.leaks import LEAKS
from tests.support.processes import DECODER, title

MAX_GROWTH_BYTES = 48 * 2**20
"""Most that a process may grow from the second quarter to the last; its allocator never gives all back."""
_SERVING = ("ray::ServeReplica", "ray::ProxyActor", DECODER, "multiprocessing.forkserver")
_TIMEOUT_SECONDS = 120


@dataclass
class Report:
    """What came of an attack."""

    codes: Counter[str] = field(default_factory=Counter)
    findings: dict[int, str] = field(default_factory=dict)
    """What is wrong with an answer, by the number of its file."""
    memory: list[dict[str, int]] = field(default_factory=list)
    """Bytes that each process of the server held, in the course of time."""

    @property
    def table(self) -> str:
        """How often each answer came, as rows of a Markdown table."""
        return "\n".join(f"| {code} | {number} |" for code, number in self.codes.most_common())

    @property
    def growth(self) -> dict[str, int]:
        """Bytes by which processes grew, of those that live from the second quarter to the end: medians of quarters."""
        quarter = len(self.memory) // 4
        if not quarter:
            return {}
        before, after = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        names = set.intersection(*map(set, before + after))
        return {name: _median(after, name) - _median(before, name) for name in names}


def attack(
    port: int,
    make: Callable[[int], bytes],
    numbers: Iterator[int],
    num_connections: int,
    processes: Callable[[], dict[str, psutil.Process]],
) -> Report:
    """Returns what the server answered to each of the files, and how its memory went.

    Args:
        port: Where the server listens on loopback.
        make: Returns the file of a number.
        numbers: Which files are sent.
        num_connections: Requests at a time.
        processes: Returns the processes whose memory is watched, by name.
    """
    report, lock = Report(), threading.Lock()
    done = threading.Event()

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
        while (number := _next(numbers, lock)) is not None:
            code, problem = _ask(connection, make(number))
            with lock:
                report.codes[code] += 1
                if problem:
                    report.findings[number] = problem
        connection.close()

    def watch() -> None:
        while not done.wait(0.5):
            report.memory.append(_memory(processes()))

    threads = [threading.Thread(target=send) for _ in range(num_connections)]
    watcher = threading.Thread(target=watch)
    for thread in (*threads, watcher):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    return report


def serving_processes(pid: int) -> dict[str, psutil.Process]:
    """Returns the proxy, the replicas, their models and the decoders below a process, by name and id."""
    found = {}
    for child in psutil.Process(pid).children(recursive=True):
        line = title(child)
        name = next((name for name in _SERVING if name in line), None)
        if name:
            # Ray's processes also tell there which method they run.
            found[f"{line.split()[0].partition('.')[0] if name.startswith('ray') else name} {child.pid}"] = child
    return found


def _next(numbers: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(numbers, None)


def _ask(connection: http.client.HTTPConnection, video: bytes) -> tuple[str, str | None]:
    """Returns the answer's status with its error's code, and what is wrong with it."""
    try:
        connection.request("POST", "/v1/predict", video, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        body = response.read()
        answer = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        return type(error).__name__, f"no answer: {error!r}"
    code = f"{response.status} {answer.get('error', {}).get('code', '')}".strip()
    if response.status != 200 and not 400 <= response.status < 500:
        return code, f"the status is {response.status}: {body[:300]!r}"
    if found := LEAKS.search(body):
        return code, f"the answer holds {found[0]!r}: {body[:300]!r}"
    return code, None


def _memory(processes: dict[str, psutil.Process]) -> dict[str, int]:
    sizes = {}
    for name, process in processes.items():
        with suppress(psutil.NoSuchProcess):
            sizes[name] = process.memory_info().rss
    return sizes


def _median(memory: list[dict[str, int]], name: str) -> int:
    return sorted(sizes[name] for sizes in memory)[len(memory) // 2]
