"""Interleaved rounds, CPU-seconds, and rows of a table: what every bench here shares.

Contenders take turns round by round, in alternating order, so that a machine that slows down slows all of them. A
row's ratio is taken within each round; its median and its spread over the rounds are shown. CPU-seconds (all
processes of a contender together) are the figure to trust on a busy machine, wall seconds on an idle one.
"""

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Cost:
    """What one round of one contender took."""

    wall_seconds: float
    cpu_seconds: float
    """NaN: not known."""
    num_units: int

    @property
    def cpu_ms(self) -> float:
        return 1e3 * self.cpu_seconds / self.num_units

    @property
    def wall_ms(self) -> float:
        return 1e3 * self.wall_seconds / self.num_units


Contender = Callable[[], Cost]


@dataclass
class Row:
    """Ours against one peer, on one kind of work."""

    name: str
    work: str
    """Exactly what is equal between the two, and what is not."""
    unit: str
    ours: list[Cost]
    peer_name: str
    peer: list[Cost]
    goal: float | None = None

    def ratios(self, quantity: str) -> list[float]:
        return [
            getattr(peer, quantity) / getattr(ours, quantity) for ours, peer in zip(self.ours, self.peer, strict=True)
        ]

    def as_json(self) -> dict[str, Any]:
        sides = {"ours": self.ours, self.peer_name: self.peer}
        figures: dict[str, Any] = {"name": self.name, "work": self.work, "unit": self.unit, "goal": self.goal}
        for quantity in ("cpu_ms", "wall_ms"):
            if not any(math.isnan(ratio) for ratio in self.ratios(quantity)):
                figures[f"{quantity.removesuffix('_ms')}_ratio"] = spread(self.ratios(quantity))
                figures[f"{quantity}_per_unit"] = {
                    side: [round(getattr(cost, quantity), 4) for cost in costs] for side, costs in sides.items()
                }
        return figures

    def as_text(self) -> str:
        cpu, wall = spread(self.ratios("cpu_ms")), spread(self.ratios("wall_ms"))
        ours, peer = (statistics.median(cost.cpu_ms for cost in costs) for costs in (self.ours, self.peer))
        goal = f"  goal {self.goal:g}x" if self.goal else ""
        by_cpu = "" if math.isnan(ours) else f"{cpu['median']:.2f}x ({cpu['min']:.2f}-{cpu['max']:.2f}) by CPU, "
        lines = [
            f"{self.name}: {by_cpu}{wall['median']:.2f}x ({wall['min']:.2f}-{wall['max']:.2f}) by the clock{goal}",
            f"    {self.work}",
        ]
        if by_cpu:
            lines.append(f"    CPU-ms per {self.unit}: ours {ours:.2f}, {self.peer_name} {peer:.2f}")
        return "\n".join(lines)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def interleave(contenders: dict[str, Contender], num_rounds: int) -> dict[str, list[Cost]]:
    """Runs every contender once per round, forwards and backwards in turn; one earlier round of each is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for number in range(num_rounds + 1):
        names = list(contenders) if number % 2 else list(reversed(contenders))
        for name in names:
            cost = contenders[name]()
            if number:
                costs[name].append(cost)
            progress = f"{name} {cost.cpu_ms:.2f} CPU-ms, {cost.wall_ms:.2f} ms per unit"
            print(f"  round {number}/{num_rounds}: {progress}", file=sys.stderr, flush=True)
    return costs


@contextmanager
def stopwatch(num_units: int) -> Iterator[list[Cost]]:
    """Measures the block: wall seconds, and CPU-seconds of this process and its living descendants."""
    result: list[Cost] = []
    cpu, wall = _cpu_seconds(), time.perf_counter()
    yield result
    result.append(Cost(time.perf_counter() - wall, _cpu_seconds() - cpu, num_units))


def run_measured(command: Sequence[str | Path], num_units: int, environment: dict[str, str]) -> Cost:
    """Runs a command to its end; its CPU-seconds include those of every child it has waited for."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench: {' '.join(map(str, command))} failed with exit code {process.returncode}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, num_units)


def _cpu_seconds() -> float:
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
