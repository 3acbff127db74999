"""The data set and the model of the usual CNN-RNN tutorial, written anew and without its mistakes that cost accuracy.

What costs time is kept: a file per frame, PIL, transforms frame by frame, the CNN called once per frame.
"""

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import models, transforms

from trainer.model.backbone import IMAGENET_MEAN, IMAGENET_STD


class FrameFolders(Dataset[tuple[Tensor, int]]):
    """Clips stored as `<class>/<clip>/frame<i>.jpg`: (T, 3, S, S) float32 and the class index."""

    def __init__(self, folder: Path, size_px: int) -> None:
        class_names = sorted(path.name for path in folder.iterdir())
        self._clips = [
            (clip, index) for index, name in enumerate(class_names) for clip in sorted((folder / name).iterdir())
        ]
        self._transform = transforms.Compose(
            [
                transforms.Resize((size_px, size_px)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomAffine(degrees=0, translate=(0.1, 0.1)),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        clip, label = self._clips[number]
        seed = random.randrange(2**31)
        frames = []
        for path in sorted(clip.glob("*.jpg"), key=lambda path: int(path.stem.removeprefix("frame"))):
            torch.manual_seed(seed)  # every frame of a clip is augmented alike
            frames.append(self._transform(Image.open(path)))
        return torch.stack(frames), label


class FrameByFrame(nn.Module):
    """ResNet-18 over one frame at a time, an LSTM step for each: (B, T, 3, S, S) float32 to (B, K)."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.cnn = models.resnet18(weights=None)
        self.rnn = nn.LSTM(self.cnn.fc.in_features, hidden_size, batch_first=True)
        self.cnn.fc = nn.Identity()
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        state: Any = None
        for number in range(clips.shape[1]):
            features = self.cnn(clips[:, number])
            output, state = self.rnn(features.unsqueeze(1), state)
        logits: Tensor = self.head(self.dropout(output[:, -1]))
        return logits
