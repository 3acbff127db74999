"""Figures of a classifier from its confusion matrix, which is all that ranks have to add up."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP_K = 5


@dataclass(frozen=True)
class Evaluation:
    """What a model did on one split, every sample counted once."""

    confusion: NDArray[np.int64]
    """`(K, K)`: row = true class, column = predicted class."""
    num_top_k: int
    """Samples whose class was among the `TOP_K` most probable ones."""
    loss_sum: float
    """Sum of the samples' cross entropies, in nats."""
    num_bad: int
    """Samples that could not be read; they are in no other figure."""

    @property
    def num_samples(self) -> int:
        """Samples that were judged."""
        return int(self.confusion.sum())

    def figures(self) -> dict[str, float]:
        """Returns the named figures: fractions in 0..1, and the mean loss in nats.

        `mean_class_accuracy` and `macro_f1` are means over the classes that the split has samples of. A class that is
        never predicted has an F1 of 0, as in scikit-learn.

        Raises:
            ValueError: No sample could be judged.
        """
        if not self.num_samples:
            raise ValueError(f"no sample of the split could be judged: {self.num_bad} could not be read")
        right = np.diag(self.confusion).astype(float)
        actual = self.confusion.sum(axis=1)
        predicted = self.confusion.sum(axis=0)
        present = actual > 0
        recall = right[present] / actual[present]
        f1 = 2 * right[present] / (actual + predicted)[present]
        return {
            "top1": float(right.sum() / self.num_samples),
            "top5": self.num_top_k / self.num_samples,
            "mean_class_accuracy": float(recall.mean()),
            "macro_f1": float(f1.mean()),
            "loss": self.loss_sum / self.num_samples,
        }
