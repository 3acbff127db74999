"""The model's contract: uint8 in, a clip's logits depend on that clip alone and on the order of its frames."""

from collections.abc import Iterable
from itertools import product

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize, to_dtype

from configs.model import ModelConfig
from trainer.model.cnn_rnn import CnnRnn

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_FRAMES = 5
NARROW = {"backbone": "narrow", "weights": "none", "width": 8, "hidden_size": 12, "feature_size": 10}
RESNET = {"backbone": "resnet18", "weights": "none", "hidden_size": 12}

CONFIGS = [
    ModelConfig(**NARROW, rnn=rnn, bidirectional=bidirectional, pooling=pooling)
    for rnn, bidirectional, pooling in product(("lstm", "gru"), (False, True), ("last", "mean", "attention"))
] + [
    ModelConfig(**NARROW, grid=3, num_layers=2, temporal_shift=True),
    ModelConfig(**NARROW, bidirectional=True, num_layers=2),
    ModelConfig(**RESNET, bidirectional=True),
    ModelConfig(**RESNET, temporal_shift=True, grid=2),
    ModelConfig(**NARROW, differences=True),
    ModelConfig(**RESNET, differences=True, temporal_shift=True),
    ModelConfig(**NARROW, rnn="none", pooling="mean"),
    ModelConfig(**NARROW, rnn="none", pooling="attention", grid=2),
    ModelConfig(**NARROW, rnn="none", pooling="mean", temporal_shift=True),
    ModelConfig(backbone="mobilenet_v3_small", weights="none", hidden_size=12),
    ModelConfig(backbone="efficientnet_b0", weights="none", hidden_size=12, grid=2),
    ModelConfig(backbone="convnext_tiny", weights="none", hidden_size=12, pooling="attention"),
    ModelConfig(backbone="r3d_18", weights="none", rnn="none", pooling="mean"),
    ModelConfig(backbone="mc3_18", weights="none", hidden_size=12, grid=2),
]


