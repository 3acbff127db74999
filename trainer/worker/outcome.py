"""How a training ended, as a worker tells the driver."""

from dataclasses import dataclass, field

from trainer.evaluation.metrics import Evaluation
from trainer.worker.epoch import EpochFigures


@dataclass(frozen=True)
class Outcome:
    """A training that reached its last epoch, or that the driver asked to stop."""

    stopped: bool
    """Whether the driver asked to stop before the last step."""
    best_step: int | None
    """Global step at the end of the best epoch; None before the first evaluation."""
    val: dict[str, float]
    """Figures of the best epoch on the val split."""
    test: dict[str, float]
    """Its figures on the test split; empty if the training was stopped or if there is no such split."""
    evaluations: dict[str, Evaluation] = field(repr=False)
    """By split, what the best epoch's model predicted for each sample."""
    test_averaged: dict[str, float] = field(default_factory=dict)
    """Its figures on the test split with test-time averaging; empty if none was asked for."""
    history: tuple[EpochFigures, ...] = field(default=(), repr=False)
    """Of every epoch; those of versions that did not keep it yet are missing."""


@dataclass(frozen=True)
class Failure:
    """A training that ended with an error which would only happen again after a restart."""

    reason: str
