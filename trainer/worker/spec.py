"""What a run is made of on one rank: its paths and configuration, and the parts that are built from them."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from configs.train import TrainConfig
from packer.shards.manifest import Manifest
from packer.storage.location import Location
from trainer.learning.learner import Learner, Loss, make_optimizer
from trainer.learning.ranks import Ranks
from trainer.model.weight_average import WeightAverage
from trainer.schedule.order import Shuffle
from trainer.schedule.schedule import Schedule
from trainer.stream.batch import Batch
from trainer.stream.cache import ShardCache
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader, start_forkserver
from trainer.stream.stages import View
from trainer.views.eval_view import EvalView
from trainer.views.frames import Frames, RandomFrames, eval_frames, spread_frames
from trainer.views.mixing import Mixing
from trainer.views.test_time import NUM_CROPS, Crops
from trainer.views.train_view import TrainView
from trainer.worker.audit import AUDIT_FOLDER
from trainer.worker.checkpoint import CheckpointStore

if TYPE_CHECKING:
    from trainer.model.cnn_rnn import CnnRnn
    from trainer.tracking.run_log import Point, RunLog

STOP_FILE = "STOP"
WEIGHTS_FILE = "backbone.pt"
MAX_LOADER_WORKERS = 8


@dataclass(frozen=True)
class JobSpec:
    """What the driver tells every worker; all paths are absolute, since workers run in a folder of Ray's."""

    config: TrainConfig
    shards: Location
    run_folder: Path
    run_id: str
    tracking_uri: str
    num_workers: int
    """Training workers, the most that there may be in an elastic run."""
    holder: str = ""
    """Name of this start of the command, by which its workers hold the run's checkpoints."""

    @property
    def worker_range(self) -> int | tuple[int, int]:
        """Training workers as Ray Train wants them: their number, or the fewest and the most of an elastic run."""
        fewest = self.config.min_workers
        return (fewest, max(fewest, self.num_workers)) if fewest else self.num_workers

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(self.run_folder / "checkpoints", self.holder)

    @property
    def audit_folder(self) -> Path:
        """Where the workers write down which samples each step used."""
        return self.run_folder / AUDIT_FOLDER

    @property
    def stop_file(self) -> Path:
        """The file by which the driver asks the workers to write a checkpoint and return."""
        return self.run_folder / STOP_FILE

    @property
    def weights_file(self) -> Path:
        """The backbone's first weights, put there by the driver; absent for random ones."""
        return self.run_folder / WEIGHTS_FILE

    def num_threads(self, num_local: int) -> int:
        """Returns a worker's CPU threads: as configured, else the cores divided among its machine's workers."""
        return self.config.threads_per_worker or max(1, _num_cores() // num_local)

    def num_loader_workers(self, num_local: int) -> int:
        """Returns a worker's loader processes: as configured, else the cores that `num_local` workers leave."""
        if self.config.loader_workers is not None:
            return self.config.loader_workers
        return max(0, min(MAX_LOADER_WORKERS, _num_cores() // num_local - 1))

    def start_loaders(self, num_local: int) -> None:
        """Starts what loader processes come from, which imports torch, while this process does something else."""
        if self.num_loader_workers(num_local):
            start_forkserver()

    def make_model(self, manifest: Manifest) -> "CnnRnn":
        """Returns the model with its first weights, the same on every rank."""
        from trainer.model.cnn_rnn import (
            CnnRnn,  # here, not above: torchvision takes more than a second, see `start_loaders`
        )

        torch.manual_seed(self.config.seed)
        model = CnnRnn(
            self.config.model, len(manifest.class_names), self.config.view.num_frames_of(manifest.clip.num_frames)
        )
        if self.weights_file.exists():
            model.backbone.load_state_dict(torch.load(self.weights_file, map_location="cpu", weights_only=True))
        return model

    def make_learner(self, model: "CnnRnn", index: SampleIndex, num_classes: int, ranks: Ranks) -> Learner:
        """Returns the learner of a model that is on its device already; several ranks must yet `distribute` it."""
        config = self.config.optimizer
        device = next(model.parameters()).device
        if self.config.model.batch_norm == "sync" and ranks.world_size > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if self.config.compile:
            model.compiled()
        bf16 = self.config.precision == "bf16" or (self.config.precision == "auto" and device.type == "cuda")
        return Learner(
            model=model,
            optimizer=make_optimizer(model, config),
            loss=Loss(self._class_weights(index, num_classes, device), config.label_smoothing),
            ranks=ranks,
            device=device,
            micro_batch=self.config.micro_batch,
            max_grad_norm=config.max_grad_norm or math.inf,
            autocast_dtype=torch.bfloat16 if bf16 else None,
            average=WeightAverage(model, config.ema_decay) if config.ema_decay else None,
        )

    def open_log(self, undelivered: "Sequence[Point]") -> "RunLog":
        """Returns what rank 0 logs the run's points by, those of the checkpoint first that had not arrived."""
        from trainer.tracking.run_log import (
            RunLog,  # here, not above: MLflow takes a second, and other ranks do without
        )

        return RunLog(self.tracking_uri, self.run_id, undelivered, self.checkpoints.is_superseded)

    def open_index(self, split: str) -> SampleIndex:
        """Returns the index of a split, which reads through the cache if one is configured."""
        cache = ShardCache(Path(self.config.cache), self.config.cache_bytes) if self.config.cache else None
        return SampleIndex.open(self.shards, split, cache)

    def train_loader(
        self, index: SampleIndex, start: int, ranks: Ranks, device: torch.device
    ) -> tuple[Schedule, Iterable[Batch]]:
        """Returns the schedule from position `start` to the last epoch, and the batches of this rank's part of it.

        Args:
            index: Of the train split.
            start: Position of the first sample.
            ranks: The processes that share each batch.
            device: What decodes the clips, where that is configured.
        """
        config = self.config
        shuffle = Shuffle(config.seed, config.shuffle_block)
        labels = index.labels if config.sampling == "balanced" else None
        schedule = Schedule(index.shard_sizes, config.global_batch, config.epochs, start, shuffle, labels)
        num_read = config.view.num_frames_of(index.num_frames)
        frames = RandomFrames(index.num_frames, num_read, config.seed)
        view = TrainView(config.view, config.augment, config.seed)
        mixing = Mixing(config.augment.mixup, config.augment.cutmix, config.seed)
        is_mixed = mixing.mixup or mixing.cutmix
        decode_on = device if config.decode_on == "device" else None
        loader = self._loader(
            index, schedule, view, frames, ranks, mixing=mixing if is_mixed else None, decode_on=decode_on
        )
        return schedule, loader

    def eval_loader(
        self, split: str, ranks: Ranks, samples: Sequence[int] | None = None, averaged: bool = False
    ) -> Iterable[Batch]:
        """Returns the loader of this rank's part of a split, each sample once.

        Args:
            split: Name of the split.
            ranks: The processes that share it.
            samples: Of the split, these alone.
            averaged: Gives the views of test-time averaging, one after another in the clip's frames.
        """
        view, evaluation = self.config.view, self.config.evaluation
        index = self.open_index(split)
        if samples is not None:
            index = index.take(samples)
        schedule = Schedule(index.shard_sizes, self.config.global_batch)
        num_read = view.num_frames_of(index.num_frames)
        frames = eval_frames(index.num_frames, num_read)
        if averaged and evaluation.num_clips > 1:
            frames = spread_frames(index.num_frames, num_read, evaluation.num_clips)
        if averaged and evaluation.three_crops:
            return self._loader(index, schedule, Crops(view), frames, ranks, views_per_frame=NUM_CROPS)
        return self._loader(index, schedule, EvalView(view), frames, ranks)

    def _loader(
        self,
        index: SampleIndex,
        schedule: Schedule,
        view: View,
        frames: Frames,
        ranks: Ranks,
        views_per_frame: int = 1,
        mixing: Mixing | None = None,
        decode_on: torch.device | None = None,
    ) -> Iterable[Batch]:
        return make_loader(
            index,
            schedule,
            view,
            self.config.view.size_px,
            rank=ranks.rank,
            world_size=ranks.world_size,
            num_workers=self.num_loader_workers(ranks.num_local),
            pin_memory=torch.cuda.is_available(),
            frames=frames,
            views_per_frame=views_per_frame,
            mixing=mixing,
            decode_on=decode_on,
        )

    def _class_weights(self, index: SampleIndex, num_classes: int, device: torch.device) -> torch.Tensor | None:
        if self.config.optimizer.class_weights == "none":
            return None
        counts = np.bincount(index.labels, minlength=num_classes)
        weights = counts.sum() / (num_classes * counts.clip(min=1))
        return torch.tensor(weights, dtype=torch.float32, device=device)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
