"""Breaks real trainings and real servers and shows what it cost: `make drill`, `make drill DRILLS="serve-swap worker"`.

A training is compared with one that nothing disturbed, a server under constant load with an equal time without the
blow. Prints a table for each; the exit code is 1 if a training did not end well, lost or doubled a sample or a step, or
came out different, or if a server failed a request that it may not fail, or was slower than it may be.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packer.__main__ import main as pack
from tests.drill import drills, rows
from tests.drill.changes import CHANGES
from tests.drill.faults import FAULTS
from tests.drill.server import register_models
from tests.support.training import Project, project
from tests.support.videos import write_classes

SERVER_DRILLS = CHANGES | FAULTS
TRAINING_HEADINGS = (
    "what was done to the run",
    "steps recomputed",
    "seconds to recover",
    "against the undisturbed run",
)
SERVER_HEADINGS = (
    "what was done to the server",
    "requests",
    "failed",
    "p99, worst seconds",
    "the same without it",
    "seconds to recover",
)


def cells(row: drills.Row | rows.Row) -> tuple[str, ...]:
    recovered = "-" if row.recovery_seconds is None else f"{row.recovery_seconds:.0f}"
    if isinstance(row, drills.Row):
        return row.what, str(row.num_recomputed), recovered, row.difference
    return row.what, str(row.num_requests), row.failed, row.times, row.quiet_times, recovered


def show(row: drills.Row | rows.Row) -> None:
    print(as_line(cells(row)), *row.problems, sep="\n", file=sys.stderr)


def as_line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def print_table(headings: Sequence[str], done: Iterable[drills.Row | rows.Row]) -> None:
    print("", as_line(headings), "|" + "---|" * len(headings), *(as_line(cells(row)) for row in done), sep="\n")


def drill_trainings(names: Iterable[str], folder: Path) -> list[drills.Row]:
    data = write_classes(folder / "data", {"a": 40, "b": 40}, num_frames=6)
    options = ["--workers=1", "--clip.num-frames=4", "--clip.short-side-px=32", "--shards.max-samples=8"]
    if pack([str(data), f"{folder}/shards", *options]):
        raise SystemExit(1)
    home = folder / "home"
    home.mkdir()
    done = []
    with project(home, folder / "shards") as made:
        shared = drills.Drills(made)
        for name in names:
            print(f"drill: {name}", file=sys.stderr)
            done.append(drills.DRILLS[name](shared))
            show(done[-1])
    return done


def drill_servers(names: Iterable[str], folder: Path) -> list[rows.Row]:
    register_models(folder)
    done = []
    for name in names:
        print(f"drill: {name}", file=sys.stderr)
        made = Project(folder, tempfile.mkdtemp(prefix="clipstream-", dir="/tmp"))
        try:
            done.append(SERVER_DRILLS[name](made))
        finally:
            for process in made.alive():
                process.kill()
            shutil.rmtree(made.ray_folder, ignore_errors=True)
        show(done[-1])
    return done


def main() -> int:
    known = [*drills.DRILLS, *SERVER_DRILLS]
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__.partition("\n")[0])
    parser.add_argument("drills", nargs="*", help=f"any of {', '.join(known)}; all by default")
    names = parser.parse_args().drills or known
    if unknown := set(names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    of_training = [name for name in names if name in drills.DRILLS]
    of_server = [name for name in names if name in SERVER_DRILLS]
    with tempfile.TemporaryDirectory(prefix="clipstream-drill-") as made:
        folder = Path(made)
        (folder / "server").mkdir()
        trainings = drill_trainings(of_training, folder) if of_training else []
        servers = drill_servers(of_server, folder / "server") if of_server else []
    if trainings:
        print_table(TRAINING_HEADINGS, trainings)
    if servers:
        print_table(SERVER_HEADINGS, servers)
    done = [*trainings, *servers]
    problems = [f"{row.what}: {problem}" for row in done for problem in row.problems]
    print("\n".join(["", *problems]) if problems else f"\n{len(done)} of {len(done)} drills passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
