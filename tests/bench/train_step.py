"""Rows: our train step against the tutorial's, which calls the CNN once per frame."""

import torch
from torch import nn

from configs.train import ModelConfig, OptimizerConfig
from tests.bench.measure import Contender, Cost, Row, interleave, stopwatch
from tests.bench.tutorial import FrameByFrame
from trainer.loop import make_optimizer
from trainer.model import CnnRnn

NUM_CLIPS, NUM_FRAMES, NUM_CLASSES, HIDDEN_SIZE = 8, 16, 51, 100
STEPS_PER_ROUND = 2


def rows(num_rounds: int) -> list[Row]:
    return [_row(size_px, num_rounds) for size_px in (64, 112)]


def _row(size_px: int, num_rounds: int) -> Row:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pixels = torch.randint(256, (NUM_CLIPS, NUM_FRAMES, 3, size_px, size_px), dtype=torch.uint8)
    labels = torch.randint(NUM_CLASSES, (NUM_CLIPS,))
    config = ModelConfig(backbone="resnet18", weights="none", hidden_size=HIDDEN_SIZE)
    ours = CnnRnn(config, NUM_CLASSES, NUM_FRAMES).to(memory_format=torch.channels_last)
    tutorial = FrameByFrame(NUM_CLASSES, HIDDEN_SIZE)
    contenders = {
        "ours": _stepper(ours, make_optimizer(ours, OptimizerConfig(weight_decay=0.01)), pixels, labels),
        "tutorial": _stepper(
            tutorial, torch.optim.AdamW(tutorial.parameters(), lr=3e-4), (pixels / 255 - 0.45) / 0.225, labels
        ),
    }
    costs = interleave(contenders, num_rounds)
    torch.set_num_threads(threads)
    return Row(
        name=f"train step, {size_px} px",
        work=f"same work: ResNet-18 + LSTM({HIDDEN_SIZE}), float32, AdamW, B={NUM_CLIPS}, T={NUM_FRAMES}, one thread; "
        "ours takes uint8 and normalises inside and has the fused AdamW, the tutorial's is given floats",
        unit="clip",
        ours=costs["ours"],
        peer_name="tutorial",
        peer=costs["tutorial"],
        goal=1.5,
    )


def _stepper(
    model: nn.Module, optimizer: torch.optim.Optimizer, clips: torch.Tensor, labels: torch.Tensor
) -> Contender:
    model.train()

    def measured() -> Cost:
        with stopwatch(STEPS_PER_ROUND * len(clips)) as result:
            for _ in range(STEPS_PER_ROUND):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(model(clips), labels).backward()
                optimizer.step()
        return result[0]

    return measured
