"""The classifier: a CNN sees each frame, an RNN reads the frames in order, a linear layer names the class.

It takes uint8 RGB pixels and normalises them itself, so training, evaluation, the exported model and the server cannot
prepare pixels in different ways. A clip's logits depend on that clip alone. Losses and optimizers are not here.

A 3-D CNN sees the whole clip at once and gives features of T' <= T moments, which the RNN reads like a 2-D CNN's
features of T frames. Without an RNN and with pooling by the mean it is torchvision's own network.

Shapes: B batch, T frames, N = B * T, C channels, H, W height and width, F features of a frame, D width of the RNN,
K classes. A name such as `maps_BTCHW` tells the order of its axes.
"""

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from configs.model import ModelConfig
from configs.section import UsageError
from trainer.model.backbone import VIDEO_RESNETS, make_backbone, pixel_statistics, shift_in_time, split_stages

MAX_COMPILATIONS = 64
"""Graphs that torch may compile. Its own limit, 8, is too low: each size of micro-batch and frozen stage needs one."""


class CnnRnn(nn.Module):
    """A video classifier: `(B, T, 3, H, W) uint8 RGB` to `(B, K) float32` logits."""

    mean: Tensor
    std: Tensor
    first_state: Tensor

    def __init__(self, config: ModelConfig, num_classes: int, num_frames: int) -> None:
        """Builds the model with random weights, for clips of `num_frames` frames.

        Raises:
            UsageError: The backbone is not known, or does not support another option of the configuration.
        """
        super().__init__()
        self.backbone, num_channels = make_backbone(config)
        mean, std = pixel_statistics(config.backbone)
        # 255 is folded in, so that the pixels need no division of their own.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.sees_clips = config.backbone in VIDEO_RESNETS
        if config.temporal_shift and not shift_in_time(self.backbone, num_frames):
            raise _misfit("temporal_shift", "shifts inside of a ResNet's blocks", config)
        self.stem_of_changes = _stem_of_changes(self.backbone, config) if config.differences else None
        self.frozen: list[nn.Module] = []
        self.batch_norm = config.batch_norm
        self.grid = nn.AdaptiveAvgPool2d(config.grid)
        num_cells = config.grid**2
        self.project: nn.Module = nn.Identity()
        num_features = num_channels
        if num_cells > 1:
            num_features = config.feature_size
            self.project = nn.Sequential(nn.Linear(num_channels * num_cells, num_features), nn.ReLU())
        self.rnn = _make_rnn(config, num_features)
        directions = 2 if config.bidirectional else 1
        # The first state is a buffer: nn.LSTM's own zeros would be made on the device that the model is exported on.
        first_state = torch.zeros(config.num_layers * directions, 1, config.hidden_size)
        self.register_buffer("first_state", first_state, persistent=False)
        width = num_features if config.rnn == "none" else config.hidden_size * directions
        self.pooling = config.pooling
        self.bidirectional = config.bidirectional
        self.attention = nn.Linear(width, 1) if config.pooling == "attention" else None
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, num_classes)
        # A plain function: a deep copy, as the average of the weights is one, would share the original's bound method.
        self._features_of: Callable[[CnnRnn, Tensor], Tensor] = CnnRnn._features

    def channels_last(self) -> Self:
        """Lays the convolutions' weights out like the pixels, channels last, and returns the model."""
        memory_format = torch.channels_last_3d if self.sees_clips else torch.channels_last
        for part in (self.backbone, self.stem_of_changes):
            if part is not None:
                part.to(memory_format=memory_format)
        return self

    def compiled(self) -> Self:
        """Lets torch compile everything before the RNN, which it cannot compile, and returns the model.

        Torch compiles at the first forward pass of each shape of a batch, mode, and choice of frozen stages: one graph
        for each. There are few shapes, at most two sizes of micro-batches and one of evaluation, and one graph for all
        sizes would be slower. Random choices, as of stochastic depth, stay those of an uncompiled run.
        """
        self._features_of = torch.compile(  # type: ignore[call-overload]  # its stubs lack the limit
            CnnRnn._features,
            fullgraph=True,
            dynamic=False,
            recompile_limit=MAX_COMPILATIONS,
            isolate_recompiles=True,
        )
        return self

    @property
    def num_stages(self) -> int:
        """Stages of the backbone; `freeze` takes the first of them."""
        return len(split_stages(self.backbone))

    def freeze(self, num_stages: int) -> None:
        """Keeps weights and statistics of the backbone's first `num_stages` stages fixed; the others are trained."""
        self.frozen = [layer for stage in split_stages(self.backbone)[:num_stages] for layer in stage]
        self.backbone.requires_grad_(True)
        for layer in self.frozen:
            layer.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, training or evaluation, and returns the model; frozen layers stay in evaluation mode."""
        super().train(mode)
        for layer in self.frozen:
            layer.eval()
        if self.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                    module.eval()
        return self

    def forward(self, clips_BTCHW: Tensor) -> Tensor:
        """Returns the logits `(B, K) float32` of clips `(B, T, 3, H, W) uint8 RGB`."""
        logits_BK: Tensor = self.head(self.dropout(self.embed(clips_BTCHW)))
        return logits_BK.float()

    def embed(self, clips_BTCHW: Tensor) -> Tensor:
        """Returns what the classifier sees of each clip, `(B, D)`: alike clips have alike directions."""
        return self._pool(self._read(self._features_of(self, clips_BTCHW)))

    def _features(self, clips_BTCHW: Tensor) -> Tensor:
        pixels_NCHW = clips_BTCHW.flatten(0, 1).to(self.mean.dtype, memory_format=torch.channels_last)
        maps_BTCHW = self._see((pixels_NCHW - self.mean) / self.std, clips_BTCHW.shape[1])
        features_NF: Tensor = self.project(self.grid(maps_BTCHW.flatten(0, 1)).flatten(1))
        return features_NF.view(*maps_BTCHW.shape[:2], -1)

    def _see(self, pixels_NCHW: Tensor, num_frames: int) -> Tensor:
        clips_BTCHW = pixels_NCHW.view(-1, num_frames, *pixels_NCHW.shape[1:])
        if self.sees_clips:
            maps_BCTHW: Tensor = self.backbone(clips_BTCHW.transpose(1, 2))
            return maps_BCTHW.transpose(1, 2)
        if self.stem_of_changes is None:
            maps_NCHW: Tensor = self.backbone(pixels_NCHW)
        else:
            since_last = clips_BTCHW[:, 1:] - clips_BTCHW[:, :-1]
            changes_BTCHW = torch.cat([torch.zeros_like(clips_BTCHW[:, :1]), since_last], dim=1)
            changes_NCHW = changes_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            # Two sums of one convolution over six channels, so a backbone trained on pictures keeps its state_dict.
            stem, *layers = self.backbone
            maps_NCHW = stem(pixels_NCHW) + self.stem_of_changes(changes_NCHW)
            for layer in layers:
                maps_NCHW = layer(maps_NCHW)
        return maps_NCHW.view(-1, num_frames, *maps_NCHW.shape[1:])

    def _read(self, features_BTF: Tensor) -> Tensor:
        if self.rnn is None:
            return features_BTF
        state = self.first_state.to(features_BTF.dtype).expand(-1, features_BTF.shape[0], -1).contiguous()
        first = (state, state) if isinstance(self.rnn, nn.LSTM) else state
        states_BTD: Tensor = self.rnn(features_BTF, first)[0]
        return states_BTD

    def _pool(self, states_BTD: Tensor) -> Tensor:
        if self.attention is not None:
            shares_BT1: Tensor = self.attention(states_BTD).softmax(dim=1)
            return (shares_BT1 * states_BTD).sum(1)
        if self.pooling == "mean":
            return states_BTD.mean(1)
        if not self.bidirectional:
            return states_BTD[:, -1]
        # The backward direction has read the whole clip at the first frame, not at the last.
        forward_BTD, backward_BTD = states_BTD.chunk(2, dim=-1)
        return torch.cat([forward_BTD[:, -1], backward_BTD[:, 0]], dim=-1)


def _make_rnn(config: ModelConfig, num_features: int) -> nn.LSTM | nn.GRU | None:
    if config.rnn == "none":
        return None
    recurrence = nn.LSTM if config.rnn == "lstm" else nn.GRU
    return recurrence(
        num_features,
        config.hidden_size,
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        dropout=config.dropout if config.num_layers > 1 else 0.0,  # torch warns if a single layer gets any
        batch_first=True,
    )


def _stem_of_changes(backbone: nn.Sequential, config: ModelConfig) -> nn.Conv2d:
    """Returns a convolution like the backbone's first, with weights of its own."""
    if not isinstance(backbone[0], nn.Conv2d):
        raise _misfit("differences", "stands beside a ResNet's first convolution", config)
    stem = copy.deepcopy(backbone[0])
    stem.reset_parameters()
    return stem


def _misfit(option: str, what: str, config: ModelConfig) -> UsageError:
    return UsageError(
        f"model.{option} {what}, which model.backbone {config.backbone} lacks: give --model.backbone narrow or a "
        "resnet, or leave it out"
    )
