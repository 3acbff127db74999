"""Plots of a run's evaluation and data, as PNG: confusion matrix, calibration, balance of the classes.

Only the driver imports this: matplotlib is slow to import. Figures are computed in `trainer.evaluation.metrics`.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from packer.proportion import wilson_interval
from packer.shards.manifest import Manifest
from trainer.evaluation.metrics import NUM_BINS, Evaluation
from trainer.evaluation.tables import class_counts

DPI = 110
"""Resolution of the plots, in pixels per inch."""
MAX_COUNTED_CLASSES = 57
"""Most classes for which a confusion matrix has room for the counts in its cells: they are `CELL_INCHES` wide."""
CELL_INCHES = 0.35
"""Side of a confusion matrix's cell, except if `MAX_SIDE_INCHES` makes it smaller."""
MIN_CELL_POINTS = 5.0
"""Smallest font of the cells' counts: three digits and `100%` fit into a cell."""
MAX_SIDE_INCHES = 24.0
"""Largest side of a plot, however many classes it shows."""


def draw_confusion(evaluation: Evaluation, class_names: Sequence[str], title: str) -> bytes:
    """Returns a confusion matrix: each cell's share of its true class and, if there is room, its count above that."""
    counts = evaluation.confusion
    side_inches = min(4 + CELL_INCHES * len(class_names), MAX_SIDE_INCHES)
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
        _write_cells(axes, counts, shares)
    figure.colorbar(image, label="share of the true class", format=PercentFormatter(1))
    return _png(figure)


def _write_cells(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    size_points = max(MIN_CELL_POINTS, 10 - 0.3 * len(counts))
    for row, column in np.argwhere(counts).tolist():
        text = f"{counts[row, column]}\n{shares[row, column]:.0%}"
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size_points, linespacing=1.1)


def draw_calibration(evaluation: Evaluation, title: str) -> bytes:
    """Returns a reliability diagram: the share of right predictions by stated probability, above the number of clips.

    A bin without clips has no point. The bars are 95 % intervals of each share: with few clips, chance moves a point.
    """
    bins = evaluation.reliability()
    filled = bins.num_samples > 0
    num_samples, accuracy = bins.num_samples[filled], bins.accuracy[filled]
    figure = Figure(figsize=(7, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="perfectly calibrated")
    lows, highs = np.array([*map(wilson_interval, accuracy.tolist(), num_samples.tolist())]).reshape(-1, 2).T
    upper.errorbar(
        *(bins.probability[filled], accuracy),
        yerr=[accuracy - lows, highs - accuracy],
        fmt="o",
        color="C0",
        elinewidth=1,
        capsize=2,
        clip_on=False,
        label="this model, with 95% intervals",
    )
    figure.suptitle(title)
    upper.set(ylabel="share of right predictions", ylim=(0, 1.02))
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)  # above, where no point can be
    centres = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    bars = lower.bar(centres[filled], num_samples, 1 / NUM_BINS, color="C0", edgecolor="white")
    lower.bar_label(bars, [f"{count:,}" for count in num_samples], fontsize=7)
    lower.margins(y=0.2)
    lower.set(xlabel="probability of the predicted class", ylabel="clips", xlim=(0, 1))
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
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
