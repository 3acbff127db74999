"""What a run is made of on one rank: its paths and configuration, and the parts that are built from them."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from configs.train import TrainConfig
from packer.manifest import Manifest
from packer.storage import Location
from trainer.augment import EvalView, TrainView
from trainer.cache import ShardCache
from trainer.checkpoint import CheckpointStore
from trainer.index import SampleIndex
from trainer.loop import Learner, Loss, Ranks, make_optimizer
from trainer.model import CnnRnn
from trainer.schedule import Schedule, Shuffle
from trainer.stream import Batch, View, make_loader

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
    """Training workers; also counted as sharing one machine's cores."""

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(self.run_folder / "checkpoints")

    @property
    def stop_file(self) -> Path:
        """The file by which the driver asks the workers to write a checkpoint and return."""
        return self.run_folder / STOP_FILE

    @property
    def weights_file(self) -> Path:
        """The backbone's first weights, put there by the driver; absent for random ones."""
        return self.run_folder / WEIGHTS_FILE

    @property
    def num_threads(self) -> int:
        """CPU threads of a worker: as configured, else the cores of one machine divided among the workers."""
        return self.config.threads_per_worker or max(1, _num_cores() // self.num_workers)

    @property
    def num_loader_workers(self) -> int:
        """Loader processes of a worker: as configured, else the cores that are left."""
        if self.config.loader_workers is not None:
            return self.config.loader_workers
        return max(0, min(MAX_LOADER_WORKERS, _num_cores() // self.num_workers - 1))

    def make_model(self, manifest: Manifest) -> CnnRnn:
        """Returns the model with its first weights, the same on every rank."""
        torch.manual_seed(self.config.seed)
        model = CnnRnn(self.config.model, len(manifest.class_names), manifest.clip.num_frames)
        if self.weights_file.exists():
            model.backbone.load_state_dict(torch.load(self.weights_file, map_location="cpu", weights_only=True))
        return model

    def make_learner(self, model: nn.Module, index: SampleIndex, num_classes: int, ranks: Ranks) -> Learner:
        """Returns the learner of a model that is on its device already."""
        config = self.config.optimizer
        device = next(model.parameters()).device
        bf16 = self.config.precision == "bf16" or (self.config.precision == "auto" and device.type == "cuda")
        return Learner(
            # Buffers are shared where they are used, not at every step.
            model=DistributedDataParallel(model, forward_sync_buffers=False) if ranks.world_size > 1 else model,
            optimizer=make_optimizer(model, config),
            loss=Loss(self._class_weights(index, num_classes, device), config.label_smoothing),
            ranks=ranks,
            device=device,
            micro_batch=self.config.micro_batch,
            max_grad_norm=config.max_grad_norm,
            autocast_dtype=torch.bfloat16 if bf16 else None,
        )

    def open_index(self, split: str) -> SampleIndex:
        """Returns the index of a split, which reads through the cache if one is configured."""
        cache = ShardCache(Path(self.config.cache), self.config.cache_bytes) if self.config.cache else None
        return SampleIndex.open(self.shards, split, cache)

    def train_loader(self, index: SampleIndex, start: int, ranks: Ranks) -> "tuple[Schedule, DataLoader[Batch]]":
        """Returns the schedule from position `start` to the last epoch, and the loader of this rank's part of it."""
        config = self.config
        shuffle = Shuffle(config.seed, config.shuffle_block)
        schedule = Schedule(index.shard_sizes, config.global_batch, config.epochs, start, shuffle)
        return schedule, self._loader(index, schedule, TrainView(config.view, config.augment, config.seed), ranks)

    def eval_loader(self, split: str, ranks: Ranks) -> "DataLoader[Batch]":
        """Returns the loader of this rank's part of a split, each sample once."""
        index = self.open_index(split)
        schedule = Schedule(index.shard_sizes, self.config.global_batch)
        return self._loader(index, schedule, EvalView(self.config.view), ranks)

    def _loader(self, index: SampleIndex, schedule: Schedule, view: View, ranks: Ranks) -> "DataLoader[Batch]":
        return make_loader(
            index,
            schedule,
            view,
            self.config.view.size_px,
            rank=ranks.rank,
            world_size=ranks.world_size,
            num_workers=self.num_loader_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _class_weights(self, index: SampleIndex, num_classes: int, device: torch.device) -> torch.Tensor | None:
        if self.config.optimizer.class_weights == "none":
            return None
        counts = np.bincount(index.labels, minlength=num_classes)
        weights = counts.sum() / (num_classes * counts.clip(min=1))
        return torch.tensor(weights, dtype=torch.float32, device=device)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
