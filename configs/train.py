"""Configuration of the trainer, and `ModelContract`: what a registered model tells the server that loads it."""

import math
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from configs.model import ModelConfig
from configs.section import Section

REGISTERED_MODEL = "clipstream"
CHAMPION = "champion"


class ViewConfig(Section):
    """How a stored frame becomes the square picture that the model sees."""

    short_side_px: int = Field(128, ge=8)
    """Stored frames are brought to this short side first; equal to the packed one, nothing is resized."""
    size_px: int = Field(112, ge=8)
    """Side of the square picture."""
    mode: Literal["crop", "squash"] = "crop"
    """crop: cut the square out (its centre, when evaluating); squash: scale the whole frame to the square."""
    num_frames: int | None = Field(None, ge=1)
    """Frames that the model reads of those packed; unset: all of them. With fewer, training takes one at a random place
    of each of so many equal parts of the clip; evaluation and the server take them equally spaced, as the packer does.
    """

    @model_validator(mode="after")
    def _fits(self) -> "ViewConfig":
        if self.size_px > self.short_side_px:
            raise ValueError(f"size_px ({self.size_px}) must be at most short_side_px ({self.short_side_px})")
        return self

    def num_frames_of(self, num_packed: int) -> int:
        """Returns the number of frames that the model reads of `num_packed`."""
        return self.num_frames or num_packed


class AugmentConfig(Section):
    """What changes a training clip; the same for all frames of a clip, keyed by (seed, epoch, sample)."""

    horizontal_flip: bool = False
    """Mirror half of the clips; leave off where a class has a direction, as in left and right."""
    min_scale: float = Field(1.0, gt=0, le=1)
    """1: a crop of the view's size at a random place. Below 1: a random part of min_scale..1 of the area, resized."""
    brightness: float = Field(0.0, ge=0, lt=1)
    """Brightness is multiplied by a factor of 1 - brightness..1 + brightness; so are contrast and saturation."""
    contrast: float = Field(0.0, ge=0, lt=1)
    """Distance from the clip's mean grey."""
    saturation: float = Field(0.0, ge=0, lt=1)
    """Distance from each pixel's own grey."""
    erasing: float = Field(0.0, ge=0, le=1)
    """Share of clips in which a box, at one place in all frames, is greyed out."""
    mixup: float = Field(0.0, ge=0)
    """Alpha (0.2 to 0.8 are usual) by which each clip is blended with another of the global batch, and their labels in
    the same shares; 0: off. It reads and decodes two clips per row."""
    cutmix: float = Field(0.0, ge=0)
    """The same, where a box of the clip (alpha 1: of any size) shows the other one instead; given both, each clip has
    one of the two."""


class EvaluationConfig(Section):
    """Test-time averaging: a second test, of logits averaged over several views of each clip.

    Its figures are logged apart, as test_tta_top1 and so on: the server shows the model one view, and so does whatever
    chooses a model. It costs a forward pass for each view.
    """

    flip: bool = False
    """Adds the mirror image of each view; leave off where a class has a direction."""
    three_crops: bool = False
    """Adds the squares at both ends of the longer side to the one in the middle; for view.mode crop."""
    num_clips: int = Field(1, ge=1)
    """Times that frames are picked, at other places of each part of the clip; for a view.num_frames below the packed
    ones."""

    @property
    def is_averaged(self) -> bool:
        """Whether there is more than the one view that the server uses."""
        return self.flip or self.three_crops or self.num_clips > 1


class OptimizerConfig(Section):
    """AdamW with linear warm-up and cosine decay to zero."""

    learning_rate: float | None = Field(None, gt=0)
    """Highest learning rate; by default 3e-4 at a global batch of 32, which grows with the batch's square root."""
    weight_decay: float = Field(0.05, ge=0)
    """Decay of matrices and kernels; biases and norms are left alone."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability spread over the other classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class weighs as much as any other, however few its samples."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0: they are left as they are."""
    backbone_factor: float = Field(1.0, gt=0)
    """The backbone's learning rate is this share of the rest's; below 1 keeps more of what its weights know."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Evaluates, chooses and registers a moving average of the weights, which keeps this share at every step, such as
    0.999; 0: the weights themselves."""


