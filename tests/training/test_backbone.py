"""The backbones: which names are known, what they normalise by, how frames see their neighbours."""

from itertools import product

import pytest
import torch
from torch import nn

from configs.load import parse
from configs.model import ModelConfig
from configs.section import UsageError
from configs.train import TrainConfig
from trainer.model.backbone import ShiftedConv2d, pixel_statistics
from trainer.model.cnn_rnn import CnnRnn

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_FRAMES = 5
RESNET = {"backbone": "resnet18", "weights": "none", "hidden_size": 12}


@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [
        ("efficientnet_v2_l", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("r2plus1d_18", (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    ],
)
def test_pixels_are_normalised_as_the_weights_of_the_backbone_want(
    backbone: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    assert pixel_statistics(backbone) == (mean, std)


@pytest.mark.parametrize("name", ["demo.yaml", "r3d.yaml", "small.yaml"])
def test_the_configurations_that_ship_make_a_model(name: str) -> None:
    config = parse(TrainConfig, ["--config", name], prog="", description="", env_prefix="X_")
    with torch.device("meta"):
        model = CnnRnn(config.model, 4, 16)
        shape = (2, 16, 3, config.view.size_px, config.view.size_px)
        assert model(torch.zeros(shape, dtype=torch.uint8)).shape == (2, 4)


@pytest.mark.parametrize("channels", [3, 8, 24])
@torch.no_grad()
def test_temporal_shift_sees_the_neighbouring_frames_of_the_same_clip(channels: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 6, 3, padding=1, stride=2, bias=False)
    shifted = ShiftedConv2d(conv, NUM_FRAMES)
    maps = torch.randn(3, NUM_FRAMES, channels, 8, 8)
    got = shifted(maps.flatten(0, 1)).unflatten(0, (3, NUM_FRAMES))
    count = max(1, channels // 8)
    for clip, frame in product(range(3), range(NUM_FRAMES)):
        mixed = maps[clip, frame].clone()
        mixed[:count] = maps[clip, frame + 1, :count] if frame + 1 < NUM_FRAMES else 0
        mixed[count : 2 * count] = maps[clip, frame - 1, count : 2 * count] if frame else 0
        assert torch.allclose(got[clip, frame], conv(mixed[None])[0], atol=1e-5)


def test_temporal_shift_reaches_the_first_convolution_of_every_block() -> None:
    model = CnnRnn(ModelConfig(**RESNET, temporal_shift=True), 4, NUM_FRAMES)
    assert sum(isinstance(module, ShiftedConv2d) for module in model.modules()) == 8
    assert {key.rsplit(".", 1)[0] for key, _ in model.backbone.named_parameters() if ".conv1." in key} == {
        f"{layer}.{block}.conv1" for layer in (4, 5, 6, 7) for block in (0, 1)
    }


@pytest.mark.parametrize("name", ["vgg11", "resnet19"])  # one that torchvision has, one that it has not
def test_an_unknown_backbone_is_refused(name: str) -> None:
    message = rf"model.backbone \({name}\) is not known: choose one of narrow, convnext_base, .*, r2plus1d_18$"
    with pytest.raises(UsageError, match=message):
        CnnRnn(ModelConfig(backbone=name, weights="none"), 4, NUM_FRAMES)


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "convnext_tiny", "r3d_18"])
@pytest.mark.parametrize("option", ["temporal_shift", "differences"])
def test_what_a_backbone_cannot_do_is_refused(backbone: str, option: str) -> None:
    message = rf"model.{option} .*, which model.backbone {backbone} lacks: give --model.backbone narrow or a resnet, or"
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        CnnRnn(ModelConfig(backbone=backbone, weights="none", **{option: True}), 4, NUM_FRAMES)
