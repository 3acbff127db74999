"""Rows: what the number of videos costs in memory, and what planning a million of them takes."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.videos import write_numbered_video

NUM_FEW, NUM_MANY, NUM_CATALOG = 200, 5_000, 1_000_000
NUM_CLASSES = 100
PLAN = f"""
import sys, time
from pathlib import Path
from configs.pack import PackRecipe
from packer.catalog import Catalog, Video
from packer.plan import make_plan
from packer.target import read_plan, write_plan

names = [f"class-{{number:03d}}" for number in range({NUM_CLASSES})]
sources = sorted(f"{{names[number % {NUM_CLASSES}]}}/video {{number:07d}}.mp4" for number in range({NUM_CATALOG}))
videos = tuple(Video(f"/data/{{s}}", s, s.partition("/")[0], size) for size, s in enumerate(sources, start=100_000))
started = time.monotonic()
plan = make_plan(Catalog(tuple(names), videos, (), {{}}), PackRecipe())
seconds = time.monotonic() - started
(Path(sys.argv[1]) / ".pack").mkdir(parents=True)
write_plan(Path(sys.argv[1]), plan)
assert read_plan(Path(sys.argv[1]), videos).shards == plan.shards
print(seconds, len(plan.shards))
"""


@dataclass
class ScaleRow:
    """Peak memory of the largest process, by number of videos."""

    peak_mib: dict[int, float]
    plan_seconds: float
    plan_peak_mib: float

    def as_json(self) -> dict[str, Any]:
        return {"name": "scale", **vars(self)}

    def as_text(self) -> str:
        packed = ", ".join(f"{peak:.0f} MiB for {count:,}" for count, peak in self.peak_mib.items())
        return (
            f"scale: peak memory of packing tiny videos {packed}\n"
            f"    planning {NUM_CATALOG:,} videos: {self.plan_seconds:.1f} s; with the plan written and read, "
            f"peak {self.plan_peak_mib:.0f} MiB"
        )


def rows(num_rounds: int, folder: Path) -> list[ScaleRow]:
    peak_mib = {}
    video = write_numbered_video(folder / "tiny.mp4", 4, height_px=32, width_px=32).read_bytes()
    for count in (NUM_FEW, NUM_MANY):
        data = folder / f"data-{count}"
        for number in range(count):
            path = data / f"class-{number % 4}" / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(video + bytes(number))  # of different lengths, so that none is read to be compared
        command = ["-m", "packer", str(data), str(folder / f"shards-{count}"), "--clip.num-frames=4"]
        peak_mib[count] = _run(command)[0]
    plan_peak_mib, output = _run(["-c", PLAN, str(folder / "planned")])
    return [ScaleRow(peak_mib, float(output.split()[0]), plan_peak_mib)]


def _run(arguments: list[str]) -> tuple[float, str]:
    """Runs Python; returns the most memory that it, or a process it waited for, held at a time, and what it said."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024, output
