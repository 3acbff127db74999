"""Rows: our train step against the tutorial's, which calls the CNN once per frame; and in bf16 against float32."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from configs.model import ModelConfig
from tests.bench.measure import Contender, Cost, Row, interleave, stopwatch
from tests.bench.tutorial import FrameByFrame
from trainer.learning.learner import autocast, make_optimizer
from trainer.model.cnn_rnn import CnnRnn
from trainer.worker.entry import keep_freed_memory

NUM_CLIPS, NUM_FRAMES, NUM_CLASSES, HIDDEN_SIZE = 8, 16, 51, 100
STEPS_PER_ROUND = 2


def rows(num_rounds: int, folder: Path) -> list[Row]:
    return [row for size_px in (64, 112) for row in _rows(size_px, num_rounds)]


def _rows(size_px: int, num_rounds: int) -> list[Row]:
    with ExitStack() as stack:
        makers = {"ours": _make_ours, "ours in bf16": _make_bf16, "tutorial": _make_tutorial}
        costs = interleave(
            {name: stack.enter_context(_process(make, size_px)) for name, make in makers.items()}, num_rounds
        )
    has_bf16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    against_tutorial = Row(
        name=f"train step, {size_px} px",
        work=f"same work: ResNet-18 + LSTM({HIDDEN_SIZE}), float32, AdamW, B={NUM_CLIPS}, T={NUM_FRAMES}, one thread; "
        "ours takes uint8 and normalises inside, has the fused AdamW and keeps freed memory, the tutorial's is given "
        "floats",
        unit="clip",
        ours=costs["ours"],
        peer_name="tutorial",
        peer=costs["tutorial"],
        goal=1.5,
    )
    in_bf16 = Row(
        name=f"train step, {size_px} px, bf16 against float32",
        work=f"the same network and step; this processor {'computes' if has_bf16 else 'only emulates'} bf16",
        unit="clip",
        ours=costs["ours in bf16"],
        peer_name="ours in float32",
        peer=costs["ours"],
    )
    return [against_tutorial, in_bf16]


@dataclass
class _Stepper:
    """What a contender's process keeps between its rounds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    clips: torch.Tensor
    labels: torch.Tensor
    dtype: torch.dtype | None = None

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device("cpu"), self.dtype):
            logits = self.model(self.clips)
        nn.functional.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()


@contextmanager
def _process(make: Callable[[torch.Tensor, torch.Tensor], _Stepper], size_px: int) -> Iterator[Contender]:
    """A contender in a process of its own: how memory is kept is a setting of the process."""
    ours, theirs = Pipe()
    process = get_context("spawn").Process(target=_answer, args=(theirs, make, size_px))
    process.start()

    def measured() -> Cost:
        ours.send(True)
        cost: Cost = ours.recv()
        return cost

    yield measured
    ours.send(False)
    process.join()


def _answer(connection: Connection, make: Callable[[torch.Tensor, torch.Tensor], _Stepper], size_px: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels = torch.randint(256, (NUM_CLIPS, NUM_FRAMES, 3, size_px, size_px), dtype=torch.uint8)
    stepper = make(pixels, torch.randint(NUM_CLASSES, (NUM_CLIPS,)))
    stepper.model.train()
    while connection.recv():
        with stopwatch(STEPS_PER_ROUND * NUM_CLIPS) as result:
            for _ in range(STEPS_PER_ROUND):
                stepper.step()
        connection.send(result[0])


def _make_ours(pixels: torch.Tensor, labels: torch.Tensor) -> _Stepper:
    keep_freed_memory()
    config = ModelConfig(backbone="resnet18", weights="none", hidden_size=HIDDEN_SIZE)
    model = CnnRnn(config, NUM_CLASSES, NUM_FRAMES).to(memory_format=torch.channels_last)
    return _Stepper(model, make_optimizer(model, weight_decay=0.01), pixels, labels)


def _make_bf16(pixels: torch.Tensor, labels: torch.Tensor) -> _Stepper:
    return replace(_make_ours(pixels, labels), dtype=torch.bfloat16)


def _make_tutorial(pixels: torch.Tensor, labels: torch.Tensor) -> _Stepper:
    model = FrameByFrame(NUM_CLASSES, HIDDEN_SIZE)
    return _Stepper(model, torch.optim.AdamW(model.parameters(), lr=3e-4), (pixels / 255 - 0.45) / 0.225, labels)
