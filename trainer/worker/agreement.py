"""What the ranks of a run agree on at every step."""

from functools import cached_property

from trainer.learning.ranks import Ranks
from trainer.worker.checkpoint import SupersededError


class Agreement:
    """One step's sums over the ranks; they are computed in the background, during the forward pass.

    Every rank must make one and read it. The first reading waits for the other ranks.

    Args:
        ranks: The processes of the run.
        weight_sum: What this rank's rows add to the divisor of the mean loss.
        num_bad: Samples that this rank could not read.
        save: Whether this rank wants a checkpoint after the step. The three wishes count from rank 0 only.
        stop: Whether it wants the training to end after the step.
        superseded: Whether it sees that another command has taken the run over.

    Raises:
        SupersededError: At the first reading, on every rank: another command has taken the run over.
    """

    def __init__(
        self, ranks: Ranks, *, weight_sum: float, num_bad: int, save: bool, stop: bool, superseded: bool
    ) -> None:
        wishes = [float(ranks.rank == 0 and wish) for wish in (save, stop, superseded)]
        self._sums = ranks.begin_sum([weight_sum, num_bad, *wishes])

    @cached_property
    def _totals(self) -> list[float]:
        totals = self._sums()
        if totals[4]:
            raise SupersededError
        return totals

    @property
    def weight_sum(self) -> float:
        """Sum of the weights of the global batch's rows."""
        return self._totals[0]

    @property
    def num_bad(self) -> int:
        """Samples that could not be read, over all ranks."""
        return int(self._totals[1])

    @property
    def save(self) -> bool:
        """Whether a checkpoint is written after the step."""
        return self._totals[2] > 0

    @property
    def stop(self) -> bool:
        """Whether the training ends after the step."""
        return self._totals[3] > 0
