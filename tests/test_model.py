"""The model's contract: uint8 in, a clip's logits depend on that clip alone and on the order of its frames."""

import pickle
from itertools import product
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize, to_dtype

from configs.load import UsageError
from configs.train import ModelConfig
from trainer.model import CnnRnn, ShiftedConv2d, load_backbone_weights

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_FRAMES = 5
NARROW = {"backbone": "narrow", "weights": "none", "width": 8, "hidden_size": 12, "feature_size": 10}
RESNET = {"backbone": "resnet18", "weights": "none", "hidden_size": 12}

CONFIGS = [
    ModelConfig(**NARROW, rnn=rnn, bidirectional=bidirectional, pooling=pooling)
    for rnn, bidirectional, pooling in product(("lstm", "gru"), (False, True), ("last", "mean"))
] + [
    ModelConfig(**NARROW, grid=3, num_layers=2, temporal_shift=True),
    ModelConfig(**NARROW, bidirectional=True, num_layers=2),
    ModelConfig(**RESNET, bidirectional=True),
    ModelConfig(**RESNET, temporal_shift=True, grid=2),
    ModelConfig(**NARROW, differences=True),
    ModelConfig(**RESNET, differences=True, temporal_shift=True),
]


def make(config: ModelConfig) -> CnnRnn:
    """A model whose logits are of the order of 1 and differ between clips, as those of a trained one do."""
    torch.manual_seed(0)
    model = CnnRnn(config, num_classes=4, num_frames=NUM_FRAMES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches: here of one
    with torch.no_grad():
        model(clips(4))
        for parameter in (*model.rnn.parameters(), *model.head.parameters()):
            parameter.mul_(4)
    return model.eval()


def clips(count: int) -> Tensor:
    """Large blocks of colour: the CNN averages noise away."""
    blocks = torch.randint(0, 256, (count, NUM_FRAMES, 3, 2, 2), dtype=torch.uint8)
    return blocks.repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)


def name(config: ModelConfig) -> str:
    return "-".join(str(value) for value in config.model_dump(exclude_defaults=True).values())


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@torch.no_grad()
def test_logits_are_of_one_clip_and_of_the_order_of_its_frames(config: ModelConfig) -> None:
    model = make(config)
    batch = clips(6)
    logits = model(batch)
    assert (logits.shape, logits.dtype) == ((6, 4), torch.float32)
    for count in (1, 2, 5):
        assert torch.allclose(model(batch[:count]), logits[:count], atol=1e-4, rtol=0)
    mates = torch.cat([batch[3:4], clips(3)])
    assert torch.allclose(model(mates)[0], logits[3], atol=1e-4, rtol=0)
    assert torch.allclose(model(batch.flip(0)).flip(0), logits, atol=1e-4, rtol=0)
    assert (model(clips(1)) - logits[0]).abs().max() > 1e-2
    for order in ([4, 3, 2, 1, 0], [1, 0, 2, 3, 4]):
        assert (model(batch[:, order]) - logits).abs().amax(1).min() > 1e-2


@torch.no_grad()
def test_memory_layout_does_not_matter() -> None:
    model = make(ModelConfig(**NARROW, temporal_shift=True))
    batch = clips(3)
    last = batch.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert not last.is_contiguous()
    assert torch.allclose(model(last), model(batch), atol=1e-5, rtol=0)


@torch.no_grad()
def test_differences_are_those_to_the_frame_before() -> None:
    model = make(ModelConfig(**NARROW, differences=True))
    assert model.stem_of_changes is not None
    seen: list[Tensor] = []
    model.stem_of_changes.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = clips(3)
    model(batch)
    changes = seen[0].unflatten(0, (3, NUM_FRAMES))
    assert not changes[:, 0].any()
    since_last = batch[:, 1:].float() - batch[:, :-1].float()
    assert torch.allclose(changes[:, 1:], since_last / model.std, atol=1e-4)


@torch.no_grad()
def test_differences_leave_a_still_clip_to_the_backbone() -> None:
    """Pictures alone pass the backbone as they did when its weights were trained."""
    model = make(ModelConfig(**NARROW, differences=True))
    still = clips(2)[:, :1].expand(-1, NUM_FRAMES, -1, -1, -1)
    moving = clips(2)
    with_changes = model(still), model(moving)
    model.stem_of_changes = None
    assert torch.allclose(model(still), with_changes[0], atol=1e-5, rtol=0)
    assert (model(moving) - with_changes[1]).abs().max() > 1e-2


@torch.no_grad()
def test_pixels_are_normalised_as_torchvision_does() -> None:
    model = make(ModelConfig(**NARROW))
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = clips(2)
    model(batch)
    scaled = to_dtype(batch.flatten(0, 1), torch.float32, scale=True)
    wanted = normalize(scaled, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert torch.allclose(seen[0], wanted, atol=1e-5)


@torch.no_grad()
def test_last_pooling_takes_each_direction_where_it_has_read_the_whole_clip() -> None:
    model = make(ModelConfig(**NARROW, rnn="gru", bidirectional=True))
    states: list[tuple[Tensor, Tensor]] = []
    pooled: list[Tensor] = []
    model.rnn.register_forward_hook(lambda module, inputs, output: states.append(output))
    model.head.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    model(clips(2))
    final = states[0][1]  # torch's own final states: (directions, B, hidden)
    assert torch.equal(pooled[0], torch.cat([final[0], final[1]], dim=-1))


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


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model.backbone \(vgg11\) is not known: choose one of narrow, resnet18, "):
        CnnRnn(ModelConfig(backbone="vgg11", weights="none"), 4, NUM_FRAMES)


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
    with pytest.raises(UsageError, match="does not exist: give imagenet, none, or a state_dict file"):
        load_backbone_weights(ModelConfig(weights=str(tmp_path / "gone.pt")))
    with pytest.raises(UsageError, match=r"\(imagenet\) does not exist for model.backbone narrow: give .*weights none"):
        load_backbone_weights(ModelConfig(**NARROW | {"weights": "imagenet"}))


def test_no_weights_are_random_weights() -> None:
    assert load_backbone_weights(ModelConfig(**NARROW)) is None


def test_without_a_network_imagenet_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port: refused at once
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UsageError, match=r"could not be downloaded \(.*\): give --model.weights none") as caught:
        load_backbone_weights(ModelConfig())
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
