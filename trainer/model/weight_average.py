"""A moving average of a model's weights: less noisy than the weights of any one step, and usually the better model.

It is a copy of the model; the caller decides when it is updated, evaluated and stored.
"""

import copy
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of a model, batch norm's statistics included, as in torchvision's recipes.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that random first weights are soon forgotten.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`.

    Args:
        model: It is copied.
        decay: Share of the average that an update keeps, below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.num_updates = 0
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counted = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model as it is now."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        for held, now in self._averaged:
            held.lerp_(now, 1 - decay)
        for held, now in self._counted:
            held.copy_(now)

    def state_dict(self) -> dict[str, Any]:
        """Returns the average and its count of updates, as a checkpoint keeps them."""
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.num_updates = state["num_updates"]
