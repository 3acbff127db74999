"""Tables of a run as CSV text: what MLflow's page shows as a table and any tool reads."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

from packer.shards.manifest import Manifest, read_samples
from packer.storage.location import Location
from trainer.evaluation.metrics import TOP_K, Evaluation


def confusion_table(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    """Returns the confusion matrix: a row per true class, a column per predicted one."""
    rows = zip(class_names, evaluation.confusion.tolist(), strict=True)
    return _csv(["true class", *class_names], ([name, *counts] for name, counts in rows))


def class_table(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    """Returns precision, recall, F1 and support of each class."""
    figures = evaluation.per_class()
    columns = (class_names, *(map(_short, one) for one in figures[:3]), figures.support)
    return _csv(["class", "precision", "recall", "f1", "support"], zip(*columns, strict=True))


def prediction_table(evaluation: Evaluation, class_names: Sequence[str], shards: Location, split: str) -> str:
    """Returns a row for every sample of a split that was judged, in the order of the index."""
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
    """Returns the number of samples of each class in each split."""
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
