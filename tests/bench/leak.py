"""Row: what the synthetic motions give away without their order, to shuffled frames and to a single frame."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.load import find_config, read_yaml
from configs.pack import ClipConfig, DecodeLimits
from configs.train import TrainConfig
from packer.synthetic import MOTIONS
from packer.synthetic import main as make_synthetic
from packer.video.clip import read_clip
from packer.video.jpeg import decode_frames
from trainer.model.cnn_rnn import CnnRnn

NUM_TRAIN_PER_CLASS, NUM_TEST_PER_CLASS, SIZE_PX = 60, 45, 64
BATCH, NUM_EPOCHS, LEARNING_RATE = 16, 8, 3e-3
CHANCE = 1 / len(MOTIONS)
ORDER_FREE_CEILING = 0.5  # the classes are pairs, one the other played backwards
ALLOWED_SINGLE_FRAME = CHANCE + 0.10


@dataclass
class LeakRow:
    """Test accuracies of the same network by what it saw when trained and when tested."""

    accuracies: dict[str, float]
    num_test_clips: int

    def as_json(self) -> dict[str, Any]:
        return {"name": "synthetic motions", "num_test_clips": self.num_test_clips, "accuracy": self.accuracies}

    def as_text(self) -> str:
        lines = [f"synthetic motions: accuracy on {self.num_test_clips} test clips of {len(MOTIONS)} classes"]
        lines += [f"    {accuracy:.3f}  {name}" for name, accuracy in self.accuracies.items()]
        lines.append(
            f"    ({CHANCE:.3f} is chance, {ORDER_FREE_CEILING:.3f} the most that frames without order can give, "
            f"{ALLOWED_SINGLE_FRAME:.3f} what a single frame may reach)"
        )
        return "\n".join(lines)


def rows(num_rounds: int, folder: Path) -> list[LeakRow]:
    per_class = NUM_TRAIN_PER_CLASS + NUM_TEST_PER_CLASS
    make_synthetic([str(folder / "data"), "--videos-per-class", str(per_class)])
    clips, labels = _read(folder / "data")
    is_test = torch.arange(len(labels)) % per_class >= NUM_TRAIN_PER_CLASS
    train, test = (clips[~is_test], labels[~is_test]), (clips[is_test], labels[is_test])
    train_shuffled, test_shuffled = ((_shuffled(clips), labels) for clips, labels in (train, test))
    ordered = _train(*train)
    accuracies = {
        "trained and tested on ordered frames": _accuracy(ordered, *test),
        "trained on ordered, tested on shuffled frames": _accuracy(ordered, *test_shuffled),
        "trained and tested on shuffled frames": _accuracy(_train(*train_shuffled), *test_shuffled),
        "trained and tested on single frames": _accuracy(_train(*_single(*train)), *_single(*test)),
    }
    return [LeakRow(accuracies, len(test[1]))]


def _read(data: Path) -> tuple[Tensor, Tensor]:
    """Clips, (N, T, 3, S, S) uint8, and labels, (N,), class by class."""
    clips, labels = [], []
    for class_index, class_name in enumerate(sorted(MOTIONS)):
        for video in sorted((data / class_name).iterdir()):
            clip = read_clip(video, ClipConfig(short_side_px=SIZE_PX), DecodeLimits())
            clips.append(decode_frames(clip.jpegs))
            labels.append(class_index)
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3), torch.tensor(labels)


def _shuffled(clips: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.stack([clip[torch.randperm(len(clip), generator=random)] for clip in clips])


def _single(clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every frame as a clip of its own."""
    return clips.flatten(0, 1).unsqueeze(1), labels.repeat_interleave(clips.shape[1])


def _train(clips: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(0)
    num_frames = clips.shape[1]
    config = TrainConfig.model_validate(read_yaml(find_config("demo.yaml"))).model
    config = config.model_copy(update={"temporal_shift": num_frames > 1})  # a single frame has no neighbours
    model = CnnRnn(config, len(MOTIONS), num_frames).to(memory_format=torch.channels_last)
    batch = BATCH * 16 // num_frames
    num_steps = NUM_EPOCHS * (len(clips) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, num_steps, pct_start=0.1)
    order = torch.cat([torch.randperm(len(clips))[: len(clips) // batch * batch] for _ in range(NUM_EPOCHS)])
    losses = []
    for chosen in order.split(batch):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(clips[chosen]), labels[chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    print(f"  trained on {len(clips)} clips: last losses {np.mean(losses[-20:]):.3f}", file=sys.stderr, flush=True)
    return model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module, clips: Tensor, labels: Tensor) -> float:
    answers = torch.cat([model(part).argmax(1) for part in clips.split(64)])
    return round((answers == labels).float().mean().item(), 4)
