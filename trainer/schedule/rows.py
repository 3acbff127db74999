"""One row of a batch, and the random numbers of everything that is chosen for it.

A choice depends on (seed, epoch, sample) and nothing else, so it is the same for any rank, loader process or device.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


@dataclass(frozen=True)
class Row:
    """One row of a batch: which sample of which epoch, and its weight (0 for padding)."""

    epoch: int
    index: int
    weight: float
    draw: int = 0
    """How often the epoch used the sample before; above 0 only in balanced sampling."""


class Choice(IntEnum):
    """What is chosen at random for a row, or for a step (DROPOUT); each choice has random numbers of its own."""

    VIEW = 0
    FRAMES = 1
    PARTNER = 2
    MIX = 3
    DROPOUT = 4


def generator_of(seed: int, row: Row, choice: Choice) -> np.random.Generator:
    """Returns the random generator of one choice for one row, the same wherever and whenever the row is used."""
    key = [seed, row.epoch, row.index, *([row.draw] if row.draw else [])]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key, spawn_key=(choice,) if choice else ())))


def dropout_seed(seed: int, global_step: int, rank: int) -> int:
    """Returns the seed of one rank's dropout in one step, the same whenever the step is taken: 64 bits."""
    sequence = np.random.SeedSequence([seed, global_step, rank], spawn_key=(Choice.DROPOUT,))
    return int(sequence.generate_state(1, np.uint64)[0])
