"""Figures against scikit-learn, which computes them in other ways."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)

from trainer.evaluation.metrics import NUM_BINS, PREDICTION, Evaluation


def make_evaluation(confusion: NDArray[np.int64], **columns: object) -> Evaluation:
    """Samples that give a confusion matrix; `columns` sets other fields of their records."""
    actual, predicted = (np.repeat(axis.ravel(), confusion.ravel()) for axis in np.indices(confusion.shape))
    predictions = np.zeros(len(actual), PREDICTION)
    for name, values in {"sample": range(len(actual)), "label": actual, "predicted": predicted, **columns}.items():
        predictions[name] = values
    return Evaluation(predictions, len(confusion))


def assert_as_scikit_learn(confusion: NDArray[np.int64]) -> None:
    evaluation = make_evaluation(confusion)
    actual, predicted = evaluation.predictions["label"], evaluation.predictions["predicted"]
    assert evaluation.confusion.tolist() == confusion.tolist()
    figures = evaluation.figures()
    present = np.unique(actual)
    assert figures["top1"] == pytest.approx(accuracy_score(actual, predicted))
    assert figures["macro_f1"] == pytest.approx(
        f1_score(actual, predicted, labels=present, average="macro", zero_division=0)
    )
    assert figures["mean_class_accuracy"] == pytest.approx(
        recall_score(actual, predicted, labels=present, average="macro", zero_division=0)
    )
    if len(present) > 1 and set(predicted) <= set(present):  # otherwise scikit-learn warns
        assert figures["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(actual, predicted))
    wanted = precision_recall_fscore_support(actual, predicted, labels=range(len(confusion)), zero_division=0)
    for ours, theirs in zip(evaluation.per_class(), wanted, strict=True):
        assert ours.tolist() == pytest.approx(theirs.tolist())


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


def test_top5_and_loss_are_means_over_the_samples_that_were_evaluated() -> None:
    confusion = np.array([[3, 1], [0, 4]])
    figures = make_evaluation(confusion, in_top_k=[True] * 6 + [False] * 2, loss=0.5).figures()
    assert (figures["top5"], figures["loss"]) == (0.75, 0.5)


def test_calibration_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probability = generator.uniform(0.2, 1, 300).astype(np.float32)
    evaluation = make_evaluation(np.array([[100, 50], [50, 100]]), probability=probability)
    is_right = evaluation.predictions["label"] == evaluation.predictions["predicted"]
    accuracy, confidence = calibration_curve(is_right, probability, n_bins=NUM_BINS)
    bins = evaluation.reliability()
    filled = bins.num_samples > 0
    assert bins.accuracy[filled] == pytest.approx(accuracy)
    assert bins.probability[filled] == pytest.approx(confidence)
    counts, _ = np.histogram(probability, NUM_BINS, (0, 1))
    assert bins.num_samples.tolist() == counts.tolist()
    shares = counts[filled] / 300
    assert evaluation.figures()["ece"] == pytest.approx(float(abs(accuracy - confidence) @ shares))


@pytest.mark.parametrize(("probability", "ece"), [(1.0, 0.25), (0.75, 0.0), (0.0, 0.75)])
def test_calibration_error_is_how_far_the_probability_is_from_the_share_that_was_right(
    probability: float, ece: float
) -> None:
    assert make_evaluation(np.array([[3, 1], [1, 3]]), probability=probability).figures()["ece"] == ece


def test_worst_mistakes_are_the_surest_wrong_ones() -> None:
    evaluation = make_evaluation(np.array([[2, 2], [1, 0]]), probability=[0.9, 1.0, 0.6, 0.8, 0.8])
    assert evaluation.worst_mistakes(2)["sample"].tolist() == [3, 4]
    assert evaluation.worst_mistakes(9)["sample"].tolist() == [3, 4, 2]


def test_predictions_survive_packing() -> None:
    evaluation = make_evaluation(np.array([[3, 1], [0, 4]]), probability=0.7, loss=0.5)
    assert evaluation.packed_probabilities() is None
    assert (Evaluation.unpack(evaluation.packed(), None, 2).predictions == evaluation.predictions).all()
    probabilities = np.linspace(0, 1, 16, dtype=np.float32).reshape(8, 2)
    whole = Evaluation(evaluation.predictions, 2, probabilities=probabilities)
    assert np.array_equal(
        Evaluation.unpack(whole.packed(), whole.packed_probabilities(), 2).probabilities, probabilities
    )


def test_nothing_to_judge_is_refused() -> None:
    evaluation = Evaluation(np.empty(0, PREDICTION), num_classes=2, num_bad=7)
    with pytest.raises(ValueError, match="no sample of the split could be evaluated: 7 could not be read"):
        evaluation.figures()
