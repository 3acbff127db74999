"""Plots of a run's evaluation and data, as PNG: confusion matrix, calibration, balance of the classes.

Only the driver imports this: matplotlib is slow to import. Figures are computed in `trainer.evaluation.metrics`.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from packer.shards.manifest import Manifest
from trainer.evaluation.metrics import NUM_BINS, Evaluation
from trainer.evaluation.tables import class_counts

DPI = 110
"""Resolution of the plots, in pixels per inch."""
MAX_COUNTED_CLASSES = 20
"""Most classes for which a confusion matrix has room for the counts in its cells."""
MAX_SIDE_INCHES = 24.0
"""Largest side of a plot, however many classes it shows."""


def draw_confusion(evaluation: Evaluation, class_names: Sequence[str], title: str) -> bytes:
    """Returns a confusion matrix: each cell's share of its true class, with its count if there is room."""
    counts = evaluation.confusion
    side_inches = min(4 + 0.35 * len(class_names), MAX_SIDE_INCHES)
    figure = Figure(figsize=(side_inches + 1, side_inches), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(class_names))
    size_points = _label_points(side_inches, len(class_names))
    axes.set_xticks(places, class_names, rotation=90, fontsize=size_points)
    axes.set_yticks(places, class_names, fontsize=size_points)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if len(class_names) <= MAX_COUNTED_CLASSES:
        for row, column in np.argwhere(counts).tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    figure.colorbar(image, label="share of the true class", format=PercentFormatter(1))
    return _png(figure)


def draw_calibration(evaluation: Evaluation, title: str) -> bytes:
    """Returns a reliability diagram: the share of right predictions by stated probability, above a histogram."""
    bins = evaluation.reliability()
    edges = np.linspace(0, 1, NUM_BINS + 1)
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = bins.num_samples > 0
    upper.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="perfectly calibrated")
    upper.plot(bins.probability[filled], bins.accuracy[filled], "o-", color="C0", label="this model")
    upper.bar(
        edges[:-1][filled], bins.accuracy[filled], 1 / NUM_BINS, align="edge", color="C0", alpha=0.25, edgecolor="white"
    )
    upper.set(ylabel="share of right predictions", ylim=(0, 1.02), title=title)
    upper.legend(loc="upper left", frameon=False)
    lower.bar(edges[:-1], bins.num_samples, 1 / NUM_BINS, align="edge", color="C0", edgecolor="white")
    lower.set(xlabel="probability of the predicted class", ylabel="clips", xlim=(0, 1))
    for axes in (upper, lower):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        _plain(axes)
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    return _png(figure)


def draw_balance(manifest: Manifest) -> bytes:
    """Returns a bar for each class: its number of clips, divided by split."""
    counts = np.array(list(class_counts(manifest).values()))
    height_inches = min(1.6 + 0.22 * len(counts), MAX_SIDE_INCHES)
    figure = Figure(figsize=(7, height_inches), layout="constrained")
    axes = figure.add_subplot()
    lefts = np.cumsum(counts, axis=1) - counts
    for split, left, widths in zip(manifest.splits, lefts.T, counts.T, strict=True):
        axes.barh(range(len(counts)), widths, left=left, label=f"{split} ({widths.sum():,})", edgecolor="white")
    axes.set_yticks(range(len(counts)), manifest.class_names, fontsize=_label_points(height_inches, len(counts)))
    axes.invert_yaxis()
    axes.set(xlabel="clips", title="Clips per class and split")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    _plain(axes)
    return _png(figure)


def _label_points(side_inches: float, num_labels: int) -> float:
    """Returns a font size in points at which all labels fit along a side."""
    return min(10.0, 60 * side_inches / num_labels)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
