"""Which sample goes into which row of which batch: pure functions of the seed, never of ranks or loader processes.

A stream is the epochs' orders laid end to end. A step takes the next `global_batch` positions, whatever the number of
ranks; rank r takes every world_size-th of them. So any world size gives the same global batches, each sample is used
once per epoch, and one count, the positions used so far, is the whole state. Balanced sampling gives up one of these
promises: an epoch repeats samples of rare classes and leaves out samples of common ones. Nothing is read here.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.schedule.order import Shuffle, balanced_order, earlier_uses, epoch_order
from trainer.schedule.rows import Choice, Row, generator_of

PART_BLOCKS = 8
"""Blocks of an epoch's order that are computed at once, at the cost of ten."""
MAX_PARTS = 4
"""Parts of orders that are kept: steps go forward, but a batch may reach into the next epoch."""


class Schedule:
    """The steps of a stream: which rows each rank gets at each step.

    Args:
        shard_sizes: Number of samples in each shard.
        global_batch: Samples per step, over all ranks.
        num_epochs: Number of epochs that are laid end to end.
        start: Positions that finished steps have used: the state that a resumed run starts from.
        shuffle: How epochs are mixed; None: samples come in their stored order, as in evaluation.
        labels: `(N,)` class of each sample, for balanced sampling; None: an epoch uses each sample once.

    Raises:
        ValueError: There is no sample, no batch, or the start lies outside of the schedule.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        global_batch: int,
        num_epochs: int = 1,
        start: int = 0,
        shuffle: Shuffle | None = None,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        self.shard_sizes = tuple(shard_sizes)
        self.global_batch = global_batch
        self.num_epochs = num_epochs
        self.start = start
        self.shuffle = shuffle
        self.labels = labels
        self.num_samples = sum(self.shard_sizes)
        self.num_positions = self.num_samples * num_epochs
        self._sizes = np.array(self.shard_sizes, dtype=np.int64)
        self._parts: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64] | None]] = {}
        if self.num_samples < 1:
            raise ValueError("shard_sizes hold no sample: a schedule needs at least one")
        if global_batch < 1:
            raise ValueError(f"global_batch ({global_batch}) must be at least 1")
        if not 0 <= start <= self.num_positions:
            raise ValueError(
                f"start ({start}) must lie in 0..{self.num_positions}, the positions of {num_epochs} epochs"
            )

    @property
    def num_steps(self) -> int:
        """Steps from `start` to the end; the last batch may be padded."""
        return -(-(self.num_positions - self.start) // self.global_batch)

    def end_of(self, step: int) -> int:
        """Returns the positions used when `step`, counted from `start`, is finished."""
        return min(self.start + (step + 1) * self.global_batch, self.num_positions)

    def rows(self, step: int, rank: int, world_size: int) -> tuple[Row, ...]:
        """Returns the rows of one rank at one step, `step` counting from 0 at `start`.

        With 10 samples, a global batch of 4 and two ranks, step 2 takes positions 8 and 9, then positions 0 and 1 of
        the next epoch: rank 0 gets 8 and 0, rank 1 gets 9 and 1. So that every step has the same shape, the last batch
        is padded at weight 0 with the samples that open the last epoch's order.

        Raises:
            ValueError: There are more ranks than rows in a batch.
        """
        if world_size > self.global_batch:
            raise ValueError(
                f"world_size ({world_size}) must be at most global_batch ({self.global_batch}): every worker needs a "
                "clip at every step; raise --global-batch or lower --num-workers"
            )
        first = self.start + step * self.global_batch
        return tuple(self._row(position) for position in range(first + rank, first + self.global_batch, world_size))

    def partners(self, step: int, rank: int, world_size: int) -> tuple[Row | None, ...]:
        """Returns for each of `rows` its partner: another row of the same global batch, which is mixed into it.

        Padding has no partner and is no partner. A row's partner is drawn by the shuffle's seed and the row alone.

        Raises:
            ValueError: The schedule has no shuffle: evaluation mixes nothing.
        """
        if self.shuffle is None:
            raise ValueError("a schedule without a shuffle has no partners: evaluation mixes nothing")
        first = self.start + step * self.global_batch
        num_real = min(self.global_batch, self.num_positions - first)
        partners: list[Row | None] = []
        for place, row in zip(
            range(rank, self.global_batch, world_size), self.rows(step, rank, world_size), strict=True
        ):
            if not row.weight or num_real < 2:
                partners.append(None)
                continue
            other = int(generator_of(self.shuffle.seed, row, Choice.PARTNER).integers(num_real - 1))
            partners.append(self._row(first + other + (other >= place)))
        return tuple(partners)

    def _row(self, position: int) -> Row:
        epoch, place = divmod(position, self.num_samples)
        real = epoch < self.num_epochs
        epoch = min(epoch, self.num_epochs - 1)
        index, draw = self._sample(epoch, place)
        return Row(epoch, index, float(real), draw)

    def _sample(self, epoch: int, place: int) -> tuple[int, int]:
        """Returns the sample at a place of an epoch's order, and how often the epoch used it before."""
        if self.shuffle is None:
            return place, 0
        length = self.num_samples if self.labels is not None else PART_BLOCKS * self.shuffle.block
        number, rest = divmod(place, length)
        if (epoch, number) not in self._parts:
            while len(self._parts) >= MAX_PARTS:
                del self._parts[next(iter(self._parts))]
            start, stop = number * length, min((number + 1) * length, self.num_samples)
            if self.labels is None:
                self._parts[epoch, number] = epoch_order(self._sizes, self.shuffle, epoch, start, stop), None
            else:
                order = balanced_order(self._sizes, self.shuffle, epoch, self.labels)
                self._parts[epoch, number] = order, earlier_uses(order)
        order, draws = self._parts[epoch, number]
        return int(order[rest]), 0 if draws is None else int(draws[rest])
