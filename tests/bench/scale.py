"""Rows: what the number of videos costs in memory; what a million of them cost to plan, and many more to train on."""

import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from configs.pack import PackRecipe
from packer.shards.manifest import Manifest, ShardSummary, SplitSummary, write_manifest
from tests.support.videos import write_numbered_video
from trainer.stream.index import SampleIndex

NUM_FEW, NUM_MANY, NUM_CATALOG = 200, 5_000, 1_000_000
NUM_CLASSES = 100
PLAN = f"""
import sys, time
from pathlib import Path
from configs.pack import PackRecipe
from packer.video.catalog import Catalog, Video
from packer.planning.plan import make_plan
from packer.shards.stored_plan import read_plan, write_plan

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

NUM_ORDERED, NUM_INDEXED, SHARD_SIZE = 100_000_000, 10_000_000, 1000
NUM_RANKS, CLIPS_PER_RANK = 1024, 32
ORDER = f"""
import time
from trainer.schedule.schedule import Schedule, Shuffle

started = time.monotonic()
shard_sizes = [{SHARD_SIZE}] * {NUM_ORDERED // SHARD_SIZE}
schedule = Schedule(shard_sizes, {NUM_RANKS * CLIPS_PER_RANK}, 2, shuffle=Shuffle(0, 2000))
schedule.rows(0, 5, {NUM_RANKS})
first = time.monotonic() - started
steps = range(1, 400, 8)  # one of eight loader processes
for step in steps:
    schedule.rows(step, 5, {NUM_RANKS})
print(first, (time.monotonic() - started - first) / len(steps))
"""
READ_INDEX = """
import multiprocessing, sys, time
from pathlib import Path
from tests.bench.scale import say_memory
from trainer.stream.index import SampleIndex

started = time.monotonic()
index = SampleIndex.open(Path(sys.argv[1]), "train")
opened = time.monotonic() - started
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["trainer.stream.loader"])
taken = []
for handed in (None, None, index):
    receiver, sender = context.Pipe(duplex=False)
    started = time.monotonic()
    context.Process(target=say_memory, args=(sender, handed)).start()
    taken.append((receiver.recv(), time.monotonic() - started))
(_, (alone, start), (with_index, start_with_index)) = taken
print(opened, with_index - alone, start_with_index - start)
"""
MEASURED = """
import resource, subprocess, sys

subprocess.run([sys.executable, *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@dataclass
class TrainScaleRow:
    """What one process of a training on very many samples takes."""

    first_seconds: float
    step_seconds: float
    order_peak_mib: float
    index_seconds: float
    handed_bytes: int
    handed_seconds: float
    index_peak_mib: float

    def as_json(self) -> dict[str, Any]:
        return {"name": "scale of training", **vars(self)}

    def as_text(self) -> str:
        return (
            f"scale: order of {NUM_ORDERED:,} samples on {NUM_RANKS:,} ranks, {CLIPS_PER_RANK} clips each: first step "
            f"{self.first_seconds:.2f} s, a later step {1e3 * self.step_seconds:.0f} ms, peak of the process "
            f"{self.order_peak_mib:.0f} MiB\n"
            f"    index of {NUM_INDEXED:,} samples: opened in {self.index_seconds:.1f} s, peak "
            f"{self.index_peak_mib:.0f} MiB; each loader process holds {self.handed_bytes / NUM_INDEXED:.1f} bytes a "
            f"sample more for it, and takes {self.handed_seconds:.2f} s longer to start"
        )


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


def rows(num_rounds: int, folder: Path) -> list[ScaleRow | TrainScaleRow]:
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
    return [ScaleRow(peak_mib, float(output.split()[0]), plan_peak_mib), _training(folder)]


def _training(folder: Path) -> TrainScaleRow:
    order_peak_mib, order = _run(["-c", ORDER])
    _write_index(folder / "indexed")
    index_peak_mib, index = _run(["-c", READ_INDEX, str(folder / "indexed")])
    first, step = map(float, order.split())
    opened, num_bytes, handed = index.split()
    return TrainScaleRow(first, step, order_peak_mib, float(opened), int(num_bytes), float(handed), index_peak_mib)


def say_memory(sender: Connection, index: SampleIndex | None) -> None:
    """Sends how many bytes this process alone holds, after it has read a little of the index, if there is one."""
    if index is not None:
        index.labels[:: index.num_samples // 100].sum()
    sender.send(psutil.Process().memory_full_info().uss)


def _write_index(folder: Path) -> None:
    """Writes what is read of the manifest and the index of a pack of NUM_INDEXED samples."""
    folder.mkdir()
    fields = {"split": pa.string(), "offset": pa.int64(), "num_bytes": pa.int64(), "class_index": pa.int32()}
    with pq.ParquetWriter(folder / "samples.parquet", pa.schema(list(fields.items()))) as writer:
        for part in np.split(np.arange(NUM_INDEXED), 100):
            places = part % SHARD_SIZE
            columns = [["train"] * len(part), places * 150_016, 150_016 + part % 7 * 512, part.astype(np.int32) % 400]
            writer.write_table(pa.table(columns, writer.schema))
    names = [f"train-{number:06d}.tar" for number in range(NUM_INDEXED // SHARD_SIZE)]
    shards = [ShardSummary(name=name, num_samples=SHARD_SIZE, num_bytes=1, sha256="0" * 64) for name in names]
    split = SplitSummary(num_samples=NUM_INDEXED, num_per_class={}, shards=tuple(shards))
    manifest = Manifest(
        class_names=("a", "b"),
        sampling_rule="",
        config=PackRecipe(),
        versions={},
        num_videos=NUM_INDEXED,
        rejected={},
        splits={"train": split},
        samples_sha256="",
    )
    write_manifest(folder, manifest)


def _run(arguments: list[str]) -> tuple[float, str]:
    """Runs Python; returns the most memory in MiB that it, or a process it waited for, held at a time, and its output.

    A small process starts it and asks for its peak: Linux counts the memory of the process that starts another one into
    the other one's peak, and this one has loaded torch.
    """
    command = [sys.executable, "-c", MEASURED, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    *lines, peak_kib = output.splitlines()
    return int(peak_kib) / 1024, "\n".join(lines)
