"""Builds the parts of a training from a run's spec or configuration: model, learner, loaders, log, checkpoints."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from configs.train import TrainConfig
from packer.shards.manifest import Manifest
from trainer.learning.learner import Learner, Loss, make_optimizer
from trainer.learning.ranks import Ranks
from trainer.model.weight_average import WeightAverage
from trainer.schedule.order import Shuffle
from trainer.schedule.schedule import Schedule
from trainer.stream.batch import Batch
from trainer.stream.cache import ShardCache
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader
from trainer.views.eval_view import EvalView
from trainer.views.frames import RandomFrames, eval_frames, spread_frames
from trainer.views.mixing import Mixing
from trainer.views.test_time import NUM_CROPS, Crops
from trainer.views.train_view import TrainView
from trainer.worker.checkpoint import CheckpointStore
from trainer.worker.cores import num_loader_workers
from trainer.worker.spec import JobSpec

if TYPE_CHECKING:
    from trainer.model.cnn_rnn import CnnRnn
    from trainer.tracking.run_log import Point, RunLog


def open_checkpoints(spec: JobSpec) -> CheckpointStore:
    """Returns the run's checkpoints, as this start of the command holds them."""
    return CheckpointStore(spec.checkpoint_folder, spec.holder)


def open_index(spec: JobSpec, split: str) -> SampleIndex:
    """Returns the index of a split, which reads through the cache if one is configured."""
    config = spec.config
    cache = ShardCache(Path(config.cache), config.cache_bytes) if config.cache else None
    return SampleIndex.open(spec.shards, split, cache)


def open_log(spec: JobSpec, undelivered: "Sequence[Point]") -> "RunLog":
    """Returns the log to which rank 0 writes the run's curves.

    Args:
        spec: The run.
        undelivered: The checkpoint's points that had not arrived when it was written; they are logged first.
    """
    from trainer.tracking.run_log import RunLog  # here, not above: it imports MLflow, which other ranks do without

    return RunLog(spec.tracking_uri, spec.run_id, undelivered, open_checkpoints(spec).is_superseded)


def make_model(spec: JobSpec, manifest: Manifest) -> "CnnRnn":
    """Returns the model with its first weights, the same on every rank."""
    from trainer.model.cnn_rnn import CnnRnn  # here, not above: it imports torchvision while the loaders start

    config = spec.config
    torch.manual_seed(config.seed)
    num_frames = config.view.num_frames_of(manifest.clip.num_frames)
    model = CnnRnn(config.model, len(manifest.class_names), num_frames)
    if spec.weights_file.exists():
        model.backbone.load_state_dict(torch.load(spec.weights_file, map_location="cpu", weights_only=True))
    return model


def make_learner(config: TrainConfig, model: "CnnRnn", labels: NDArray[np.int64], ranks: Ranks) -> Learner:
    """Returns the learner of a model; with several ranks, the caller still has to `distribute` the model.

    Args:
        config: Of the run.
        model: On its device already.
        labels: `(N,)` class of each sample of the train split, which the class weights are computed from.
        ranks: The processes of the run.
    """
    optimizer = config.optimizer
    device = next(model.parameters()).device
    if config.model.batch_norm == "sync" and ranks.world_size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if config.compile:
        model.compiled()
    class_weights = None
    if optimizer.class_weights == "balanced":
        class_weights = balanced_class_weights(labels, model.head.out_features).to(device)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return Learner(
        model=model,
        optimizer=make_optimizer(model, optimizer.weight_decay, optimizer.backbone_factor),
        loss=Loss(class_weights, optimizer.label_smoothing),
        ranks=ranks,
        device=device,
        micro_batch=config.micro_batch,
        max_grad_norm=optimizer.max_grad_norm or math.inf,
        autocast_dtype=torch.bfloat16 if bf16 else None,
        average=WeightAverage(model, optimizer.ema_decay) if optimizer.ema_decay else None,
    )


def balanced_class_weights(labels: NDArray[np.int64], num_classes: int) -> torch.Tensor:
    """Returns `(K,) float32` weights with which every class counts the same: N / (K * samples of the class).

    With labels (0, 0, 0, 1) they are 2/3 and 2.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = counts.sum() / (num_classes * counts.clip(min=1))
    return torch.tensor(weights, dtype=torch.float32)


def train_loader(
    config: TrainConfig, index: SampleIndex, start: int, ranks: Ranks, device: torch.device
) -> tuple[Schedule, Iterable[Batch]]:
    """Returns the schedule from position `start` to the last epoch, and this rank's batches.

    Args:
        config: Of the run.
        index: Of the train split.
        start: Position of the first sample.
        ranks: The processes that share each batch.
        device: Decodes the clips if `decode_on` is `device`.
    """
    shuffle = Shuffle(config.seed, config.shuffle_block)
    labels = index.labels if config.sampling == "balanced" else None
    schedule = Schedule(index.shard_sizes, config.global_batch, config.epochs, start, shuffle, labels)
    mixing = Mixing(config.augment.mixup, config.augment.cutmix, config.seed)
    loader = make_loader(
        index,
        schedule,
        TrainView(config.view, config.augment, config.seed),
        config.view.size_px,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=num_loader_workers(config.loader_workers, ranks.num_local),
        pin_memory=torch.cuda.is_available(),
        frames=RandomFrames(index.num_frames, config.view.num_frames_of(index.num_frames), config.seed),
        mixing=mixing if mixing.mixup or mixing.cutmix else None,
        decode_on=device if config.decode_on == "device" else None,
    )
    return schedule, loader


def eval_loader(
    spec: JobSpec, split: str, ranks: Ranks, samples: Sequence[int] | None = None, *, averaged: bool = False
) -> Iterable[Batch]:
    """Returns this rank's batches of a split; over all ranks each sample comes once.

    Args:
        spec: The run.
        split: Name of the split.
        ranks: The processes that share it.
        samples: Only these samples of the split; None: all.
        averaged: Whether a clip holds the frames of all views of test-time averaging, one view after another.
    """
    config = spec.config
    index = open_index(spec, split)
    if samples is not None:
        index = index.take(samples)
    num_read = config.view.num_frames_of(index.num_frames)
    num_clips = config.evaluation.num_clips if averaged else 1
    three_crops = averaged and config.evaluation.three_crops
    return make_loader(
        index,
        Schedule(index.shard_sizes, config.global_batch),
        Crops(config.view) if three_crops else EvalView(config.view),
        config.view.size_px,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=num_loader_workers(config.loader_workers, ranks.num_local),
        pin_memory=torch.cuda.is_available(),
        frames=spread_frames(index.num_frames, num_read, num_clips)
        if num_clips > 1
        else eval_frames(index.num_frames, num_read),
        views_per_frame=NUM_CROPS if three_crops else 1,
    )
