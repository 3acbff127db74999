"""Which sample goes into which row of which batch: pure functions of the seed, never of ranks or loader workers.

A stream is the epochs' orders laid end to end. A step takes the next `global_batch` positions, whatever the number of
ranks; rank r takes every world_size-th of them. So any world size gives the same global batches, each sample is used
once per epoch, and one count, the positions used so far, is the whole state. Balanced sampling keeps all of that but
the once: an epoch then uses rare classes' samples more often and leaves out others'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from trainer.balance import balanced_uses, earlier_uses

PART_BLOCKS = 8
"""Blocks of an epoch's order that are worked out at once, at the cost of ten."""
MAX_PARTS = 4
"""Parts of orders that are kept; steps go forward, and a batch may reach into the next epoch."""


@dataclass(frozen=True)
class Row:
    """One row of a batch: which sample of which epoch, and what it weighs (0 for padding)."""

    epoch: int
    index: int
    weight: float
    draw: int = 0
    """How often the epoch used the sample before: above 0 in balanced sampling only."""


class Choice(IntEnum):
    """What is chosen at random for a row, each from random numbers of its own."""

    VIEW = 0
    FRAMES = 1
    PARTNER = 2
    MIX = 3


def generator_of(seed: int, row: Row, choice: Choice) -> np.random.Generator:
    """Returns the random numbers of one choice for one row, the same wherever and whenever the row is used."""
    key = [seed, row.epoch, row.index, *([row.draw] if row.draw else [])]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key, spawn_key=(choice,) if choice else ())))


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is mixed; two equal shuffles give equal orders."""

    seed: int
    block: int
    """Samples move at most this many places from where their shard stands: locality of reads against mixing."""


def epoch_order(
    shard_sizes: Sequence[int] | NDArray[np.int64],
    shuffle: Shuffle,
    epoch: int,
    first: int = 0,
    last: int | None = None,
) -> NDArray[np.int64]:
    """Returns the order in which an epoch uses the samples of a split, or the part of it from `first` to `last`.

    Shards are permuted, then each sample is moved forward by a random part of `shuffle.block`, so that samples of
    about block / samples-per-shard shards mix while every read stays within that window. A part costs the time and the
    memory of its own length and two blocks: 100 million samples are never sorted at once.

    Args:
        shard_sizes: Number of samples in each shard; sample indices count through the shards in this order.
        shuffle: Seed and block.
        epoch: Number of the epoch, from 0.
        first: Place in the order where the part begins.
        last: Place after its last; None: the order's end.

    Returns:
        `(last - first,) int64`, that part of a permutation of 0..N-1, the same for the same arguments on every machine.

    Source: the block shuffle of MosaicML Streaming ("py1e"), written anew as one stable argsort.
    """
    bits = np.random.PCG64([shuffle.seed, epoch])
    permuted = np.random.Generator(bits).permutation(len(shard_sizes))
    sizes = np.asarray(shard_sizes)
    stored_starts = (np.cumsum(sizes) - sizes)[permuted]
    ends = np.cumsum(sizes[permuted])
    last = int(ends[-1]) if last is None else last
    # No sample moves a block or more, so those of a part stood, as permuted, within a block of it.
    begin, end = max(0, first - shuffle.block), min(int(ends[-1]), last + shuffle.block)
    bits.advance(begin)  # one draw for each sample before
    places = np.arange(begin, end) + np.random.Generator(bits).uniform(0, shuffle.block, end - begin)
    stood = begin + np.argsort(places, kind="stable")[first - begin : last - begin]
    shards = np.searchsorted(ends, stood, side="right")
    samples: NDArray[np.int64] = stored_starts[shards] + stood - (ends - sizes[permuted])[shards]
    return samples


def balanced_order(
    shard_sizes: Sequence[int] | NDArray[np.int64], shuffle: Shuffle, epoch: int, labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns the order of an epoch in which every class comes equally often, mixed as `epoch_order` does it.

    Args:
        shard_sizes: Number of samples in each shard; sample indices count through the shards in this order.
        shuffle: Seed and block.
        epoch: Number of the epoch, from 0.
        labels: `(N,)` class of each sample.

    Returns:
        `(N,) int64`, a multiset of 0..N-1, the same for the same arguments on every machine.
    """
    generator = np.random.Generator(np.random.PCG64([shuffle.seed, epoch]))
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    permuted = generator.permutation(len(shard_sizes))
    samples = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in permuted])
    samples = np.repeat(samples, balanced_uses(labels, generator)[samples])
    places = np.arange(len(samples)) + generator.uniform(0, shuffle.block, len(samples))
    return samples[np.argsort(places, kind="stable")].astype(np.int64)


class Schedule:
    """The steps of a stream: which rows each rank gets at each step.

    Args:
        shard_sizes: Number of samples in each shard.
        global_batch: Samples per step, over all ranks.
        num_epochs: Number of epochs that are laid end to end.
        start: Positions that finished steps have used: the state that a resumed run starts from.
        shuffle: How epochs are mixed; without one, samples come in their stored order, as evaluation wants them.
        labels: `(N,)` class of each sample, for balanced sampling; without them an epoch uses each sample once.

    Raises:
        ValueError: No sample, no batch, or a start outside of the schedule.
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
        """Steps from `start` to the end; the last one may be padded."""
        return -(-(self.num_positions - self.start) // self.global_batch)

    def end_of(self, step: int) -> int:
        """Returns the positions used once `step`, counted from `start`, is finished."""
        return min(self.start + (step + 1) * self.global_batch, self.num_positions)

    def rows(self, step: int, rank: int, world_size: int) -> tuple[Row, ...]:
        """Returns the rows of one rank at one step, `step` counting from 0 at `start`.

        With 10 samples, a global batch of 4 and two ranks, step 2 takes positions 8 and 9, then positions 0 and 1 of
        the next epoch: rank 0 gets 8 and 0, rank 1 gets 9 and 1. After the last epoch a batch is filled up with the
        samples that open that epoch's order at weight 0, so that every step has the same shape.

        Raises:
            ValueError: More ranks than rows in a batch.
        """
        if world_size > self.global_batch:
            raise ValueError(
                f"world_size ({world_size}) must be at most global_batch ({self.global_batch}): every worker needs a "
                "clip at every step; raise --global-batch or lower --num-workers"
            )
        first = self.start + step * self.global_batch
        return tuple(self._row(position) for position in range(first + rank, first + self.global_batch, world_size))

    def partners(self, step: int, rank: int, world_size: int) -> tuple[Row | None, ...]:
        """Returns, for each of `rows`, another row of the same global batch, drawn by the row's key, to be mixed with.

        Padding has no partner and is none. Needs a shuffle, whose seed is used.
        """
        assert self.shuffle, "evaluation mixes nothing"
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
        """Returns the sample at a place of an epoch's order, and how often it came before."""
        if self.shuffle is None:
            return place, 0
        length = self.num_samples if self.labels is not None else PART_BLOCKS * self.shuffle.block
        number, rest = divmod(place, length)
        if (epoch, number) not in self._parts:
            while len(self._parts) >= MAX_PARTS:
                del self._parts[next(iter(self._parts))]
            first, last = number * length, min((number + 1) * length, self.num_samples)
            if self.labels is None:
                self._parts[epoch, number] = epoch_order(self._sizes, self.shuffle, epoch, first, last), None
            else:
                order = balanced_order(self._sizes, self.shuffle, epoch, self.labels)
                self._parts[epoch, number] = order, earlier_uses(order)
        order, draws = self._parts[epoch, number]
        return int(order[rest]), 0 if draws is None else int(draws[rest])
