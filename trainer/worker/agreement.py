"""What the ranks of a run agree on at every step."""

import os
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.learning.ranks import Ranks
from trainer.worker.checkpoint import SupersededError

if TYPE_CHECKING:
    from trainer.worker.spec import JobSpec


class Agreement:
    """One step's sums over the ranks, which are on their way while the forward pass is computed.

    Every rank must make one and read it; reading waits for the other ranks.

    Args:
        ranks: The processes of the run.
        spec: The run; rank 0 looks whether its driver asks to stop and whether another command has taken it over.
        mass: What this rank's rows add to the divisor of the mean.
        num_bad: Samples that this rank could not read.
        save_due: Whether this rank's last checkpoint is old enough for the next one; rank 0's word counts.

    Raises:
        SupersededError: At reading, on every rank: another command has taken the run over.
    """

    def __init__(self, ranks: Ranks, spec: "JobSpec", *, mass: float, num_bad: int, save_due: bool) -> None:
        leads = ranks.rank == 0
        stop = leads and os.path.exists(spec.stop_file)  # noqa: PTH110  # a storage that fails is no stop
        superseded = leads and spec.checkpoints.is_superseded()
        self._sums = ranks.begin_sum([mass, num_bad, float(leads and save_due), float(stop), float(superseded)])

    @cached_property
    def _totals(self) -> list[float]:
        totals = self._sums()
        if totals[4]:
            raise SupersededError
        return totals

    @property
    def mass(self) -> float:
        """Mass of the global batch."""
        return self._totals[0]

    @property
    def num_bad(self) -> int:
        """Samples that no rank could read."""
        return int(self._totals[1])

    @property
    def save(self) -> bool:
        """Whether a checkpoint is written after the step."""
        return self._totals[2] > 0

    @property
    def stop(self) -> bool:
        """Whether the training ends after the step."""
        return self._totals[3] > 0
