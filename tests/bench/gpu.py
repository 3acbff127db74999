"""Rows: the training step and the stream on one GPU, alone and together, against the card's own limit.

How much of the card a step uses is told by its FLOPs, which torch counts, and by the card's fastest matrix product of
this very run. Every line but CUDA's own runs on a CPU, too, with tiny sizes: tests/project/test_bench_gpu.py.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor.utils import fresh_cache
from torch.utils.flop_counter import FlopCounterMode

from configs.model import ModelConfig
from configs.train import AugmentConfig, TrainConfig, ViewConfig
from packer.__main__ import main as pack
from packer.shards.manifest import read_manifest
from tests.bench.measure import Cost, interleave, spread, stopwatch
from tests.bench.tutorial import FrameByFrame
from tests.bench.videos import make_sets
from trainer.learning.learner import Learner
from trainer.learning.ranks import Ranks
from trainer.stream.batch import Batch
from trainer.stream.index import SampleIndex
from trainer.stream.prefetch import on_device
from trainer.worker.entry import keep_freed_memory
from trainer.worker.parts import make_learner, make_model, train_loader
from trainer.worker.spec import JobSpec

NUM_UNMEASURED_STEPS = 4
STEPS = ("eager", "channels_last", "compiled", "tutorial")
RESNET = ModelConfig(backbone="resnet18", weights="none")
NO_DEVICE = "gpu: there is no CUDA device here, so nothing was measured: run `make bench ROWS=gpu` where there is one"


@dataclass(frozen=True)
class Work:
    """One size of clips; the frames of a clip are as many as are packed."""

    size_px: int
    short_side_px: int
    global_batch: int
    num_steps: int
    """In a round of each contender."""
    matmul_side: int = 8192
    model: ModelConfig = RESNET
    loader_workers: int | None = None
    """None: as many as a training has by default, one per core and at most 8."""

    def spec(self, shards: Path, decode_on: str = "loader", compiled: bool = False) -> JobSpec:
        config = TrainConfig(
            epochs=10**4,  # no round gets to the end
            global_batch=self.global_batch,
            loader_workers=self.loader_workers,
            precision="bf16",
            compile=compiled,
            decode_on=decode_on,
            view=ViewConfig(size_px=self.size_px, short_side_px=self.short_side_px),
            augment=AugmentConfig(horizontal_flip=True),
            model=self.model,
        )
        return JobSpec(config, shards, shards.parent / "run", "", "", num_workers=1)


WORKS = (Work(112, 128, global_batch=32, num_steps=40), Work(224, 240, global_batch=16, num_steps=30))


@dataclass
class GpuRow:
    """The results of one size of clips."""

    work: Work
    device_name: str
    peak_flops_per_second: float
    flops_per_clip: float
    compile_seconds: float
    clips_per_second: dict[str, list[float]]
    """By contender, a value for each round."""
    wait_shares: dict[str, list[float]] = field(default_factory=dict)
    """Share of the time in which the steps waited for data, while stream and step ran together."""

    def share_of_peak(self, name: str) -> float:
        return statistics.median(self.clips_per_second[name]) * self.flops_per_clip / self.peak_flops_per_second

    @property
    def num_steps_to_pay(self) -> float:
        """Steps after which compiling has paid for itself; infinite if it never does."""
        plain, compiled = (
            self.work.global_batch / statistics.median(self.clips_per_second[name])
            for name in ("channels_last", "compiled")
        )
        return self.compile_seconds / (plain - compiled) if plain > compiled else math.inf

    def as_json(self) -> dict[str, Any]:
        return {
            "name": f"gpu, {self.work.size_px} px",
            "device": self.device_name,
            "global_batch": self.work.global_batch,
            "peak_flops_per_second": self.peak_flops_per_second,
            "flops_per_clip": self.flops_per_clip,
            "compile_seconds": round(self.compile_seconds, 2),
            "clips_per_second": {name: spread(values) for name, values in self.clips_per_second.items()},
            "wait_shares": {name: spread(values) for name, values in self.wait_shares.items()},
        }

    def as_text(self) -> str:
        lines = [
            f"gpu, {self.work.size_px} px: {self.work.model.backbone} + RNN, bf16, B={self.work.global_batch}, "
            f"{self.device_name}",
            f"    {self.flops_per_clip / 1e9:.1f} GFLOP per clip and step; the card's matrix products reach "
            f"{self.peak_flops_per_second / 1e12:.3g} TFLOP/s in bf16",
            f"    compiling takes {self.compile_seconds:.1f} s more at the start, paid back after "
            f"{self.num_steps_to_pay:.0f} steps",
        ]
        for name, values in self.clips_per_second.items():
            figures = spread(values)
            line = f"    {figures['median']:10.1f} ({figures['min']:.1f}-{figures['max']:.1f}) clips/s  {name}"
            if name in STEPS[:3]:
                line += f", step alone: {self.share_of_peak(name):.1%} of the card's"
            elif name == "tutorial":
                line += "'s loop on resident floats: float32, a frame at a time"
            elif name in self.wait_shares:
                line += f": waits for data {statistics.median(self.wait_shares[name]):.1%} of the time"
            lines.append(line)
        return "\n".join(lines)


@dataclass
class NoRow:
    """Shown instead if there is no CUDA device."""

    def as_json(self) -> dict[str, Any]:
        return {"name": "gpu", "skipped": NO_DEVICE}

    def as_text(self) -> str:
        return NO_DEVICE


def rows(num_rounds: int, folder: Path) -> list[Any]:
    if not torch.cuda.is_available():
        print(f"  {NO_DEVICE}", file=sys.stderr)
        return [NoRow()]
    _, videos = list(make_sets(folder / "videos", num_per_class=100).items())[-1]
    found = []
    for work in WORKS:
        shards = folder / f"shards-{work.size_px}"
        if pack([str(videos), str(shards), "--clip.short-side-px", str(work.short_side_px)]):
            raise SystemExit("bench: packing the videos failed")
        found.append(measure(work, torch.device("cuda"), num_rounds, shards))
    return found


def measure(work: Work, device: torch.device, num_rounds: int, shards: Path) -> GpuRow:
    keep_freed_memory()
    is_cuda = device.type == "cuda"
    spec, index = work.spec(shards), SampleIndex.open(shards, "train")
    batch = next(iter(on_device(train_loader(spec.config, index, 0, Ranks(), device)[1], device)))
    specs = {name: work.spec(shards, compiled=name == "compiled") for name in STEPS[:3]}
    learners = {name: _learner(one, name, index, device) for name, one in specs.items()}
    with fresh_cache():  # what an earlier run compiled would be found
        first_seconds = {name: _seconds(device, partial(_step, learners[name], batch), 2) for name in STEPS[1:3]}
    with FlopCounterMode(display=False) as counter:
        _step(learners["channels_last"], batch)
    steps: dict[str, Callable[[], object]] = {
        **{name: partial(_step, learner, batch) for name, learner in learners.items()},
        "tutorial": _tutorial_step(batch, len(read_manifest(shards).class_names), device),
    }
    waits: dict[str, list[float]] = {}
    contenders = {name: partial(_alone, step, work, device) for name, step in steps.items()}
    for decode_on in ("loader", "device"):
        streamed = work.spec(shards, decode_on)
        name = "JPEGs decoded in loaders" if decode_on == "loader" else "JPEGs decoded on the device"
        contenders[f"stream alone, {name}"] = partial(_streamed, streamed, index, None, device, work, [])
        shares = waits[f"together, {name}"] = []
        learner = learners["channels_last"]
        contenders[f"together, {name}"] = partial(_streamed, streamed, index, learner, device, work, shares)
    costs = interleave(contenders, num_rounds)
    return GpuRow(
        work=work,
        device_name=torch.cuda.get_device_name(device) if is_cuda else "CPU",
        peak_flops_per_second=_peak(work.matmul_side, device),
        flops_per_clip=counter.get_total_flops() / work.global_batch,
        compile_seconds=max(0.0, first_seconds["compiled"] - first_seconds["channels_last"]),
        clips_per_second={name: [1e3 / cost.wall_ms for cost in values] for name, values in costs.items()},
        wait_shares={name: shares[1:] for name, shares in waits.items()},  # the first round is not counted
    )


def _learner(spec: JobSpec, name: str, index: SampleIndex, device: torch.device) -> Learner:
    manifest = read_manifest(spec.shards)
    model = make_model(spec, manifest).to(device)
    if name != "eager":
        model.channels_last()
    return make_learner(spec.config, model, index.labels, Ranks())


def _step(learner: Learner, batch: Batch) -> None:
    learner.step(batch, partial(learner.weight_sum, batch), 1e-4)


def _tutorial_step(batch: Batch, num_classes: int, device: torch.device) -> Callable[[], object]:
    """Float32, contiguous, its AdamW, and the loss asked for at every step, as the tutorial's loop has it."""
    model = FrameByFrame(num_classes, hidden_size=100).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    clips, labels = ((batch.clips / 255 - 0.45) / 0.225).contiguous(), batch.labels.to(device)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(clips), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _seconds(device: torch.device, run: Callable[[], object], num_times: int) -> float:
    synchronize = torch.get_device_module(device).synchronize
    synchronize()
    start = time.perf_counter()
    for _ in range(num_times):
        run()
    synchronize()
    return time.perf_counter() - start


