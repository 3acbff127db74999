"""The train clips that a model finds most alike: those whose features point in the most similar direction.

The features of the train split are kept in the run's folder, under a name that holds the digests of weights and pack,
because one pass over the split can take minutes and every later question takes none. They are written and read in
pieces, so memory does not grow with the split.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from configs.section import UsageError
from packer.shards.manifest import read_samples
from trainer.explain.finished_run import FinishedRun
from trainer.explain.passes import read_clips, see_split

FOLDER = "explain"
"""Within the run's folder."""
ROWS_AT_ONCE = 65_536
_FEATURES = "train-features-"


@dataclass(frozen=True)
class Neighbour:
    """A train clip that the model finds alike."""

    source: str
    label: int
    """Class index."""
    similarity: float
    """Cosine of the angle between the features, -1 to 1."""
    frames: NDArray[np.uint8]
    """`(T, S, S, 3) uint8 RGB`, as the model sees it."""


def find_neighbours(
    run: FinishedRun, features_QD: NDArray[np.float32], own: list[int], num_nearest: int
) -> list[list[Neighbour]]:
    """Returns, for each clip that is asked about, its nearest train clips, the nearest first.

    Args:
        run: Whose model decides what is alike.
        features_QD: Features of the clips that are asked about.
        own: Number of each of these clips in the train split, which is not its own neighbour; -1: it is elsewhere.
        num_nearest: How many neighbours each clip gets.

    Raises:
        UsageError: The run's folder cannot be written.
    """
    if not num_nearest:
        return [[] for _ in own]
    similarities_QN = _similarities(_train_features(run), _directions(features_QD))
    chosen: list[list[int]] = []
    for similarities_N, own_sample in zip(similarities_QN, own, strict=True):
        order = np.argsort(-similarities_N, kind="stable")[: num_nearest + 1]
        chosen.append([int(sample) for sample in order if sample != own_sample][:num_nearest])
    wanted = sorted({sample for samples in chosen for sample in samples})
    rows = read_samples(run.spec.shards, "train", columns=["source", "class_index"]).take(wanted).to_pylist()
    row_of = dict(zip(wanted, rows, strict=True))
    clip_of = read_clips(run, "train", wanted)
    return [
        [
            Neighbour(row_of[sample]["source"], row_of[sample]["class_index"], float(value), clip_of[sample])
            for sample, value in ((sample, similarities_N[sample]) for sample in samples)
            if sample in clip_of
        ]
        for samples, similarities_N in zip(chosen, similarities_QN, strict=True)
    ]


def _similarities(train_ND: NDArray[np.float16], asked_QD: NDArray[np.float32]) -> NDArray[np.float32]:
    found = np.empty((len(asked_QD), len(train_ND)), np.float32)
    for start in range(0, len(train_ND), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        found[:, rows] = asked_QD @ train_ND[rows].astype(np.float32).T
    return found


def _train_features(run: FinishedRun) -> NDArray[np.float16]:
    """Returns the directions of the train split's features, `(N, D)`; a sample that cannot be read has 0 everywhere."""
    name = hashlib.sha256(f"{run.weights_sha256} {run.manifest_sha256}".encode()).hexdigest()[:16]
    path = run.spec.run_folder / FOLDER / f"{_FEATURES}{name}.npy"
    try:
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            _write_features(run, path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): make room, or give --nearest 0 to do without neighbours"
        ) from error
    features: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return features


def _write_features(run: FinishedRun, path: Path) -> None:
    shape = (run.manifest.splits["train"].num_samples, run.model.head.in_features)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        written = Path(folder) / path.name
        features_ND = open_memmap(written, "w+", np.float16, shape)
        for seen in see_split(run, "train"):
            features_ND[seen.samples] = _directions(seen.features_BD)
        features_ND.flush()
        for earlier in path.parent.glob(f"{_FEATURES}*"):  # of a model that is no longer the run's best
            earlier.unlink()
        written.rename(path)


def _directions(features_BD: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_B1 = np.linalg.norm(features_BD, axis=1, keepdims=True).astype(np.float32)
    lengths_B1[lengths_B1 == 0] = 1
    directions_BD: NDArray[np.float32] = features_BD / lengths_B1
    return directions_BD