class TrainConfig(Section):
    """Everything `python -m trainer` can be told."""

    shards: str = "shards"
    """Folder that the packer wrote, or its address, such as s3://bucket/shards."""
    cache: str | None = None
    """Folder on each machine's own disk where shards at an address are kept once they were read; by default none is."""
    cache_bytes: int = Field(50 * 10**9, ge=1)
    """Most bytes in that folder; the least recently read shards make room for others."""
    shared_filesystem: bool = False
    """Every node of the cluster sees the local paths given here, and MLflow's SQLite store, under the same names."""
    run: str | None = None
    """Name of the run; the name of an unfinished run resumes it. Without one a new name is made."""
    runs: str = "runs"
    """Folder for the checkpoints of all runs."""
    epochs: int = Field(20, ge=1)
    """Passes over the train split."""
    global_batch: int = Field(32, ge=1)
    """Clips per optimizer step over all workers together; any number of workers up to it gives the same batches."""
    micro_batch: int = Field(0, ge=0)
    """Most clips per forward pass and worker, to save memory; gradients are summed, so a step is the same but for what
    batch norm sees at a time. 0: the worker's whole share."""
    patience_epochs: int = Field(0, ge=0)
    """The run ends when its best epoch is this many epochs ago; 0: after `epochs`."""
    num_workers: int | None = Field(None, ge=1)
    """Training workers; by default one per GPU of the cluster, or one CPU worker where there is none."""
    min_workers: int | None = Field(None, ge=1)
    """Fewest workers to train with: the run goes on with less than num_workers when machines leave, and takes them in
    again when they come, each time from the newest checkpoint. By default it waits for all of them."""
    resize_interval_seconds: float = Field(60.0, gt=0)
    """How often a run with min_workers looks whether there is room for more workers; Ray itself notices new machines
    within 20 seconds."""
    threads_per_worker: int | None = Field(None, ge=1)
    """CPU threads of a training worker, by default the machine's cores shared between its workers."""
    loader_workers: int | None = Field(None, ge=0)
    """Processes per training worker that read and decode clips, by default the cores that are left, at most 8; results
    do not depend on it."""
    seed: int = Field(0, ge=0)
    """Seed of the order, the augmentation and the model's first weights."""
    shuffle_block: int = Field(2000, ge=1)
    """Samples move at most about this far from their shard's place in the order: locality against mixing."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """shuffled: an epoch uses each sample exactly once. balanced: it draws every class equally often, so rare classes'
    samples come several times, each time augmented anew, and some of frequent classes not at all; as many in all."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Share of unreadable samples above which the run stops."""
    checkpoint_interval_seconds: float = Field(300.0, gt=0)
    """Work that a kill may cost at most; every epoch ends with a checkpoint too. A storage that fails is tried again
    after as long; only at an epoch's end the training waits for it, and fails after 10 minutes."""
    audit: bool = False
    """Write down which samples each step used, in the run's folder, some 7 bytes per clip; `python -m trainer audit
    RUN` then proves that none came twice or was lost."""
    max_failures: int = Field(3, ge=0)
    """Worker failures after which the run is given up; each one resumes from the newest checkpoint."""
    registered_model: str = REGISTERED_MODEL
    """Name in the MLflow registry; the server's default is the same."""
    experiment: str = "clipstream"
    """MLflow experiment."""
    log_every_steps: int = Field(10, ge=1)
    """Steps between two points of the training curves; each point is the mean over them."""
    select_by: Literal["top1", "macro_f1", "mean_class_accuracy"] = "macro_f1"
    """Val metric by which the best epoch is kept and the champion chosen."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on CUDA, fp32 on CPU. A CPU with AVX512-BF16 or AMX (`lscpu`) takes steps of ResNet-18 1.6
    times as fast in bf16, any other one slower."""
    compile: bool = False
    """Lets torch compile the CNN, which costs half a minute to a minute at the start: for GPUs, where `make bench
    ROWS=gpu` tells after how many steps it pays; on CPUs the steps take longer (ResNet-18, 112 px: 1.05 times)."""
    decode_on: Literal["loader", "device"] = "loader"
    """Where training clips are decoded, cropped and mixed. device: a GPU does it (nvJPEG) whose loader processes cannot
    keep up; the same clips, but for a decoder that rounds otherwise. Evaluation always decodes as the server does."""
    view: ViewConfig = ViewConfig()
    augment: AugmentConfig = AugmentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @property
    def learning_rate(self) -> float:
        """Highest learning rate of the run: as configured, else 3e-4 * sqrt(global_batch / 32).

        Source of the square root: Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient
        Algorithms"; the linear rule of SGD is too much for Adam.
        """
        return self.optimizer.learning_rate or 3e-4 * math.sqrt(self.global_batch / 32)

    @model_validator(mode="after")
    def _is_consistent(self) -> "TrainConfig":
        if self.evaluation.three_crops and self.view.mode == "squash":
            raise ValueError("evaluation.three_crops is for view.mode crop: leave it off, or give that")
        if self.evaluation.num_clips > 1 and self.view.num_frames is None:
            raise ValueError(f"evaluation.num_clips ({self.evaluation.num_clips}) needs a view.num_frames: give 1")
        if self.sampling == self.optimizer.class_weights == "balanced":
            raise ValueError("sampling and optimizer.class_weights (balanced) each even out the classes: give one")
        if self.compile and self.model.batch_norm == "sync":
            raise ValueError(
                "compile cannot see through model.batch_norm (sync): leave it off, or give train or frozen"
            )
        if self.audit and self.sampling == "balanced":
            raise ValueError("audit proves that each sample is used once an epoch, sampling (balanced) does not do so")
        if self.min_workers and self.num_workers and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most num_workers ({self.num_workers})")
        return self


class CvConfig(TrainConfig):
    """Everything `python -m trainer cv` can be told: a training and, in `shards`, the packs to repeat it on."""

    shards: str = "shards-1,shards-2,shards-3"
    """Folders or addresses of the packs, with commas between them: one for each split or fold of the same videos."""

    def folds(self) -> list[TrainConfig]:
        """Returns the training of each pack; the runs are called `<run>-1`, `<run>-2` and so on."""
        packs = [pack.strip() for pack in self.shards.split(",")]
        values = self.model_dump()
        return [
            TrainConfig(**values | {"shards": pack, "run": self.run and f"{self.run}-{number}"})
            for number, pack in enumerate(packs, start=1)
        ]


class PromoteConfig(Section):
    """What `python -m trainer promote` can be told."""

    registered_model: str = REGISTERED_MODEL
    """Name in the MLflow registry."""


class AuditConfig(Section):
    """What `python -m trainer audit` can be told."""

    run: CliPositionalArg[str] = Field(description="Name of the run")
    runs: str = "runs"
    """Folder of all runs."""
