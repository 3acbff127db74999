"""The optimizer: what it decays, whose learning rate is smaller, and the rate over a run."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from configs.train import OptimizerConfig, TrainConfig
from tests.support.steps import Case, make_batch, make_learner
from trainer.learning.learner import learning_rate, make_optimizer
from trainer.learning.ranks import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")


class Scaled(nn.Module):
    """Bytes as fractions, each with a learnt factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(96))

    def forward(self, pixels_BF: Tensor) -> Tensor:
        return pixels_BF / 255 * self.factor


def test_the_optimizer_decays_matrices_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.LSTM(2, 2))
    decayed, spared = make_optimizer(model, weight_decay=0.3).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in spared["params"])
    grouped = {id(parameter) for parameter in (*decayed["params"], *spared["params"])}
    assert grouped == {id(parameter) for parameter in model.parameters()}


def test_the_backbone_has_its_share_of_the_learning_rate() -> None:
    learner = make_learner(Ranks(), Case(1, 0, (1.0,) * 7, False, 0.0))
    learner.model = nn.Sequential(OrderedDict(backbone=nn.Sequential(nn.Flatten(), Scaled()), head=nn.Linear(96, 3)))
    learner.optimizer = make_optimizer(learner.model, weight_decay=0.0, backbone_factor=0.1)
    before = {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}
    learner.step(make_batch((1.0,) * 7), lambda: 7.0, 0.01)
    # AdamW's first step is one learning rate wide for every weight.
    for name, parameter in learner.model.named_parameters():
        width = 0.001 if name.startswith("backbone.") else 0.01
        assert float((parameter - before[name]).detach().abs().max()) == pytest.approx(width, rel=1e-3)


def test_a_frozen_parameter_is_left_alone_until_it_is_trained() -> None:
    """Weight decay too, and the optimizer's state begins when it is trained."""
    learner = make_learner(Ranks(), Case(1, 0, (1.0,) * 7, False, 0.0))
    learner.optimizer = make_optimizer(learner.model, weight_decay=0.5)
    hidden = learner.model.hidden.weight
    before = hidden.detach().clone()
    hidden.requires_grad_(False)
    learner.step(make_batch((1.0,) * 7), lambda: 7.0, 0.01)
    assert torch.equal(hidden, before)
    hidden.requires_grad_(True)
    learner.step(make_batch((1.0,) * 7), lambda: 7.0, 0.01)
    assert not torch.equal(hidden, before)
    assert float(learner.optimizer.state[hidden]["step"]) == 1


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_learning_rate_rises_linearly_and_falls_to_zero_as_a_cosine(warmup: float) -> None:
    num_positions = 1000
    rates = [learning_rate(2.0, warmup, position, num_positions) for position in range(num_positions)]
    top = round(warmup * num_positions)
    assert rates[:top] == pytest.approx([2.0 * (position + 1) / max(1, top) for position in range(top)])
    assert max(rates) == pytest.approx(2.0, rel=1e-4)
    assert all(one > other for one, other in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[top + (num_positions - top) // 2 - 1] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_learning_rate_depends_on_the_position_alone() -> None:
    coarse = {position: learning_rate(1.0, 0.2, position, 100) for position in range(0, 100, 10)}
    fine = {position: learning_rate(1.0, 0.2, position, 100) for position in range(0, 100, 5)}
    assert coarse.items() <= fine.items()


def test_learning_rate_grows_with_the_square_root_of_the_batch_unless_it_is_given() -> None:
    rates = {batch: TrainConfig(global_batch=batch).learning_rate for batch in (8, 32, 128)}
    assert rates == {8: 1.5e-4, 32: 3e-4, 128: 6e-4}
    assert TrainConfig(global_batch=128, optimizer=OptimizerConfig(learning_rate=0.01)).learning_rate == 0.01
