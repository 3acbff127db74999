"""Shows a finished run's model clips, as evaluation does: one, some of a split, or each of a split once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packer.progress import Progress
from trainer.explain.finished_run import FinishedRun
from trainer.learning.ranks import Ranks
from trainer.stream.batch import Batch
from trainer.worker.parts import eval_loader

FEW_SAMPLES = 512
"""Up to so many samples are read by this process: a loader process takes seconds to start."""


@dataclass(frozen=True)
class Seen:
    """What the model made of some clips."""

    samples: NDArray[np.int64]
    """`(B,)` their numbers in the split's index."""
    labels: NDArray[np.int64]
    """`(B,)` their class indices."""
    features_BD: NDArray[np.float32]
    """What the classifier sees of them."""
    probabilities_BK: NDArray[np.float64]
    """Each row sums to 1."""


def see_clip(run: FinishedRun, clip: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Returns features `(D,)` and probabilities `(K,)` of one clip, `(T, S, S, 3) uint8 RGB` as the model sees it."""
    features_BD, probabilities_BK = _see(run, torch.from_numpy(clip)[None].permute(0, 1, 4, 2, 3))
    return features_BD[0], probabilities_BK[0]


def see_split(run: FinishedRun, split: str) -> Iterator[Seen]:
    """Yields what the model makes of the samples of a split in the order of its index, without unreadable ones."""
    num_samples = run.manifest.splits[split].num_samples
    few = {"loader_workers": 0} if num_samples <= FEW_SAMPLES else {}
    spec = replace(run.spec, config=run.spec.config.model_copy(update=few))
    with Progress(num_samples, "clip", f"read {split}") as progress:
        for batch in eval_loader(spec, split, Ranks()):
            real = batch.weights > 0
            samples = _samples(batch)
            yield Seen(samples, batch.labels[real].numpy(), *_see(run, batch.clips[real]))
            progress.update(len(samples))


def see_whole_split(run: FinishedRun, split: str) -> Seen:
    """Returns what the model makes of all samples of a split that can be read, without their features."""
    parts = [(seen.samples, seen.labels, seen.probabilities_BK) for seen in see_split(run, split)]
    samples, labels, probabilities_BK = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Seen(samples, labels, np.empty((len(samples), 0), np.float32), probabilities_BK)


def read_clips(run: FinishedRun, split: str, samples: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """Returns the clips of some samples of a split, `(T, S, S, 3) uint8 RGB`, by number; unreadable ones are left out.

    Args:
        run: Whose model sees them.
        split: Name of the split.
        samples: Numbers in the split's index.
    """
    if not samples:
        return {}
    config = run.spec.config.model_copy(update={"global_batch": len(samples), "loader_workers": 0})
    (batch,) = eval_loader(replace(run.spec, config=config), split, Ranks(), samples)
    clips = batch.clips.permute(0, 1, 3, 4, 2).numpy()
    return {
        sample: clip for sample, clip, weight in zip(samples, clips, batch.weights.tolist(), strict=True) if weight > 0
    }


@torch.no_grad()
def _see(run: FinishedRun, clips_BTCHW: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    features_BD = run.model.embed(clips_BTCHW)
    logits_BK = run.model.head(features_BD)
    return features_BD.float().numpy(), logits_BK.double().softmax(dim=1).numpy()


def _samples(batch: Batch) -> NDArray[np.int64]:
    """Returns the numbers of a batch's samples, without padding and what could not be read."""
    return np.array([row.index for row, weight in zip(batch.rows, batch.weights.tolist(), strict=True) if weight > 0])