def _alone(step: Callable[[], object], work: Work, device: torch.device) -> Cost:
    with stopwatch(work.num_steps * work.global_batch) as result:
        _seconds(device, step, work.num_steps)
    return result[0]


def _streamed(
    spec: JobSpec, index: SampleIndex, learner: Learner | None, device: torch.device, work: Work, shares: list[float]
) -> Cost:
    """Takes a learner's steps on the batches of a stream, or none, and adds the share of time that it waited."""
    batches: Iterator[Batch] = on_device(train_loader(spec.config, index, 0, Ranks(), device)[1], device)
    waited = 0.0

    def take() -> None:
        nonlocal waited
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        if learner:
            _step(learner, batch)

    _seconds(device, take, NUM_UNMEASURED_STEPS)  # while processes start
    waited = 0.0
    with stopwatch(work.num_steps * work.global_batch) as result:
        _seconds(device, take, work.num_steps)
    shares.append(waited / result[0].wall_seconds)
    return result[0]


def _peak(side: int, device: torch.device) -> float:
    """Returns the FLOPs per second of square matrix products in bf16: the fastest of five runs of ten."""
    left, right = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    multiply = partial(torch.matmul, left, right)
    multiply()
    return max(10 * 2 * side**3 / _seconds(device, multiply, 10) for _ in range(5))
