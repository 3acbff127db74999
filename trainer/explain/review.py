"""Writes the clips of a finished run whose labels may be wrong, as a table to correct: `python -m trainer review`.

A model has learnt the labels of its train split, right or wrong, so it says nothing about them. Covered are val and
test of a run, and those of all trainings of a cross-validation: over folds, that is every clip. The packer takes the
corrected table back: `python -m packer relabel`.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.explain import ReviewConfig
from configs.home import resolve
from configs.section import UsageError
from packer.proportion import wilson_interval
from packer.shards.manifest import read_samples
from packer.storage.files import write_atomically
from trainer.explain.draw import Strip, draw_strips
from trainer.explain.finished_run import FinishedRun, find_folder, load_run, trainings_of
from trainer.explain.passes import read_clips, see_whole_split
from trainer.explain.suspicion import suspected_classes, suspicion

COVERED = ("test", "val")
"""Splits that a run's model did not learn from; a clip that is in both, in two trainings, counts as in test."""
_COLUMNS = ("source", "start_seconds", "end_seconds")


@dataclass(frozen=True)
class Suspect:
    """A clip whose label may be wrong."""

    covered: "_Covered"
    label: str
    predicted: str
    """What it seems to be instead."""
    probability: float
    """Of that class."""
    probability_of_label: float
    suspicion: float
    """0 to 1, see `trainer.explain.suspicion`."""


@dataclass(frozen=True)
class Review:
    """What a review found."""

    suspects: list[Suspect]
    """The most suspicious first."""
    num_covered: int
    """Clips that a model has seen which did not learn from them."""
    num_right: int
    """Those of them whose label the model finds most probable."""
    num_guessed: int
    """How many of the covered clips have the commonest label."""
    num_uncovered: int
    """Clips that no such model has seen."""
    table: Path
    pictures: list[Path]
    shards: tuple[str, ...]
    """The packs whose labels are reviewed."""

    @property
    def means_something(self) -> bool:
        """Whether the models are surely better than guessing."""
        low, _ = wilson_interval(self.num_right / max(1, self.num_covered), max(1, self.num_covered))
        return low * self.num_covered > self.num_guessed

    def __str__(self) -> str:
        """Returns what the user reads."""
        agreed = self.num_right / max(1, self.num_covered)
        lines = [
            f"{self.num_covered:,} clips reviewed, {len(self.suspects):,} of them may have a wrong label",
            f"the model agrees with {agreed:.0%} of the labels: the fewer, the less its objections mean",
        ]
        if not self.means_something:
            lines.append(
                f"  that is not surely better than always naming the commonest class ({self.num_guessed:,} of "
                f"{self.num_covered:,}), so the table means nothing yet: train a better model first"
            )
        if self.num_uncovered:
            lines.append(
                f"{self.num_uncovered:,} clips not reviewed: they are in train, so the model has learnt their labels; "
                "a cross-validation over folds covers every clip"
            )
        lines += [f"table: {self.table}", *(f"picture: {path}" for path in self.pictures)]
        if self.suspects and self.means_something:
            lines.append("next: look at the clips, correct the column label, and give the table to the packer:")
            lines += [f"  python -m packer relabel {pack} --labels {self.table}" for pack in self.shards]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Covered:
    """A clip that a model has seen which did not learn from it."""

    run: FinishedRun
    split: str
    sample: int
    row: dict[str, Any]
    label: int
    probabilities_K: NDArray[np.float64]


def review(config: ReviewConfig) -> Review:
    """Reviews the labels of a run, or of a cross-validation, and writes the table and the picture.

    Raises:
        UsageError: The run cannot be found or read, or the table is there with other content.
        OSError: The storage fails.
    """
    folder = find_folder(config.run, config.runs)
    runs = _load(trainings_of(folder) or [folder], config.shards)
    covered = list(_covered(runs).values())
    suspects = _suspects(covered, runs[0].class_names)
    table = resolve(config.out) if config.out else folder / "review.csv"
    _write_table(table, review_table(suspects))
    sources = {source for run in runs for source in _rows(run, None)["source"].to_pylist()}
    return Review(
        suspects=suspects,
        num_covered=len(covered),
        num_right=sum(int(one.probabilities_K.argmax()) == one.label for one in covered),
        num_guessed=max(Counter(one.label for one in covered).values(), default=0),
        num_uncovered=len(sources) - len(covered),
        table=table,
        pictures=_draw(table, folder.name, suspects[: config.shown]),
        shards=tuple(dict.fromkeys(str(run.spec.shards) for run in runs)),
    )


