"""The classifier: a CNN sees each frame, an RNN reads the frames in order, a linear layer names the class.

It takes stored pixels, uint8 RGB, and normalises them itself, so that training, evaluation, the exported model and the
server cannot prepare pixels in different ways. A clip's logits depend on that clip alone.

Shapes: B batch, T frames, C channels, H, W height and width, F features of a frame, D width of the RNN, K classes.
"""

import copy
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from configs.load import UsageError, resolve
from configs.train import ModelConfig

# ImageNet's channel means and deviations, which torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class NarrowResNet(nn.Sequential):
    """A ResNet-10 of few channels, for CPUs and small sets: `(N, 3, H, W)` to `(N, 8 * width, H / 16, W / 16)`."""

    def __init__(self, width: int) -> None:
        channels = (width, 2 * width, 4 * width, 8 * width)
        blocks = [_block(inside, outside) for inside, outside in pairwise(channels)]
        super().__init__(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            *blocks,
        )
        self.num_channels = channels[-1]


class ShiftedConv2d(nn.Conv2d):
    """A convolution that sees, in an eighth of its channels each, the frame before and the frame after.

    It moves channels and adds no weights, so a backbone trained on pictures keeps its state_dict. It lets the CNN see
    motion where it happens; the RNN alone sees only what is left of it after each frame was averaged.

    Source: Lin et al. 2019, "TSM: Temporal Shift Module", which shifts the same share inside of residual blocks.
    """

    SHARE = 8

    def __init__(self, conv: nn.Conv2d, num_frames: int) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            bias=False,
        )
        self.load_state_dict(conv.state_dict())
        self.num_frames = num_frames

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        """Returns the convolution of `(B * T, C, H, W)` maps whose frames lie clip by clip."""
        maps_BTCHW = maps_NCHW.view(-1, self.num_frames, *maps_NCHW.shape[1:])
        count = max(1, self.in_channels // self.SHARE)
        from_next, from_last = maps_BTCHW[:, :, :count], maps_BTCHW[:, :, count : 2 * count]
        nothing = torch.zeros_like(from_next[:, :1])
        shifted = torch.cat(
            [
                torch.cat([from_next[:, 1:], nothing], dim=1),
                torch.cat([nothing, from_last[:, :-1]], dim=1),
                maps_BTCHW[:, :, 2 * count :],
            ],
            dim=2,
        )
        return super().forward(shifted.flatten(0, 1).contiguous(memory_format=torch.channels_last))


class CnnRnn(nn.Module):
    """A video classifier: `(B, T, 3, H, W) uint8 RGB` to `(B, K) float32` logits."""

    mean: Tensor
    std: Tensor
    first_state: Tensor

    def __init__(self, config: ModelConfig, num_classes: int, num_frames: int) -> None:
        """Builds the model with random weights, for clips of `num_frames` frames.

        Raises:
            UsageError: The backbone is not one that is known.
        """
        super().__init__()
        # 255 folded in: the pixels need no division of their own.
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.backbone, num_channels = make_backbone(config)
        if config.temporal_shift:
            shift_in_time(self.backbone, num_frames)
        self.stem_of_changes = _like(self.backbone[0]) if config.differences else None
        self.grid = nn.AdaptiveAvgPool2d(config.grid)
        num_cells = config.grid**2
        self.project: nn.Module = nn.Identity()
        feature_size = num_channels
        if num_cells > 1:
            feature_size = config.feature_size
            self.project = nn.Sequential(nn.Linear(num_channels * num_cells, feature_size), nn.ReLU())
        recurrence = nn.LSTM if config.rnn == "lstm" else nn.GRU
        self.rnn = recurrence(
            feature_size,
            config.hidden_size,
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            batch_first=True,
        )
        directions = 2 if config.bidirectional else 1
        # The first state is a buffer: nn.LSTM's own zeros would be made on the device that the model is exported on.
        first_state = torch.zeros(config.num_layers * directions, 1, config.hidden_size)
        self.register_buffer("first_state", first_state, persistent=False)
        self.pooling = config.pooling
        self.bidirectional = config.bidirectional
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size * directions, num_classes)

    def forward(self, clips_BTCHW: Tensor) -> Tensor:
        """Returns the logits `(B, K) float32` of clips `(B, T, 3, H, W) uint8 RGB`."""
        num_clips, num_frames = clips_BTCHW.shape[:2]
        pixels_NCHW = clips_BTCHW.flatten(0, 1).to(self.mean.dtype, memory_format=torch.channels_last)
        maps_NCHW = self._see((pixels_NCHW - self.mean) / self.std, num_frames)
        features_NF = self.project(self.grid(maps_NCHW).flatten(1))
        states_BTD = self._read(features_NF.view(num_clips, num_frames, -1))
        logits_BK: Tensor = self.head(self.dropout(self._pool(states_BTD)))
        return logits_BK.float()

    def _see(self, pixels_NCHW: Tensor, num_frames: int) -> Tensor:
        if self.stem_of_changes is None:
            whole: Tensor = self.backbone(pixels_NCHW)
            return whole
        clips_BTCHW = pixels_NCHW.view(-1, num_frames, *pixels_NCHW.shape[1:])
        since_last = clips_BTCHW[:, 1:] - clips_BTCHW[:, :-1]
        changes_BTCHW = torch.cat([torch.zeros_like(clips_BTCHW[:, :1]), since_last], dim=1)
        changes_NCHW = changes_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        # Two sums of one convolution over six channels, so that a backbone trained on pictures keeps its state_dict.
        stem, *layers = self.backbone
        maps_NCHW: Tensor = stem(pixels_NCHW) + self.stem_of_changes(changes_NCHW)
        for layer in layers:
            maps_NCHW = layer(maps_NCHW)
        return maps_NCHW

    def _read(self, features_BTF: Tensor) -> Tensor:
        state = self.first_state.to(features_BTF.dtype).expand(-1, features_BTF.shape[0], -1).contiguous()
        first = (state, state) if isinstance(self.rnn, nn.LSTM) else state
        states_BTD: Tensor = self.rnn(features_BTF, first)[0]
        return states_BTD

    def _pool(self, states_BTD: Tensor) -> Tensor:
        if self.pooling == "mean":
            return states_BTD.mean(1)
        if not self.bidirectional:
            return states_BTD[:, -1]
        # The backward direction has read the whole clip at the first frame, not at the last.
        forward_BTD, backward_BTD = states_BTD.chunk(2, dim=-1)
        return torch.cat([forward_BTD[:, -1], backward_BTD[:, 0]], dim=-1)


