"""Tables of a run as CSV text, which MLflow's page shows as tables and any tool reads, and the reader of one of them.

The column names are a stored format: they never change.
"""

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from packer.shards.manifest import Manifest, read_samples
from packer.storage.location import Location
from trainer.evaluation.metrics import TOP_K, Evaluation
from trainer.model.contract import prediction_columns


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

    The first columns are those of `prediction_columns`, and `num_frames` and `duration_seconds` follow, as in the table
    of `python -m serve score`. Then come the sample's `key`, its `loss` (cross entropy in nats), and whether the true
    class is among the five most probable ones. A split with more than `MAX_PROBABILITIES` has no `p_<class>`.
    """
    predictions, probabilities_NK = evaluation.predictions, evaluation.probabilities
    table = read_samples(shards, split, columns=["source", "key", "num_frames", "duration_seconds"])
    known = table.take(predictions["sample"]).to_pydict()
    sources, keys = known.pop("source"), known.pop("key")
    if probabilities_NK is None:
        probabilities_NK = np.empty((len(predictions), 0), np.float32)
    rows = zip(sources, keys, zip(*known.values(), strict=True), predictions.tolist(), probabilities_NK, strict=True)
    return _csv(
        [*prediction_columns(class_names[: probabilities_NK.shape[1]]), *known, "key", "loss", f"in_top_{TOP_K}"],
        (
            [
                *(source, class_names[label], class_names[predicted], _probability(probability)),
                *map(_probability, of_classes.tolist()),
                *(*lengths, key, _short(loss), in_k),
            ]
            for source, key, lengths, (_, label, predicted, probability, loss, in_k), of_classes in rows
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


def _probability(value: float) -> str:
    return f"{value:.6f}"  # those of rare classes are small


def _short(value: float) -> str:
    return f"{value:.4f}"
