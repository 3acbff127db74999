"""The order in which an epoch uses the samples of a split: shuffled, or shuffled and balanced by class.

Orders are pure functions of (seed, epoch) and the sizes of the shards, the same on every machine. Ranks, batches and
resuming are the business of `trainer.schedule.schedule`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is mixed; two equal shuffles give equal orders."""

    seed: int
    block: int
    """Most places that a sample moves from where its shard stands: more mixes better, less keeps reads together."""


def epoch_order(
    shard_sizes: Sequence[int] | NDArray[np.int64],
    shuffle: Shuffle,
    epoch: int,
    start: int = 0,
    stop: int | None = None,
) -> NDArray[np.int64]:
    """Returns the order in which an epoch uses each sample of a split once, or the part of it from `start` to `stop`.

    Shards are permuted, then each sample moves forward by a random part of `shuffle.block`. So samples of about
    block / samples-per-shard shards mix, and every read stays within that window. A part costs the time and the memory
    of its own length and two blocks: 100 million samples are never sorted at once.

    Args:
        shard_sizes: Number of samples in each shard; sample indices count through the shards in this order.
        shuffle: Seed and block.
        epoch: Number of the epoch, from 0.
        start: Place in the order where the part begins.
        stop: Place after its last sample; None: the order's end.

    Returns:
        `(stop - start,) int64`, that part of a permutation of 0..N-1, the same for the same arguments on every machine.

    Source: the block shuffle of MosaicML Streaming ("py1e"), here as one stable argsort.
    """
    bits = np.random.PCG64([shuffle.seed, epoch])
    permuted = np.random.Generator(bits).permutation(len(shard_sizes))
    sizes = np.asarray(shard_sizes)
    stored_starts = (np.cumsum(sizes) - sizes)[permuted]
    ends = np.cumsum(sizes[permuted])
    stop = int(ends[-1]) if stop is None else stop
    # No sample moves a block or more, so the samples of a part stood within a block of it when permuted.
    begin, end = max(0, start - shuffle.block), min(int(ends[-1]), stop + shuffle.block)
    bits.advance(begin)  # one draw for each sample before the part
    places = np.arange(begin, end) + np.random.Generator(bits).uniform(0, shuffle.block, end - begin)
    stood = begin + np.argsort(places, kind="stable")[start - begin : stop - begin]
    shards = np.searchsorted(ends, stood, side="right")
    samples: NDArray[np.int64] = stored_starts[shards] + stood - (ends - sizes[permuted])[shards]
    return samples


def balanced_order(
    shard_sizes: Sequence[int] | NDArray[np.int64], shuffle: Shuffle, epoch: int, labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns the order of an epoch in which every class comes equally often, mixed as `epoch_order` mixes.

    Args:
        shard_sizes: Number of samples in each shard; sample indices count through the shards in this order.
        shuffle: Seed and block.
        epoch: Number of the epoch, from 0.
        labels: `(N,)` class of each sample.

    Returns:
        `(N,) int64` of 0..N-1, some of them repeated and some left out, the same for the same arguments on every
        machine.
    """
    generator = np.random.Generator(np.random.PCG64([shuffle.seed, epoch]))
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    permuted = generator.permutation(len(shard_sizes))
    samples = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in permuted])
    samples = np.repeat(samples, balanced_uses(labels, generator)[samples])
    places = np.arange(len(samples)) + generator.uniform(0, shuffle.block, len(samples))
    return samples[np.argsort(places, kind="stable")].astype(np.int64)


def balanced_uses(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns how often an epoch uses each sample: as many uses as samples, divided equally among the classes.

    The uses of a class are divided equally among its samples. What does not divide evenly is drawn. With labels
    (0, 0, 0, 0, 0, 1) class 1's sample is used 3 times, three of the others once, and two not at all.

    Args:
        labels: `(N,)` class of each sample; classes without samples get no use.
        generator: Decides the draws.

    Returns:
        `(N,) int64` counts that sum to N.
    """
    by_class = np.argsort(labels, kind="stable")
    members = np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1)
    uses = np.zeros(len(labels), np.int64)
    for numbers, total in zip(members, _divided(len(labels), len(members), generator), strict=True):
        uses[numbers] = _divided(int(total), len(numbers), generator)
    return uses


def earlier_uses(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how often each place's sample came before: the order (5, 2, 5, 5) gives (0, 0, 1, 2)."""
    by_sample = np.argsort(order, kind="stable")
    starts = np.flatnonzero(np.diff(order[by_sample], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    earlier = np.empty_like(order)
    earlier[by_sample] = np.arange(len(order)) - np.repeat(starts, lengths)
    return earlier


def _divided(total: int, num_parts: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns `total` in parts that differ by at most one; the larger parts are drawn."""
    parts = np.full(num_parts, total // num_parts)
    parts[generator.permutation(num_parts)[: total % num_parts]] += 1
    return parts