def make_backbone(config: ModelConfig) -> tuple[nn.Sequential, int]:
    """Returns a backbone with random weights, `(N, 3, H, W)` to `(N, C, h, w)`, and its number of channels C.

    Raises:
        UsageError: The name is not a known backbone.
    """
    if config.backbone == "narrow":
        narrow = NarrowResNet(config.width)
        return narrow, narrow.num_channels
    if config.backbone not in RESNETS:
        known = ", ".join(("narrow", *RESNETS))
        raise UsageError(f"model.backbone ({config.backbone}) is not known: choose one of {known}")
    resnet: ResNet = torchvision.models.get_model(config.backbone, weights=None)
    num_channels = resnet.fc.in_features
    trunk = [module for name, module in resnet.named_children() if name not in ("avgpool", "fc")]
    return nn.Sequential(*trunk), num_channels


def shift_in_time(backbone: nn.Module, num_frames: int) -> None:
    """Lets the first convolution of every residual block see the neighbouring frames."""
    for block in backbone.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            block.conv1 = ShiftedConv2d(block.conv1, num_frames)


def load_backbone_weights(config: ModelConfig) -> dict[str, Tensor] | None:
    """Returns the backbone's first weights as `CnnRnn.backbone` names them, or None for random ones.

    Torchvision's ImageNet weights are downloaded once and kept in torch's hub folder; a local file holds a state_dict
    of the torchvision model, with or without its classifier.

    Raises:
        UsageError: The weights cannot be had, or do not fit the backbone.
    """
    if config.weights == "none":
        return None
    if config.weights != "imagenet":
        return _match(_read_state_dict(resolve(config.weights)), config)
    if config.backbone == "narrow":
        raise UsageError("model.weights (imagenet) does not exist for model.backbone narrow: give --model.weights none")
    try:
        weights = torchvision.models.get_model_weights(config.backbone)["IMAGENET1K_V1"]
        return _match(weights.get_state_dict(progress=False, check_hash=True), config)
    except (URLError, OSError) as error:
        raise UsageError(
            f"model.weights (imagenet) could not be downloaded ({error}): give --model.weights none to start from "
            "random weights, or the path of a file that holds torchvision's state_dict"
        ) from error


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"model.weights ({path}) does not exist: give imagenet, none, or a state_dict file") from error
    except Exception as error:  # torch.load raises whatever the bytes lead to
        raise UsageError(
            f"model.weights ({path}) is not a state_dict that torch can load without running code from it: give one "
            "that was written by torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(state, Mapping):
        raise UsageError(f"model.weights ({path}) holds a {type(state).__name__}: it must hold a state_dict")
    return state


def _match(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Returns torchvision's weights under this backbone's names: `layer1.0.conv1.weight` becomes `4.0.conv1.weight`."""
    backbone, _ = make_backbone(config)
    wanted = backbone.state_dict()
    renamed = dict(state)
    if config.backbone != "narrow":
        resnet = torchvision.models.get_model(config.backbone, weights=None)
        places = {name: str(number) for number, (name, _) in enumerate(resnet.named_children())}
        renamed = {
            ".".join([places.get(name.partition(".")[0], "?"), name.partition(".")[2]]): value
            for name, value in state.items()
            if not name.startswith("fc.")
        }
    wrong = sorted(
        name
        for name in wanted.keys() | renamed.keys()
        if name not in wanted or name not in renamed or wanted[name].shape != renamed[name].shape
        # Torchvision's ImageNet files are older than this counter, which torch then starts at 0.
        if name in renamed or not name.endswith(".num_batches_tracked")
    )
    if wrong:
        raise UsageError(
            f"model.weights ({config.weights}) does not fit model.backbone {config.backbone}: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, the first {wrong[0]}"
        )
    return renamed


def _like(conv: nn.Module) -> nn.Conv2d:
    """Returns another convolution of the same shape, with weights of its own."""
    assert isinstance(conv, nn.Conv2d), "every backbone begins with a convolution"
    other = copy.deepcopy(conv)
    other.reset_parameters()
    return other


def _block(inside: int, outside: int) -> BasicBlock:
    # Averaging, then a 1x1 convolution: sees every pixel, where a strided 1x1 skips three of four (He et al. 2019,
    # ResNet-D); a strided 1x1 of 8 channels also corrupts memory in oneDNN's backward pass (torch 2.14.1, AVX-512).
    shortcut = nn.Sequential(
        nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)
    )
    return BasicBlock(inside, outside, stride=2, downsample=shortcut)
