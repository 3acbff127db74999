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
    """A process group on the CPU, because the sum must not wait for the GPU's queue."""
    num_local: int = 1
    """Ranks on this machine, which share its cores."""

    def sum(self, values: list[float]) -> list[float]:
        """Returns the element-wise sums of `values` over all ranks."""
        return self.begin_sum(values)()

    def begin_sum(self, values: list[float]) -> Callable[[], list[float]]:
        """Begins to add up and returns a function that waits for the sums; it may be called several times."""
        if self.world_size == 1:
            return lambda: values
        total = torch.tensor(values, dtype=torch.float64)
        work = dist.all_reduce(total, group=self.group, async_op=True)

        def wait() -> list[float]:
            work.wait()
            return [float(value) for value in total]

        return wait

    def join(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns, on every rank, the arrays of all ranks, concatenated."""
        if self.world_size == 1:
            return values
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, values, group=self.group)
        return np.concatenate(parts)


def distribute(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Returns the model as the learner calls it: wrapped by DDP if there are several ranks.

    DDP sums the gradients of those parameters that require one now. If others do later, the model must be wrapped anew.
    """
    if ranks.world_size == 1:
        return model
    # Buffers are shared before they are used, not at every step. Gradients lie in DDP's buckets, without a second copy.
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Copies rank 0's buffers to every rank: batch norm's running statistics drift apart during training."""
    if ranks.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
