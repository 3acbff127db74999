"""The CNNs that a model can use: a narrow one of our own, and torchvision's 2-D and 3-D CNNs by name.

A backbone is the part of a torchvision classifier before its average over the frame, so torchvision's weights fit it.
One rule cuts every family: the backbone ends at what torchvision calls `avgpool`. Weights are loaded by
`trainer.model.pretrained`; the letters of the shapes are explained in `trainer.model.cnn_rnn`.
"""

from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from configs.model import ModelConfig
from configs.section import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Channel means of pixels in 0..1, for a backbone that has none of its own. Source: torchvision's ImageNet recipes."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Their standard deviations."""
FAMILIES = ("resnet", "mobilenet_v3", "efficientnet", "convnext")
"""Torchvision's 2-D CNNs that may be chosen, by the beginning of their names."""
VIDEO_RESNETS = ("r3d_18", "mc3_18", "r2plus1d_18")
"""Torchvision's 3-D CNNs that may be chosen."""


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
    """A convolution that sees the frame before in an eighth of its channels, and the frame after in another eighth.

    It moves channels and adds no weights, so a backbone trained on pictures keeps its state_dict. It lets the CNN see
    motion where it happens; the RNN sees only what is left after each frame was averaged.

    Source: Lin et al. 2019, "TSM: Temporal Shift Module", which shifts the same share inside of residual blocks.

    Args:
        conv: The convolution that it takes the place of, with its weights.
        num_frames: Frames of a clip, T.
    """

    SHARE = 8
    """One of so many channels is moved each way."""

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
        """Returns the convolution of `(B * T, C, H, W)` maps, which stand clip by clip."""
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


def make_backbone(config: ModelConfig) -> tuple[nn.Sequential, int]:
    """Returns a backbone with random weights, and its number of channels C.

    A 2-D CNN maps `(N, 3, H, W)` to `(N, C, h, w)`, a 3-D CNN `(B, 3, T, H, W)` to `(B, C, T', h, w)`.

    Raises:
        UsageError: The name is not a known backbone.
    """
    if config.backbone == "narrow":
        narrow = NarrowResNet(config.width)
        return narrow, narrow.num_channels
    network = make_network(config.backbone)
    trunk, classifier = split_names(network)
    linears = [
        module for name in classifier for module in getattr(network, name).modules() if isinstance(module, nn.Linear)
    ]
    return nn.Sequential(*(getattr(network, name) for name in trunk)), linears[0].in_features


def make_network(name: str) -> nn.Module:
    """Returns torchvision's whole network of this name, with random weights.

    Raises:
        UsageError: The name is not a known backbone.
    """
    families = [f"{family}*" for family in FAMILIES]
    known = (*torchvision.models.list_models(module=torchvision.models, include=families), *VIDEO_RESNETS)
    if name not in known:
        raise UsageError(f"model.backbone ({name}) is not known: choose one of {', '.join(('narrow', *known))}")
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    return network


def split_names(network: nn.Module) -> tuple[list[str], list[str]]:
    """Returns the names of a torchvision network's children: those before its average over the frame, and the rest.

    A ResNet gives `conv1` to `layer4`, and `avgpool`, `fc`; an EfficientNet `features`, and `avgpool`, `classifier`.
    """
    names = [name for name, _ in network.named_children()]
    cut = names.index("avgpool")
    return names[:cut], names[cut:]


def split_stages(backbone: nn.Sequential) -> list[list[nn.Module]]:
    """Returns the layers of each stage of a backbone, from the pixels to the features.

    Each child that has children is a stage; the bare layers before them are one stage together, the stem. A ResNet and
    a 3-D CNN have 5: `conv1` with `bn1`, and `layer1` to `layer4`. If the backbone is one child (`features`), that
    child's children are taken.
    """
    layers = list((backbone[0] if len(backbone) == 1 else backbone).children())
    blocks = [[layer] for layer in layers if [*layer.children()]]
    stem = [layer for layer in layers if not [*layer.children()]]
    return [stem, *blocks] if stem else blocks


def pixel_statistics(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns means and standard deviations, per channel of pixels in 0..1, that a backbone's weights expect."""
    if backbone == "narrow":
        return IMAGENET_MEAN, IMAGENET_STD
    transforms = next(iter(torchvision.models.get_model_weights(backbone))).transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def shift_in_time(backbone: nn.Module, num_frames: int) -> int:
    """Lets the first convolution of every residual block see the neighbouring frames; returns the number of blocks.

    Torchvision's other families have other blocks, which stay as they are: then it returns 0.
    """
    blocks = [module for module in backbone.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for block in blocks:
        block.conv1 = ShiftedConv2d(block.conv1, num_frames)
    return len(blocks)


def _block(inside: int, outside: int) -> BasicBlock:
    # Averaging, then a 1x1 convolution, sees every pixel; a strided 1x1 skips three of four (He et al. 2019, ResNet-D),
    # and one of 8 channels corrupts memory in oneDNN's backward pass (torch 2.14.1, AVX-512). There is no padding to be
    # counted, but with count_include_pad a compiled backward pass divides an odd map's last row by 4 instead of 2
    # (torch 2.14, pytorch/pytorch#198119).
    average = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
    shortcut = nn.Sequential(average, nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside))
    return BasicBlock(inside, outside, stride=2, downsample=shortcut)
