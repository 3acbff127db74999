"""Evaluates a model on a split: each sample exactly once over all ranks."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainer.evaluation.metrics import PREDICTION, TOP_K, Evaluation
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
    """Returns what the model predicts on a split that the ranks share; the same result on every rank.

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
    records, num_bad = [np.empty(0, PREDICTION)], 0
    for batch in on_device(batches, device):
        if stops():
            raise EvaluationStopped
        num_bad += len(batch.errors)
        with autocast(device, autocast_dtype):
            logits_BK = model(batch.clips).float().cpu()
        records.append(_records(logits_BK, batch))
    predictions = ranks.join(np.concatenate(records))
    in_order = predictions[np.argsort(predictions["sample"], kind="stable")]
    return Evaluation(in_order, num_classes, int(ranks.sum([num_bad])[0]))


def _records(logits_BK: Tensor, batch: Batch) -> NDArray[np.void]:
    """Returns the records of a batch's samples, without those of weight 0."""
    real = batch.weights > 0
    logits_BK, labels_B = logits_BK[real], batch.labels[real]
    best = logits_BK.topk(min(TOP_K, logits_BK.shape[1]), dim=1).indices
    records = np.empty(len(labels_B), PREDICTION)
    records["sample"] = [row.index for row, is_real in zip(batch.rows, real.tolist(), strict=True) if is_real]
    records["label"] = labels_B
    records["predicted"] = best[:, 0]
    records["probability"] = logits_BK.softmax(dim=1).amax(dim=1)
    records["loss"] = functional.cross_entropy(logits_BK, labels_B, reduction="none")
    records["in_top_k"] = (best == labels_B[:, None]).any(dim=1)
    return records
