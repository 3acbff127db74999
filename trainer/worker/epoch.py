"""What the steps of an epoch add up to, and what the finished epoch came to."""

from dataclasses import dataclass

from trainer.learning.ranks import Ranks


@dataclass(frozen=True)
class EpochFigures:
    """What a finished epoch came to."""

    epoch: int
    """Its number, from 1."""
    global_step: int
    """At its end."""
    train_loss: float
    """Mean over its steps."""
    train_top1: float
    """Share of its clips that were told rightly while the model learnt: augmented, and with dropout."""
    val: dict[str, float]
    """Figures of its model on the val split."""


@dataclass
class EpochSums:
    """What the steps of the present epoch add up to, on one rank or over all."""

    num_steps: float = 0.0
    loss: float = 0.0
    num_clips: float = 0.0
    """Without padding and unreadable clips."""
    num_right: float = 0.0

    def add(self, loss: float, num_clips: int, num_right: int) -> None:
        """Adds one rank's part of a finished step."""
        self.num_steps += 1
        self.loss += loss
        self.num_clips += num_clips
        self.num_right += num_right

    def over(self, ranks: Ranks) -> "EpochSums":
        """Returns the sums over all ranks, which take the same steps."""
        num_steps = self.num_steps if ranks.rank == 0 else 0.0
        return EpochSums(*ranks.sum([num_steps, self.loss, self.num_clips, self.num_right]))

    @property
    def train_loss(self) -> float:
        """Mean over the steps; 0 if there are none."""
        return self.loss / max(1.0, self.num_steps)

    @property
    def train_top1(self) -> float:
        """Share of the clips that were told rightly; 0 if there are none."""
        return self.num_right / max(1.0, self.num_clips)
