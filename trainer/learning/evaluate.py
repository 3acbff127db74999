"""Evaluates a model on a split: each sample exactly once over all ranks."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainer.evaluation.metrics import MAX_PROBABILITIES, PREDICTION, TOP_K, Evaluation
from trainer.learning.learner import autocast
from trainer.learning.ranks import Ranks
from trainer.stream.batch import Batch
from trainer.stream.prefetch import on_device


class EvaluationStopped(BaseException):
    """The user asked to stop. Not an Exception, so that no library on the way handles it as an error of its own."""


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    num_classes: int,
    ranks: Ranks,
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
    stops: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Returns what the model predicts on a split that the ranks share; the same on every rank.

    Only rank 0, which makes the run's tables of it, gets the probability of each class.

    Args:
        model: In evaluation mode and without DDP, which would wait for other ranks in its forward pass.
        batches: This rank's part of the split.
        num_classes: K.
        ranks: The processes that share the split.
        device: Where the model is.
        autocast_dtype: Precision of the forward passes; None: float32.
        stops: Asked before every batch whether to stop; the same answer on every rank.

    Raises:
        EvaluationStopped: It is to stop; on every rank.
    """
    records, kept = [np.empty(0, PREDICTION)], [np.empty((0, num_classes), np.float32)]
    num_samples = num_bad = 0
    for batch in on_device(batches, device):
        if stops():
            raise EvaluationStopped
        num_bad += len(batch.errors)
        with autocast(device, autocast_dtype):
            logits_BK = model(batch.clips).float().cpu()
        real = batch.weights > 0  # the others fill the batch, or could not be read
        samples = [row.index for row, is_real in zip(batch.rows, real.tolist(), strict=True) if is_real]
        probabilities_BK = logits_BK[real].softmax(dim=1)
        records.append(_records(logits_BK[real], probabilities_BK, batch.labels[real], samples))
        num_samples += len(samples)
        if num_samples * num_classes <= MAX_PROBABILITIES:
            kept.append(probabilities_BK.numpy())
        else:
            del kept[1:]
    predictions = ranks.join(np.concatenate(records))
    order = np.argsort(predictions["sample"], kind="stable")
    probabilities = None
    if len(predictions) * num_classes <= MAX_PROBABILITIES:  # then no rank had more either
        joined = ranks.join(np.concatenate(kept))
        probabilities = joined[order] if ranks.rank == 0 else None
    return Evaluation(predictions[order], num_classes, int(ranks.sum([num_bad])[0]), probabilities)


def _records(logits_BK: Tensor, probabilities_BK: Tensor, labels_B: Tensor, samples: Sequence[int]) -> NDArray[np.void]:
    """Returns the records of samples, whose numbers in the split's index are `samples`."""
    best = logits_BK.topk(min(TOP_K, logits_BK.shape[1]), dim=1).indices
    records = np.empty(len(labels_B), PREDICTION)
    records["sample"] = samples
    records["label"] = labels_B
    records["predicted"] = best[:, 0]
    records["probability"] = probabilities_BK.amax(dim=1)
    records["loss"] = functional.cross_entropy(logits_BK, labels_B, reduction="none")
    records["in_top_k"] = (best == labels_B[:, None]).any(dim=1)
    return records
