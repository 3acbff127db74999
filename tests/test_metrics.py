"""Figures against scikit-learn, which computes them from labels and predictions rather than from a confusion matrix."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from trainer.metrics import Evaluation


def assert_as_scikit_learn(confusion: NDArray[np.int64]) -> None:
    actual, predicted = (np.repeat(axis.ravel(), confusion.ravel()) for axis in np.indices(confusion.shape))
    figures = Evaluation(confusion, num_top_k=0, loss_sum=0.0, num_bad=0).figures()
    present = np.unique(actual)
    assert figures["top1"] == pytest.approx(accuracy_score(actual, predicted))
    assert figures["macro_f1"] == pytest.approx(
        f1_score(actual, predicted, labels=present, average="macro", zero_division=0)
    )
    assert figures["mean_class_accuracy"] == pytest.approx(
        recall_score(actual, predicted, labels=present, average="macro", zero_division=0)
    )
    if len(present) > 1 and set(predicted) <= set(present):  # else scikit-learn warns
        assert figures["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(actual, predicted))


def test_every_small_confusion_of_two_classes() -> None:
    for counts in product(range(3), repeat=4):
        if any(counts):
            assert_as_scikit_learn(np.array(counts).reshape(2, 2))


@pytest.mark.parametrize("num_classes", [1, 3, 7])
def test_random_confusions_with_absent_classes(num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    for _ in range(40):
        confusion = generator.integers(0, 9, (num_classes, num_classes))
        confusion[generator.random(num_classes) < 0.3] = 0  # without samples
        confusion[:, generator.random(num_classes) < 0.2] = 0  # never predicted
        if confusion.any():
            assert_as_scikit_learn(confusion)


def test_top5_and_loss_are_means_over_the_samples_that_were_judged() -> None:
    figures = Evaluation(np.array([[3, 1], [0, 4]]), num_top_k=6, loss_sum=4.0, num_bad=2).figures()
    assert (figures["top5"], figures["loss"]) == (0.75, 0.5)


def test_nothing_to_judge_is_refused() -> None:
    evaluation = Evaluation(np.zeros((2, 2), np.int64), num_top_k=0, loss_sum=0.0, num_bad=7)
    with pytest.raises(ValueError, match="no sample of the split could be judged: 7 could not be read"):
        evaluation.figures()
