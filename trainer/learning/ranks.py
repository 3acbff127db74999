"""The processes that train together: their sums, their DDP wrapper, their shared buffers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and the one small sum over them that each step needs."""

    rank: int = 0
    world_size: int = 1
    group: Any = None
    """A CPU group: the sum must not wait for the GPU's queue."""
    num_local: int = 1
    """How many of them share this machine's cores."""

    def sum(self, values: list[float]) -> list[float]:
        """Returns the element-wise sums of `values` over all ranks."""
        return self.begin_sum(values)()

    def begin_sum(self, values: list[float]) -> Callable[[], list[float]]:
        """Begins to add up and returns at once; what it returns waits for the sums, and may be called again."""
        if self.world_size == 1:
            return lambda: values
        total = torch.tensor(values, dtype=torch.float64)
        work = dist.all_reduce(total, group=self.group, async_op=True)

        def wait() -> list[float]:
            work.wait()
            return [float(value) for value in total]

        return wait

    def join(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns the arrays of all ranks, one behind the other, on every rank."""
        if self.world_size == 1:
            return values
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, values, group=self.group)
        return np.concatenate(parts)


def distribute(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Returns a model as its learner calls it: wrapped by DDP where there are several ranks.

    DDP adds up the gradients of the parameters that need one now: where others do later, it must be made anew.
    """
    if ranks.world_size == 1:
        return model
    # Buffers are shared where they are used, not at every step; gradients are held once, where they are summed.
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Gives every rank rank 0's buffers: batch norm's running statistics drift apart while training."""
    if ranks.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
