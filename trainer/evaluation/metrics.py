"""What a model predicted for every sample of a split, and the figures that follow from it.

Ranks exchange one small record per sample instead of sums, so the figures do not depend on the number of ranks, and it
can be shown later which samples went wrong. Running the model is not done here: see `trainer.learning.evaluate`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packer.proportion import LEVEL

TOP_K = 5
"""A prediction counts for `top5` if the true class is among the K most probable ones."""
MAX_PROBABILITIES = 1 << 24
"""Most probabilities, samples times classes, that an evaluation keeps for its table: 64 MiB of float32.

19,796 clips of 400 classes, the val split of Kinetics-400, are half of them. Of a larger split only the probability of
the predicted class is kept.
"""
NUM_BINS = 15
"""Equal bins of probability in the calibration error.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""
FIGURES = ("top1", "macro_f1", "mean_class_accuracy")
"""Figures that need the confusion matrix only; `intervals` gives their intervals."""
BEST = "best/"
"""What the MLflow metrics of the kept model begin with: its epoch, and its accuracy on val and test.

MLflow's page shows metrics with the same beginning together, and before those without one, such as the curves.
"""
NUM_RESAMPLES = 1000
"""Resamples of an interval."""

PREDICTION = np.dtype(
    [
        ("sample", np.int64),  # number in the split's index
        ("label", np.int32),
        ("predicted", np.int32),
        ("probability", np.float32),  # of the predicted class
        ("loss", np.float32),  # cross entropy in nats: minus the logarithm of the label's probability
        ("in_top_k", np.bool_),
    ]
)
"""The record of one sample, 25 bytes."""


class ClassFigures(NamedTuple):
    """Figures of each class, arrays of one entry per class; 0 if no sample decides a figure."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    """Number of samples of the class."""


class Reliability(NamedTuple):
    """How often the model was right, by the probability that it stated: arrays of one entry per bin of probability."""

    num_samples: NDArray[np.int64]
    probability: NDArray[np.float64]
    """Mean probability of the predicted class; 0 in an empty bin."""
    accuracy: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model predicted on one split, every sample counted once."""

    predictions: NDArray[np.void]
    """`(N,)` records of `PREDICTION`, in the order of the split's index."""
    num_classes: int
    """K."""
    num_bad: int = 0
    """Samples that could not be read; no figure counts them."""
    probabilities: NDArray[np.float32] | None = None
    """`(N, K) float32`, of each class; None if there are more than `MAX_PROBABILITIES`, or on a rank other than 0."""

    @classmethod
    def unpack(cls, packed: Tensor, probabilities: Tensor | None, num_classes: int) -> "Evaluation":
        """Returns the evaluation that `packed` came from; its count of bad samples is not kept."""
        known = None if probabilities is None else probabilities.numpy()
        return cls(packed.numpy().view(PREDICTION), num_classes, probabilities=known)

    def packed(self) -> Tensor:
        """Returns the predictions as bytes, `(N * 25,) uint8`, which a checkpoint may hold."""
        return torch.from_numpy(self.predictions.view(np.uint8))

    def packed_probabilities(self) -> Tensor | None:
        """Returns the probabilities of each class, which a checkpoint may hold."""
        return None if self.probabilities is None else torch.from_numpy(self.probabilities)

    @property
    def num_samples(self) -> int:
        """Samples that were evaluated."""
        return len(self.predictions)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """`(K, K)` counts: row = true class, column = predicted class."""
        cells = self.predictions["label"].astype(np.int64) * self.num_classes + self.predictions["predicted"]
        return np.bincount(cells, minlength=self.num_classes**2).reshape(self.num_classes, self.num_classes)

    def figures(self) -> dict[str, float]:
        """Returns the named figures: fractions in 0..1, and the mean loss in nats.

        `mean_class_accuracy` and `macro_f1` are means over the classes that the split has samples of. `ece` is the
        expected calibration error: how far the stated probability is, on average, from the share that was right.

        Raises:
            ValueError: No sample could be evaluated.
        """
        if not self.num_samples:
            raise ValueError(f"no sample of the split could be evaluated: {self.num_bad} could not be read")
        bins = self.reliability()
        of_classes = confusion_figures(self.confusion)
        return {
            "top1": of_classes.pop("top1"),
            "top5": float(self.predictions["in_top_k"].mean()),
            **of_classes,
            "loss": float(self.predictions["loss"].mean(dtype=np.float64)),
            "ece": float(np.abs(bins.accuracy - bins.probability) @ bins.num_samples / self.num_samples),
        }

    def per_class(self) -> ClassFigures:
        """Returns precision, recall, F1 and support of each class."""
        return class_figures(self.confusion)

    def reliability(self) -> Reliability:
        """Returns stated probability against accuracy in `NUM_BINS` equal bins of probability."""
        probability = self.predictions["probability"].astype(np.float64)
        bins = (np.ceil(probability * NUM_BINS) - 1).clip(0, NUM_BINS - 1).astype(np.int64)
        is_right = self.predictions["label"] == self.predictions["predicted"]
        num_samples, sum_of_probability, num_right = (
            np.bincount(bins, weights, minlength=NUM_BINS) for weights in (None, probability, is_right)
        )
        divisor = num_samples.clip(min=1)
        return Reliability(num_samples, sum_of_probability / divisor, num_right / divisor)

    def worst_mistakes(self, num_samples: int) -> NDArray[np.void]:
        """Returns the records of the wrong predictions that had the highest probability, the highest first."""
        wrong = self.predictions[self.predictions["label"] != self.predictions["predicted"]]
        most_probable_first: NDArray[np.void] = wrong[np.argsort(-wrong["probability"], kind="stable")]
        return most_probable_first[:num_samples]


def class_figures(confusion: NDArray[np.int64]) -> ClassFigures:
    """Returns precision, recall, F1 and support of each class, from `(K, K)` counts by true and predicted class."""
    right = np.diag(confusion)
    actual, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassFigures(
        precision=right / predicted.clip(min=1),
        recall=right / actual.clip(min=1),
        f1=2 * right / (actual + predicted).clip(min=1),
        support=actual,
    )


def confusion_figures(confusion: NDArray[np.int64]) -> dict[str, float]:
    """Returns top1, mean_class_accuracy and macro_f1, as fractions, of a `(K, K)` confusion matrix."""
    classes = class_figures(confusion)
    present = classes.support > 0
    return {
        "top1": float(np.trace(confusion) / confusion.sum()),
        "mean_class_accuracy": float(classes.recall[present].mean()),
        "macro_f1": float(classes.f1[present].mean()),
    }


def intervals(confusion: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval, (low, high), of each of `FIGURES`, the same for the same `(K, K)` confusion matrix.

    A resample draws as many samples as there are, with replacement. Only the number in each cell of the confusion
    matrix matters, so the cells are drawn. The interval tells how a figure might differ on other samples like these.
    It assumes independent samples, which clips of one recording are not, and says nothing about other trainings.

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
