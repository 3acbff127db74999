"""Breaks real trainings and compares what comes out with one that nothing disturbed: `make drill`.

Prints a table; the exit code is 1 if a run did not end well, lost or doubled a sample or a step, or came out different.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from packer.__main__ import main as pack
from tests.drill.drills import DRILLS, Drills, Row
from tests.training import project
from tests.videos import write_classes

HEADINGS = ("what was done to the run", "steps taken again", "seconds to recover", "against the undisturbed run")


def as_text(row: Row) -> str:
    recovered = "-" if row.recovery_seconds is None else f"{row.recovery_seconds:.0f}"
    return f"| {row.what} | {row.num_recomputed} | {recovered} | {row.difference} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__.partition("\n")[0])
    parser.add_argument("drills", nargs="*", help=f"any of {', '.join(DRILLS)}; all by default")
    names = parser.parse_args().drills or list(DRILLS)
    if unknown := set(names) - set(DRILLS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(DRILLS)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="clipstream-drill-") as folder:
        data = write_classes(Path(folder) / "data", {"a": 40, "b": 40}, num_frames=6)
        options = ["--workers=1", "--clip.num-frames=4", "--clip.short-side-px=32", "--shards.max-samples=8"]
        if pack([str(data), f"{folder}/shards", *options]):
            return 1
        home = Path(folder) / "home"
        home.mkdir()
        with project(home, Path(folder) / "shards") as made:
            drills = Drills(made)
            for name in names:
                print(f"drill: {name}", file=sys.stderr)
                rows.append(DRILLS[name](drills))
                print(as_text(rows[-1]), *rows[-1].problems, sep="\n", file=sys.stderr)
    print("\n".join(["", "| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS), *map(as_text, rows)]))
    problems = [f"{row.what}: {problem}" for row in rows for problem in row.problems]
    print("\n".join(["", *problems]) if problems else f"\n{len(rows)} of {len(rows)} drills passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
