"""Tables of a run as CSV text, which MLflow's page shows as tables and any tool reads, and the reader of one of them.

The column names are a stored format: they never change.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from packer.shards.manifest import Manifest, read_samples
from packer.storage.location import Location
from trainer.evaluation.metrics import TOP_K, Evaluation


def confusion_table(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    """Returns the confusion matrix, in counts: a row for each true class, a column for each predicted class."""
    rows = zip(class_names, evaluation.confusion.tolist(), strict=True)
    return _csv(["true class", *class_names], ([name, *counts] for name, counts in rows))


def read_confusion_table(text: str) -> NDArray[np.int64]:
    """Returns the `(K, K)` counts that `confusion_table` wrote."""
    rows = list(csv.reader(io.StringIO(text)))[1:]
    return np.array([counts for _, *counts in rows], dtype=np.int64)


def class_table(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    """Returns a row for each class: precision, recall and F1 as fractions, and support, its number of samples."""
    figures = evaluation.per_class()
    columns = (class_names, *(map(_short, one) for one in figures[:3]), figures.support)
    return _csv(["class", "precision", "recall", "f1", "support"], zip(*columns, strict=True))


def prediction_table(evaluation: Evaluation, class_names: Sequence[str], shards: Location, split: str) -> str:
    """Returns a row for every evaluated sample of a split, in the order of the index.

    `key` and `source` name the sample, `true` and `predicted` are classes, `probability` is that of the predicted
    class, `probability of true` that of the true class, and `true in top 5` tells whether that is among the five most
    probable ones.
    """
    index = read_samples(shards, split, columns=["key", "source"])
    known = index.take(evaluation.predictions["sample"])
    names = ["key", "source", "true", "predicted", "probability", "probability of true", f"true in top {TOP_K}"]
    rows = zip(known["key"].to_pylist(), known["source"].to_pylist(), evaluation.predictions.tolist(), strict=True)
    return _csv(
        names,
        (
            [
                key,
                source,
                class_names[label],
                class_names[predicted],
                _short(probability),
                _short(math.exp(-loss)),
                in_k,
            ]
            for key, source, (_, label, predicted, probability, loss, in_k) in rows
        ),
    )


def balance_table(manifest: Manifest) -> str:
    """Returns a row for each class: its number of samples in each split."""
    rows = ([name, *counts] for name, counts in class_counts(manifest).items())
    return _csv(["class", *manifest.splits], rows)


def class_counts(manifest: Manifest) -> dict[str, list[int]]:
    """Returns the number of samples of each class, one number per split of the manifest."""
    return {
        name: [split.num_per_class.get(name, 0) for split in manifest.splits.values()] for name in manifest.class_names
    }


def _csv(names: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def _short(value: float) -> str:
    return f"{value:.4f}"
