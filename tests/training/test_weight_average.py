"""The moving average of a model's weights; resumed from a checkpoint it is the same to the last bit."""

import copy

import pytest
import torch
from torch import nn

from trainer.model.weight_average import WeightAverage

pytestmark = pytest.mark.usefixtures("one_thread")


def change(model: nn.Module, step: int) -> None:
    """Any training step: other weights, other statistics."""
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(8, 3))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("decay", [0.5, 0.15])
def test_it_is_the_exponential_moving_average_of_weights_and_statistics(decay: float) -> None:
    model = make_model()
    average = WeightAverage(model, decay)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(10):
        change(model, step)
        average.update()
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            wanted[name] = kept * wanted[name] + (1 - kept) * value if value.is_floating_point() else value.clone()
    for name, value in average.model.state_dict().items():
        assert torch.allclose(value, wanted[name], atol=1e-6), name
    assert not torch.allclose(average.model[0].weight, model[0].weight, atol=0.1)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_goes_on_from_a_checkpoint_to_the_same_bits() -> None:
    model = make_model()
    average = WeightAverage(model, 0.9)
    for step in range(10):
        if step == 5:
            state = copy.deepcopy((model.state_dict(), average.state_dict()))
            model = make_model()
            average = WeightAverage(model, 0.9)
            model.load_state_dict(state[0])
            average.load_state_dict(state[1])
        change(model, step)
        average.update()
    whole = make_model()
    wanted = WeightAverage(whole, 0.9)
    for step in range(10):
        change(whole, step)
        wanted.update()
    assert average.num_updates == 10
    for value, other in zip(average.model.state_dict().values(), wanted.model.state_dict().values(), strict=True):
        assert torch.equal(value, other)
