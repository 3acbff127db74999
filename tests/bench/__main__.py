"""Measures this project against the usual ways: `make bench`, or `make bench ROWS="stream train_step"`.

Prints a table and writes it, with every round's figures and the machine, as JSON to bench-results/.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench import (
    clip,
    gpu,
    leak,
    pack,
    remote,
    scale,
    segments,
    serve_batching,
    serve_real,
    stream,
    train,
    train_step,
)

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "bench-results"
LIBRARIES = ["av", "numpy", "simplejpeg", "torch", "torchvision", "webdataset"]
BENCHES: dict[str, Callable[[int, Path], list[Any]]] = {
    "clip": clip.rows,
    "pack": pack.rows,
    "segments": segments.rows,
    "stream": stream.rows,
    "remote": remote.rows,
    "train_step": train_step.rows,
    "train": train.rows,
    "gpu": gpu.rows,
    "leak": leak.rows,
    "scale": scale.rows,
    "serve_batching": serve_batching.rows,
    "serve_real": serve_real.rows,
}


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("benches", nargs="*", help=f"any of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds of each contender")
    arguments = parser.parse_args()
    unknown = set(arguments.benches) - set(BENCHES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(BENCHES)}")
    RESULTS.mkdir(exist_ok=True)
    about = machine()
    rows = []
    for name in arguments.benches or BENCHES:
        print(f"{name}:", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=RESULTS, prefix="work-") as folder:
            rows += BENCHES[name](arguments.rounds, Path(folder))
    print(f"\n{about['cpu']}, {about['cores']} cores; ratio above 1: ours is better; median (least-most) of rounds\n")
    print("\n\n".join(row.as_text() for row in rows))
    path = RESULTS / time.strftime("bench-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps({"machine": about, "rows": [row.as_json() for row in rows]}, indent=2) + "\n")
    print(f"\nwritten to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
