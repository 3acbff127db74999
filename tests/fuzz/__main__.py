"""Sends thousands of damaged videos to a real server, `python -m serve`: `make fuzz`.

Every answer must be 200 or 4xx and tell nothing of the machine; no process may die, or grow. A file that breaks this is
kept in fuzz-findings/, and the exit code is 1. `--first N` continues a stopped run, `--only N` writes one file.
"""

import argparse
import sys
import tempfile
import time
from itertools import count, takewhile
from pathlib import Path

import psutil

from tests.fuzz.attack import MAX_GROWTH_BYTES, Report, attack, serving_processes
from tests.fuzz.mutate import mutated, sources
from tests.support.registry import register
from tests.support.serving import ask, serving

FINDINGS = Path("fuzz-findings")


def main() -> int:
    options = parse_options()
    videos = sources()
    if options.only is not None:
        print(keep(options.only, mutated(videos, options.seed, options.only)))
        return 0
    with tempfile.TemporaryDirectory(prefix="clipstream-fuzz-") as folder:
        register(Path(folder))
        with serving(Path(folder)) as (process, port):
            print(f"fuzz: {options.files} files made from {len(videos)} videos, seed {options.seed}", file=sys.stderr)
            before = {one.pid: name for name, one in serving_processes(process.pid).items() if "pool" not in name}
            start = time.monotonic()
            numbers = takewhile(
                lambda number: number < options.first + options.files and time.monotonic() < start + options.seconds,
                count(options.first),
            )
            report = attack(
                port,
                lambda number: mutated(videos, options.seed, number),
                numbers,
                options.connections,
                lambda: serving_processes(process.pid),
            )
            seconds = time.monotonic() - start
            problems = [f"{name} died" for pid, name in before.items() if not psutil.pid_exists(pid)]
            if ask(port, "GET", "/readyz").status != 200:
                problems.append("the server is not ready any more")
    for number, problem in report.findings.items():
        problems.append(f"{keep(number, mutated(videos, options.seed, number))}: {problem}")
    problems += [f"{name} grew by {grown:,} bytes" for name, grown in report.growth.items() if grown > MAX_GROWTH_BYTES]
    tell(report, seconds, problems)
    return 1 if problems else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000, help="how many damaged videos are sent")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--only", type=int, help="write the file of this number instead, and send nothing")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other files")
    parser.add_argument("--seconds", type=float, default=3600, help="stop after this time, however many were sent")
    parser.add_argument("--connections", type=int, default=4, help="requests at a time")
    return parser.parse_args()


def keep(number: int, video: bytes) -> Path:
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{number}.bin"
    path.write_bytes(video)
    return path


def tell(report: Report, seconds: float, problems: list[str]) -> None:
    print(f"| answer | files |\n|---|---|\n{report.table}")
    print(
        f"\n{report.codes.total()} files in {seconds:.0f} s; memory, from the second quarter of the time to the last:"
    )
    for name, grown in sorted(report.growth.items()):
        print(f"  {name}: {report.memory[-1].get(name, 0) / 2**20:.0f} MiB, {grown / 2**20:+.0f} MiB")
    print("\n".join(["", *problems]) if problems else "\nno finding")


if __name__ == "__main__":
    sys.exit(main())
