"""How far a run has come: what each step and epoch changes, and what a checkpoint keeps of it."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.evaluation.metrics import Evaluation
from trainer.worker.epoch import EpochFigures, EpochSums


@dataclass
class Progress:
    """Where a run stands, the same on every rank."""

    position: int = 0
    """Samples used, counted over all epochs; the schedule goes on from here."""
    global_step: int = 0
    """Finished optimizer steps."""
    num_bad: int = 0
    """Samples that could not be read."""
    best_step: int | None = None
    """Global step at the end of the best epoch so far."""
    best_figures: dict[str, float] = field(default_factory=dict)
    """Val figures of that epoch."""
    num_epochs_since_best: int = 0
    best_evaluation: Evaluation | None = None
    """What its model predicted on the val split."""
    history: list[EpochFigures] = field(default_factory=list)
    """Of every evaluated epoch, the oldest first."""
    is_evaluation_due: bool = False
    """Whether an epoch's steps are done but its evaluation is not: the user stopped the run before."""

    def end_step(self, position: int, num_bad: int) -> None:
        """Counts a finished step, which used the samples up to `position`; `num_bad` of them could not be read."""
        self.global_step += 1
        self.num_bad += num_bad
        self.position = position

    def end_epoch(self, evaluation: Evaluation, select_by: str, epoch: int, sums: EpochSums) -> bool:
        """Counts a finished epoch and returns whether it is the best so far.

        Args:
            evaluation: Of the val split.
            select_by: The figure that decides; if it is equal, the lower loss does.
            epoch: Its number, from 1.
            sums: Of its steps, over all ranks.
        """
        figures = evaluation.figures()
        self.is_evaluation_due = False
        self.history.append(EpochFigures(epoch, self.global_step, sums.train_loss, sums.train_top1, figures))
        is_best = _rank(figures, select_by) > _rank(self.best_figures, select_by)
        if is_best:
            self.best_step, self.best_figures, self.best_evaluation = self.global_step, figures, evaluation
            self.num_epochs_since_best = 0
        else:
            self.num_epochs_since_best += 1
        return is_best

    def state(self) -> dict[str, Any]:
        """Returns the entries of a checkpoint that hold the progress."""
        return {
            "position": self.position,
            "global_step": self.global_step,
            "num_bad": self.num_bad,
            "best_step": self.best_step,
            "best_figures": self.best_figures,
            "num_epochs_since_best": self.num_epochs_since_best,
            "best_predictions": self.best_evaluation.packed() if self.best_evaluation else None,
            "best_probabilities": self.best_evaluation.packed_probabilities() if self.best_evaluation else None,
            "history": [asdict(figures) for figures in self.history],
            "is_evaluation_due": self.is_evaluation_due,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], num_classes: int) -> "Progress":
        """Returns the progress that a checkpoint holds; older checkpoints lack the last five entries of `state`."""
        predictions = state.get("best_predictions")
        return cls(
            position=state["position"],
            global_step=state["global_step"],
            num_bad=state["num_bad"],
            best_step=state["best_step"],
            best_figures=state["best_figures"],
            num_epochs_since_best=state.get("num_epochs_since_best", 0),
            best_evaluation=None
            if predictions is None
            else Evaluation.unpack(predictions, state.get("best_probabilities"), num_classes),
            history=[EpochFigures(**figures) for figures in state.get("history", [])],
            is_evaluation_due=state.get("is_evaluation_due", False),
        )


def _rank(figures: dict[str, float], select_by: str) -> tuple[float, float]:
    return figures.get(select_by, -math.inf), -figures.get("loss", math.inf)
