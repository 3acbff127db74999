"""How sure a figure of a test split is: percentile bootstrap over its samples."""

import numpy as np
from numpy.typing import NDArray

from trainer.metrics import confusion_figures

NUM_RESAMPLES = 1000
LEVEL = 0.95
FIGURES = ("top1", "macro_f1", "mean_class_accuracy")
"""Figures that the confusion matrix alone decides."""


def intervals(confusion: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval, (low, high), of each of `FIGURES`, the same for the same `(K, K)` confusion matrix.

    A resample draws as many samples, with replacement. What it gives depends on how many fall into each cell of the
    confusion matrix, so the cells are drawn instead. The interval tells how the figure might differ on other samples
    like these, taken one by one; it tells nothing of other trainings, and clips of one recording are not independent.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    generator = np.random.default_rng(0)
    filled = np.nonzero(confusion)
    num_samples = confusion.sum()
    values = []
    for _ in range(NUM_RESAMPLES):
        resampled = np.zeros_like(confusion)
        resampled[filled] = generator.multinomial(num_samples, confusion[filled] / num_samples)
        figures = confusion_figures(resampled)
        values.append([figures[name] for name in FIGURES])
    lows, highs = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).tolist()
    return dict(zip(FIGURES, zip(lows, highs, strict=True), strict=True))
