"""How far a run has come: what steps and epochs change, and that a checkpoint gives it back."""

import numpy as np
import pytest

from trainer.evaluation.metrics import PREDICTION, Evaluation
from trainer.worker.epoch import EpochSums
from trainer.worker.progress import Progress


def evaluation(num_right: int, loss: float) -> Evaluation:
    """Returns an evaluation of 4 samples of 2 classes."""
    records = np.zeros(4, PREDICTION)
    records["sample"] = np.arange(4)
    records["label"] = [0, 1, 0, 1]
    records["predicted"] = records["label"]
    records["predicted"][num_right:] = 1 - records["label"][num_right:]
    records["loss"] = loss
    return Evaluation(records, 2, probabilities=np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2))


def test_steps_are_counted() -> None:
    progress = Progress()
    progress.end_step(4, 1)
    progress.end_step(8, 2)
    assert (progress.global_step, progress.position, progress.num_bad) == (2, 8, 3)


@pytest.mark.parametrize(
    ("num_right", "loss", "is_best"),
    [(3, 9.0, True), (2, 0.4, True), (2, 0.5, False), (2, 0.6, False), (1, 0.1, False)],
)
def test_an_epoch_is_the_best_if_it_is_better_or_as_good_with_less_loss(
    num_right: int, loss: float, is_best: bool
) -> None:
    first, second = evaluation(2, 0.5), evaluation(num_right, loss)
    progress = Progress()
    progress.end_step(4, 0)
    assert progress.end_epoch(first, "top1", 1, EpochSums())
    assert (progress.best_step, progress.num_epochs_since_best) == (1, 0)
    progress.end_step(8, 0)
    assert progress.end_epoch(second, "top1", 2, EpochSums()) is is_best
    best = second if is_best else first
    assert (progress.best_step, progress.num_epochs_since_best) == ((2, 0) if is_best else (1, 1))
    assert progress.best_evaluation is best
    assert progress.best_figures == best.figures()


def test_a_checkpoint_gives_it_back() -> None:
    progress = Progress()
    progress.end_step(4, 1)
    progress.end_epoch(evaluation(3, 0.5), "top1", 1, EpochSums(2.0, 3.0, 8.0, 2.0))
    progress.end_epoch(evaluation(1, 0.5), "top1", 2, EpochSums())
    progress.is_evaluation_due = True
    state = progress.state()
    again = Progress.from_state(state, num_classes=2)
    assert again.state().keys() == state.keys()
    of_best = {"best_predictions", "best_probabilities"}
    assert {name: value for name, value in again.state().items() if name not in of_best} == {
        "position": 4,
        "global_step": 1,
        "num_bad": 1,
        "best_step": 1,
        "best_figures": evaluation(3, 0.5).figures(),
        "num_epochs_since_best": 1,
        "is_evaluation_due": True,
        "history": [
            {"epoch": 1, "global_step": 1, "train_loss": 1.5, "train_top1": 0.25, "val": evaluation(3, 0.5).figures()},
            {"epoch": 2, "global_step": 1, "train_loss": 0.0, "train_top1": 0.0, "val": evaluation(1, 0.5).figures()},
        ],
    }
    assert again.history == progress.history
    assert again.best_evaluation is not None
    assert (again.best_evaluation.predictions == evaluation(3, 0.5).predictions).all()
    assert np.array_equal(again.best_evaluation.probabilities, evaluation(3, 0.5).probabilities)


def test_older_checkpoints_lack_the_newest_entries() -> None:
    state = Progress(position=8, global_step=2).state()
    for newer in ("num_epochs_since_best", "best_predictions", "best_probabilities", "history", "is_evaluation_due"):
        del state[newer]
    assert Progress.from_state(state, num_classes=2) == Progress(position=8, global_step=2)


def test_a_checkpoint_from_before_probabilities_were_kept_gives_the_predictions() -> None:
    progress = Progress()
    progress.end_epoch(evaluation(3, 0.5), "top1", 1, EpochSums())
    state = progress.state()
    del state["best_probabilities"]
    again = Progress.from_state(state, num_classes=2).best_evaluation
    assert again is not None
    assert again.probabilities is None
    assert again.figures() == evaluation(3, 0.5).figures()
