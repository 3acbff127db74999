"""Balanced sampling: how often each sample of a split is used in an epoch in which all classes come equally often."""

import numpy as np
from numpy.typing import NDArray


def balanced_uses(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns how often an epoch uses each sample: as many uses as samples, divided equally among the classes.

    Within a class, too, no sample is used more than once more often than another. Who gets what does not divide evenly
    is drawn. With labels (0, 0, 0, 0, 0, 1) class 1's sample is used 3 times, three of the others once, two not at all.

    Args:
        labels: `(N,)` class of each sample; classes without samples have no part.
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
    """Returns how often each place's sample came before it: for the order (5, 2, 5, 5) these are (0, 0, 1, 2)."""
    by_sample = np.argsort(order, kind="stable")
    starts = np.flatnonzero(np.diff(order[by_sample], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    earlier = np.empty_like(order)
    earlier[by_sample] = np.arange(len(order)) - np.repeat(starts, lengths)
    return earlier


def _divided(total: int, num_parts: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns `total` in parts that differ by at most one; which are the larger ones is drawn."""
    parts = np.full(num_parts, total // num_parts)
    parts[generator.permutation(num_parts)[: total % num_parts]] += 1
    return parts
