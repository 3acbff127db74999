"""The backbone's first weights: torchvision's files fit as they are, and what does not fit is refused in a sentence."""

import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from configs.model import ModelConfig
from configs.section import UsageError
from trainer.model.cnn_rnn import CnnRnn
from trainer.model.pretrained import load_backbone_weights

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_FRAMES = 5
NARROW = {"backbone": "narrow", "weights": "none", "width": 8, "hidden_size": 12, "feature_size": 10}
RESNET = {"backbone": "resnet18", "weights": "none", "hidden_size": 12}


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"])
@torch.no_grad()
def test_a_local_state_dict_of_another_family_fits(backbone: str, tmp_path: Path) -> None:
    network = torchvision.models.get_model(backbone, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    config = ModelConfig(backbone=backbone, weights=str(tmp_path / "weights.pt"))
    model = CnnRnn(config, 4, NUM_FRAMES).eval()
    model.backbone.load_state_dict(load_backbone_weights(config))
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.backbone(pictures), network.features(pictures))


@pytest.mark.parametrize("backbone", ["r3d_18", "mc3_18", "r2plus1d_18"])
@torch.no_grad()
def test_a_3d_cnn_without_rnn_is_the_network_of_torchvision(backbone: str, tmp_path: Path) -> None:
    network = torchvision.models.get_model(backbone, weights=None, num_classes=4).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    config = ModelConfig(backbone=backbone, weights=str(tmp_path / "weights.pt"), rnn="none", pooling="mean")
    model = CnnRnn(config, 4, NUM_FRAMES).channels_last().eval()
    model.backbone.load_state_dict(load_backbone_weights(config))
    model.head.load_state_dict(network.fc.state_dict())
    batch = torch.randint(0, 256, (2, NUM_FRAMES, 3, 32, 32), dtype=torch.uint8)
    preset = torchvision.models.get_model_weights(backbone)["KINETICS400_V1"].transforms(
        crop_size=(32, 32), resize_size=(32, 32)
    )
    wanted = network(preset(batch))
    assert torch.allclose(model(batch), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = torchvision.models.resnet18(weights=None)
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 32))  # batch norm's statistics are then its own
    return model.eval()


@pytest.mark.parametrize("left_out", ["nothing", "fc.", "num_batches_tracked"])
@torch.no_grad()
def test_a_local_state_dict_of_torchvision_fits(resnet: nn.Module, left_out: str, tmp_path: Path) -> None:
    """Torchvision's own ImageNet files hold no num_batches_tracked."""
    state = {key: value for key, value in resnet.state_dict().items() if left_out not in key}
    torch.save(state, tmp_path / "resnet18.pt")
    config = ModelConfig(**RESNET | {"weights": str(tmp_path / "resnet18.pt")})
    weights = load_backbone_weights(config)
    assert weights is not None
    pictures = torch.randn(2, 3, 64, 64)
    features = torch.nn.Sequential(*list(resnet.children())[:-2])(pictures)
    model = CnnRnn(config, 4, NUM_FRAMES).eval()
    model.backbone.load_state_dict(weights)
    assert torch.equal(model.backbone(pictures), features)
    shifted = CnnRnn(config.model_copy(update={"temporal_shift": True}), 4, NUM_FRAMES)
    shifted.backbone.load_state_dict(weights)
    assert torch.equal(shifted.backbone.state_dict()["4.0.conv1.weight"], resnet.state_dict()["layer1.0.conv1.weight"])


def test_a_relative_path_starts_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSTREAM_HOME", str(tmp_path))
    state = CnnRnn(ModelConfig(**NARROW), 4, NUM_FRAMES).backbone.state_dict()
    torch.save(state, tmp_path / "narrow.pt")
    weights = load_backbone_weights(ModelConfig(**NARROW | {"weights": "narrow.pt"}))
    assert weights is not None
    assert weights.keys() == state.keys()


class Trap:
    """Pickles to a call of `open`, which torch must not carry out."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("/tmp/never", "w")


UNSAFE = r"is not a state_dict that torch can load without running code from it: give one .*torch.save"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights", UNSAFE),
        (
            pickle.dumps({"conv1.weight": Trap()}),
            "is not a state_dict that torch can load without running code from it: ",
        ),
        ([torch.zeros(1)], "holds a list: it must hold a state_dict"),
        ({}, "does not fit model.backbone resnet18: 100 tensors are missing, unknown or of another shape"),
        ({"state_dict": {}}, "does not fit model.backbone resnet18"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, "does not fit .* the first 0.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match=message) as caught:
        load_backbone_weights(ModelConfig(**RESNET | {"weights": str(path)}))
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_of_another_shape_or_depth_are_refused(resnet: nn.Module, tmp_path: Path) -> None:
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pt")
    for backbone in ("resnet34", "narrow"):
        with pytest.raises(UsageError, match=f"does not fit model.backbone {backbone}: [0-9]+ tensors"):
            load_backbone_weights(ModelConfig(backbone=backbone, weights=str(tmp_path / "resnet18.pt")))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist: give imagenet, kinetics400, none, or a state_dict file"):
        load_backbone_weights(ModelConfig(weights=str(tmp_path / "gone.pt")))
    for name, backbone, others in [
        ("imagenet", "narrow", "none"),
        ("imagenet", "r3d_18", "kinetics400 or none"),
        ("kinetics400", "resnet18", "imagenet or none"),
    ]:
        message = rf"\({name}\) does not exist for model.backbone {backbone}: give --model.weights {others}, or a file"
        with pytest.raises(UsageError, match=message):
            load_backbone_weights(ModelConfig(backbone=backbone, weights=name))


def test_no_weights_are_random_weights() -> None:
    assert load_backbone_weights(ModelConfig(**NARROW)) is None


@pytest.mark.parametrize(("backbone", "weights"), [("resnet18", "imagenet"), ("mc3_18", "kinetics400")])
def test_without_a_network_published_weights_are_refused_with_the_way_out(
    backbone: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port: refused at once
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UsageError, match=r"could not be downloaded \(.*\): give --config configs/small.yaml") as caught:
        load_backbone_weights(ModelConfig(backbone=backbone, weights=weights))
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_were_downloaded_are_used_offline(
    resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in torch's hub folder needs no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    file = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    state = {key: value for key, value in resnet.state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "hub/checkpoints" / file)
    weights = load_backbone_weights(ModelConfig())
    assert weights is not None
    assert torch.equal(weights["0.weight"], state["conv1.weight"])