def _write_table(path: Path, text: str) -> None:
    """Writes the table, but never over one that somebody may have corrected by hand."""
    if path.exists() and path.read_bytes() != text.encode():
        raise UsageError(
            f"{path} is there already with other content, perhaps your corrections: rename it, or give another --out"
        )
    with write_atomically(path) as file:
        file.write(text.encode())


def review_table(suspects: Sequence[Suspect]) -> str:
    """Returns the suspects as CSV that the packer reads as labels; it ignores the columns that it does not know.

    A segment's `path` ends with its bounds, as in the pack, so the packer finds it; `start_seconds` and `end_seconds`
    repeat them for people.
    """
    has_segments = any(suspect.covered.row.get("start_seconds") is not None for suspect in suspects)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bounds = ["start_seconds", "end_seconds"] if has_segments else []
    figures = ["predicted", "probability", "probability_of_label", "suspicion"]
    writer.writerow(["path", "label", *figures, "split", *bounds])
    for suspect in suspects:
        row, values = suspect.covered.row, (suspect.probability, suspect.probability_of_label, suspect.suspicion)
        writer.writerow(
            [
                *(row["source"], suspect.label, suspect.predicted, *(f"{value:.4f}" for value in values)),
                *(suspect.covered.split, *(row[name] for name in bounds)),
            ]
        )
    return text.getvalue()


def _load(folders: Sequence[Path], shards: str) -> list[FinishedRun]:
    packs = shards.split(",") if shards else [""] * len(folders)
    if len(packs) != len(folders):
        raise UsageError(
            f"shards ({shards}) names {len(packs)} packs, but there are {len(folders)} trainings: one each"
        )
    return [load_run(folder, pack.strip()) for folder, pack in zip(folders, packs, strict=True)]


def _covered(runs: Sequence[FinishedRun]) -> dict[str, _Covered]:
    """Returns the covered clips by source; one that several trainings cover counts once, in a test split if it can."""
    covered: dict[str, _Covered] = {}
    for split in COVERED:
        for run in runs:
            if split not in run.manifest.splits or not run.manifest.splits[split].num_samples:
                continue
            rows, seen = _rows(run, split).to_pylist(), see_whole_split(run, split)
            for sample, label, probabilities_K in zip(seen.samples, seen.labels, seen.probabilities_BK, strict=True):
                row = rows[sample]
                covered.setdefault(row["source"], _Covered(run, split, int(sample), row, int(label), probabilities_K))
    return covered


def _rows(run: FinishedRun, split: str | None) -> pa.Table:
    return read_samples(run.spec.shards, split, columns=_COLUMNS)


def _suspects(covered: Sequence[_Covered], class_names: tuple[str, ...]) -> list[Suspect]:
    if not covered:
        return []
    labels_N = np.array([one.label for one in covered])
    probabilities_NK = np.stack([one.probabilities_K for one in covered])
    suspected_N, suspicion_N = suspected_classes(probabilities_NK, labels_N), suspicion(probabilities_NK, labels_N)
    suspects = [
        Suspect(
            covered=one,
            label=class_names[one.label],
            predicted=class_names[suspected],
            probability=float(one.probabilities_K[suspected]),
            probability_of_label=float(one.probabilities_K[one.label]),
            suspicion=float(value),
        )
        for one, suspected, value in zip(covered, suspected_N.tolist(), suspicion_N.tolist(), strict=True)
        if suspected >= 0
    ]
    return sorted(suspects, key=lambda suspect: (-suspect.suspicion, suspect.covered.row["source"]))


def _draw(table: Path, name: str, suspects: Sequence[Suspect]) -> list[Path]:
    """Draws the suspects beside the table, and returns the pages' paths."""
    strips = []
    for suspect in suspects:
        covered = suspect.covered
        clips = read_clips(covered.run, covered.split, [covered.sample])
        told = (
            f"label {suspect.label} ({suspect.probability_of_label:.1%}); the model: {suspect.predicted} "
            f"({suspect.probability:.1%})"
        )
        strips += [Strip(told, covered.row["source"], clip) for clip in clips.values()]
    notes = ["In brackets: what the model, which did not learn from these clips, finds probable."]
    pages = draw_strips(f"Labels of run {name} that may be wrong, the most suspicious first", notes, strips)
    paths = []
    for number, page in enumerate(pages, start=1):
        path = table.with_suffix(".png" if number == 1 else f".{number}.png")
        with write_atomically(path) as file:
            file.write(page)
        paths.append(path)
    return paths