def make(config: ModelConfig) -> CnnRnn:
    """A model whose logits are of the order of 1 and differ between clips, as those of a trained one do."""
    torch.manual_seed(0)
    model = CnnRnn(config, num_classes=4, num_frames=NUM_FRAMES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = None  # the mean over all batches: here of one
    with torch.no_grad():
        model(clips(4))
        for part in filter(None, (model.rnn, model.attention, model.head)):
            for parameter in part.parameters():
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
    sees_order = config.rnn != "none" or config.temporal_shift or config.backbone == "r3d_18"
    for order in ([4, 3, 2, 1, 0], [1, 0, 2, 3, 4]):
        changes = (model(batch[:, order]) - logits).abs().amax(1)
        assert changes.min() > 1e-2 if sees_order else changes.max() < 1e-4


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
def test_attention_is_a_mean_with_learnt_weights() -> None:
    model = make(ModelConfig(**NARROW, pooling="attention"))
    assert model.attention is not None
    states: list[Tensor] = []
    pooled: list[Tensor] = []
    model.rnn.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    model.head.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    batch = clips(2)
    model(batch)
    scores = (states[0] @ model.attention.weight[0]).exp()
    wanted = (scores[..., None] * states[0]).sum(1) / scores.sum(1, keepdim=True)
    assert torch.allclose(pooled[0], wanted, atol=1e-5)
    assert (pooled[0] - states[0].mean(1)).abs().max() > 1e-3
    model.attention.weight.zero_()
    model(batch)
    assert torch.allclose(pooled[1], states[1].mean(1), atol=1e-6)


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


def test_sizes_are_those_configured() -> None:
    sizes = {"width": 10, "grid": 2, "feature_size": 14, "hidden_size": 6, "num_layers": 3}
    model = CnnRnn(ModelConfig(**NARROW | sizes), 4, NUM_FRAMES)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["backbone.0.weight"][0] == 10
    assert shapes["project.0.weight"] == (14, 8 * 10 * 4)
    assert shapes["rnn.weight_ih_l0"] == (4 * 6, 14)
    assert shapes["rnn.weight_ih_l2"] == (4 * 6, 6)
    assert "rnn.weight_ih_l3" not in shapes
    assert shapes["head.weight"] == (4, 6)


@pytest.mark.parametrize("num_layers", [1, 2])
@torch.no_grad()
def test_dropout_is_before_the_classifier_and_between_the_layers_of_the_rnn(num_layers: int) -> None:
    model = make(ModelConfig(**NARROW, num_layers=num_layers, dropout=0.5))
    model.freeze(model.num_stages)  # no statistics of the batch
    batch = clips(4)
    states: list[Tensor] = []
    seen: list[Tensor] = []
    model.rnn.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for training in (True, True, False, False):
        model.train(training)(batch)
    assert torch.equal(states[0], states[1]) is (num_layers == 1)
    assert torch.equal(states[2], states[3])
    assert 0.2 < float((seen[0] == 0).float().mean()) < 0.8
    assert (seen[2] != 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnn": "none"}, r"pooling \(last\) of rnn \(none\) would see the last frame alone: choose mean or attention"),
        ({"rnn": "none", "pooling": "mean", "bidirectional": True}, r"rnn \(none\) has neither directions nor layers"),
        ({"rnn": "none", "pooling": "mean", "num_layers": 2}, r"rnn \(none\) has neither directions nor layers"),
        ({"weights": "none", "freeze_epochs": 2}, r"freeze_epochs \(2\) would keep random weights"),
        (
            {"unfreeze_stage_epochs": 2},
            r"unfreeze_stage_epochs \(2\) counts from the end of freeze_epochs \(0\): give that 1 or more",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**values)


def test_a_frozen_backbone_neither_learns_nor_counts() -> None:
    torch.manual_seed(0)
    model = CnnRnn(ModelConfig(**NARROW), 4, NUM_FRAMES)
    statistics = model.backbone[1].running_mean.clone()
    model.freeze(model.num_stages)
    model.train()(clips(2)).sum().backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert model.head.weight.grad is not None
    assert torch.equal(model.backbone[1].running_mean, statistics)
    assert model.dropout.training
    model.freeze(0)
    model.train()(clips(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert not torch.equal(model.backbone[1].running_mean, statistics)


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [
        ("narrow", [{"0", "1"}, {"3"}, {"4"}, {"5"}]),
        ("resnet18", [{"0", "1"}, {"4"}, {"5"}, {"6"}, {"7"}]),
        ("efficientnet_b0", [{f"0.{number}"} for number in range(9)]),
        ("mc3_18", [{str(number)} for number in range(5)]),
    ],
)
@pytest.mark.parametrize("num_frozen", [1, 3])
def test_frozen_stages_neither_learn_nor_count(backbone: str, stages: list[set[str]], num_frozen: int) -> None:
    torch.manual_seed(0)
    model = CnnRnn(ModelConfig(**NARROW | {"backbone": backbone}), 4, NUM_FRAMES)
    assert model.num_stages == len(stages)
    model.freeze(num_frozen)
    before = {name: buffer.clone() for name, buffer in model.backbone.named_buffers()}
    model.train()(clips(2)).sum().backward()

    def stages_of(names: Iterable[str]) -> set[str]:
        return {".".join(name.split(".")[: 1 + (backbone == "efficientnet_b0")]) for name in names}

    trained = set().union(*stages[num_frozen:])
    parameters = dict(model.backbone.named_parameters())
    assert stages_of(name for name, value in parameters.items() if value.grad is not None) == trained
    assert stages_of(name for name, value in parameters.items() if value.grad is None) == set().union(
        *stages[:num_frozen]
    )
    after = dict(model.backbone.named_buffers())
    assert stages_of(name for name in before if not torch.equal(before[name], after[name])) == trained


def test_stages_are_let_go_from_the_last_to_the_first() -> None:
    config = ModelConfig(freeze_epochs=2, unfreeze_stage_epochs=3)
    assert [config.num_frozen_stages(epoch, 3) for epoch in range(10)] == [3, 3, 2, 2, 2, 1, 1, 1, 0, 0]
    at_once = ModelConfig(freeze_epochs=2)
    assert [at_once.num_frozen_stages(epoch, 3) for epoch in range(4)] == [3, 3, 0, 0]
    assert ModelConfig().num_frozen_stages(0, 3) == 0


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_weights() -> None:
    """A clip's gradient is then its own: the sum over single clips is that of the batch."""
    torch.manual_seed(0)
    model = CnnRnn(ModelConfig(**NARROW, batch_norm="frozen", dropout=0.0), 4, NUM_FRAMES).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = clips(3)
    model(batch).square().sum().backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for clip in batch:
        model(clip[None]).square().sum().backward()
    for parameter, wanted in zip(model.parameters(), whole, strict=True):
        assert wanted.any()
        assert torch.allclose(parameter.grad, wanted, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
