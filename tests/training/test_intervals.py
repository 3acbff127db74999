"""Bootstrap intervals against the distribution that is known, and against resampling the samples themselves."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, f1_score

from trainer.evaluation.metrics import FIGURES, confusion_figures, intervals

CONFUSION = np.array([[40, 9, 1], [6, 20, 4], [0, 3, 7]])


@pytest.mark.parametrize("right", [30, 75, 98])
def test_accuracy_has_the_quantiles_of_its_binomial(right: int) -> None:
    low, high = intervals(np.array([[right, 100 - right], [0, 0]]))["top1"]
    assert [low, high] == pytest.approx(binom.ppf([0.025, 0.975], 100, right / 100) / 100, abs=0.0151)


def test_figures_are_those_of_resampled_samples() -> None:
    actual, predicted = (np.repeat(axis.ravel(), CONFUSION.ravel()) for axis in np.indices(CONFUSION.shape))
    generator = np.random.default_rng(5)
    draws = [generator.integers(0, len(actual), len(actual)) for _ in range(300)]
    found = intervals(CONFUSION)
    assert tuple(found) == FIGURES
    for name, figure in (
        ("macro_f1", lambda a, p: f1_score(a, p, average="macro")),
        ("mean_class_accuracy", balanced_accuracy_score),
    ):
        values = [figure(actual[draw], predicted[draw]) for draw in draws]
        assert found[name] == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.03)


def test_an_interval_is_the_same_again_and_holds_its_figure() -> None:
    found = intervals(CONFUSION)
    assert found == intervals(CONFUSION)
    figures = confusion_figures(CONFUSION)
    assert all(low < figures[name] < high for name, (low, high) in found.items())
    perfect = intervals(np.diag([5, 5]))
    assert set(perfect.values()) == {(1.0, 1.0)}
