"""Configuration of the trainer: training, cross-validation, promotion, MLflow's page and audit."""

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
    """Stored frames are first resized to this short side; if they were packed at it, nothing is resized."""
    size_px: int = Field(112, ge=8)
    """Side of the square picture that is cut out of the resized frame."""
    mode: Literal["crop", "squash"] = "crop"
    """crop: cut the square out (the centre, in evaluation); squash: scale the whole frame to the square."""
    num_frames: int | None = Field(None, ge=1)
    """Frames of a packed clip that the model reads; by default all. If fewer, training divides the clip into as many
    equal parts and takes one frame at a random place of each; evaluation and the server take equally spaced ones, as
    the packer does."""

    @model_validator(mode="after")
    def _fits(self) -> "ViewConfig":
        if self.size_px > self.short_side_px:
            raise ValueError(f"size_px ({self.size_px}) must be at most short_side_px ({self.short_side_px})")
        return self

    def num_frames_of(self, num_packed: int) -> int:
        """Returns the number of frames that the model reads of `num_packed`."""
        return self.num_frames or num_packed


class AugmentConfig(Section):
    """Random changes of training clips, the same for all frames of a clip; a function of seed, epoch and sample."""

    horizontal_flip: bool = False
    """Mirror half of the clips. Leave it off if a class has a direction, such as left and right."""
    min_scale: float = Field(1.0, gt=0, le=1)
    """1: crop the view's size at a random place. Below 1: crop a random part of the area, min_scale to 1, and resize
    it."""
    brightness: float = Field(0.0, ge=0, lt=1)
    """Multiply the brightness by a random factor between 1 - brightness and 1 + brightness."""
    contrast: float = Field(0.0, ge=0, lt=1)
    """The same for the contrast, the distance from the clip's mean grey."""
    saturation: float = Field(0.0, ge=0, lt=1)
    """The same for the saturation, the distance from each pixel's own grey."""
    erasing: float = Field(0.0, ge=0, le=1)
    """Share of clips in which a random box, at the same place in all frames, is greyed out."""
    mixup: float = Field(0.0, ge=0)
    """Blend each clip, and its label in the same shares, with another clip of the global batch. The value is alpha of
    the beta distribution that the shares are drawn from; 0.2 to 0.8 are usual; 0: off. It decodes two clips per row."""
    cutmix: float = Field(0.0, ge=0)
    """The same with a box of the clip that shows the other clip; with alpha 1 any size of box is as likely. If mixup
    and cutmix are both given, each clip gets one of the two."""


class EvaluationConfig(Section):
    """Test-time averaging: a second test, with logits averaged over several views of each clip.

    Its figures are logged separately, as test_tta_top1 and so on, because the server gives the model one view, as does
    the evaluation that the best epoch and the champion are chosen by. It costs a forward pass for each view.
    """

    flip: bool = False
    """Add the mirror image of each view. Leave it off if a class has a direction."""
    three_crops: bool = False
    """Add the squares at both ends of the longer side to the one in the middle; needs view.mode crop."""
    num_clips: int = Field(1, ge=1)
    """How many times frames are picked from each clip, each time at other places; needs a view.num_frames that is less
    than the packed frames."""

    @property
    def is_averaged(self) -> bool:
        """Whether there are more views than the one that the server uses."""
        return self.flip or self.three_crops or self.num_clips > 1


class OptimizerConfig(Section):
    """AdamW with linear warm-up and cosine decay to zero."""

    learning_rate: float | None = Field(None, gt=0)
    """Highest learning rate; by default 3e-4 * sqrt(global_batch / 32)."""
    weight_decay: float = Field(0.05, ge=0)
    """Decay of matrices and kernels; biases and norms are not decayed."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the label's probability that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class counts the same in the loss, however few samples it has."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Scale gradients down to this norm; 0: never."""
    backbone_factor: float = Field(1.0, gt=0)
    """The backbone's learning rate as a share of the other layers'; below 1 keeps more of what it was pretrained to
    do."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Evaluate and register a moving average of the weights that keeps this share of itself at every step, such as
    0.999; 0: the weights themselves."""


class TrainConfig(Section):
    """All options of `python -m trainer`."""

    shards: str = "shards"
    """Folder that the packer wrote, or its address, such as s3://bucket/shards."""
    cache: str | None = None
    """Folder on each machine's own disk that keeps the shards read from an address; by default none are kept."""
    cache_bytes: int = Field(50 * 10**9, ge=1)
    """Size limit of that folder; the least recently read shards are deleted first."""
    shared_filesystem: bool = False
    """State that every node of the cluster sees the local paths given here, and MLflow's SQLite store, under the same
    names."""
    run: str | None = None
    """Name of the run; the name of an unfinished run resumes it. By default a new name."""
    runs: str = "runs"
    """Folder for the checkpoints of all runs."""
    epochs: int = Field(20, ge=1)
    """Passes over the train split."""
    global_batch: int = Field(32, ge=1)
    """Clips per optimizer step, over all workers together. The batches do not depend on the number of workers, which
    may be at most as high."""
    micro_batch: int = Field(0, ge=0)
    """Most clips per forward pass of a worker, to save memory. Gradients are summed, so only batch norm, which sees
    fewer clips at a time, changes the step. 0: no limit."""
    patience_epochs: int = Field(0, ge=0)
    """End the run if its best epoch was this many epochs ago; 0: train all `epochs`."""
    num_workers: int | None = Field(None, ge=1)
    """Training workers; by default one per GPU of the cluster, or one on the CPU if there is no GPU."""
    min_workers: int | None = Field(None, ge=1)
    """Fewest workers to train with. If machines leave, the run goes on with fewer than num_workers; if they come back,
    with more again; each time from the newest checkpoint. By default it waits for all num_workers."""
    resize_interval_seconds: float = Field(60.0, gt=0)
    """How often a run with min_workers checks whether there is room for more workers; Ray itself notices new machines
    within 20 seconds."""
    threads_per_worker: int | None = Field(None, ge=1)
    """CPU threads of a training worker; by default the machine's cores divided by its number of workers."""
    loader_workers: int | None = Field(None, ge=0)
    """Processes per training worker that read and decode clips; by default the worker's share of the cores less one, at
    most 8. Results do not depend on it."""
    seed: int = Field(0, ge=0)
    """Seed of the order of samples, the augmentation, dropout and the model's first weights."""
    shuffle_block: int = Field(2000, ge=1)
    """Shuffling moves a sample at most about this many places from its shard's place in the order: higher mixes better,
    lower reads fewer shards at a time."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """shuffled: an epoch uses each sample exactly once. balanced: an epoch has as many samples but uses every class
    equally often: samples of rare classes several times, augmented anew each time, some of frequent classes never."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Share of unreadable samples above which the run fails."""
    checkpoint_interval_seconds: float = Field(300.0, gt=0)
    """Time between two checkpoints, and so the most work that a kill may cost; every epoch ends with a checkpoint too.
    If the storage fails, training goes on and tries again after the same time. Only at an epoch's end does it wait for
    the storage; it fails after 10 minutes."""
    audit: bool = False
    """Record in the run's folder which samples each step used, in about 7 bytes per clip; `python -m trainer audit RUN`
    then proves that each was used once per epoch."""
    max_failures: int = Field(3, ge=0)
    """Worker failures that the run survives, each time from the newest checkpoint; one more and it fails."""
    registered_model: str = REGISTERED_MODEL
    """Name of the model in the MLflow registry; the server's default is the same."""
    experiment: str = "clipstream"
    """Name of the MLflow experiment."""
    log_every_steps: int = Field(10, ge=1)
    """Steps between two points of the training curves; each point is the mean over them."""
    select_by: Literal["top1", "macro_f1", "mean_class_accuracy"] = "macro_f1"
    """Metric on the val split by which the best epoch and the champion are chosen."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on CUDA, fp32 on the CPU. On a CPU with AVX512-BF16 or AMX (see `lscpu`), bf16 makes steps of
    ResNet-18 1.6 times as fast; on any other it makes them slower."""
    compile: bool = False
    """Compile the CNN with torch.compile, which takes half a minute to a minute at the start. For GPUs: `make bench
    ROWS=gpu` shows after how many steps it pays off. On CPUs steps take longer (ResNet-18, 112 px: 1.05 times)."""
    decode_on: Literal["loader", "device"] = "loader"
    """Where training clips are decoded, cropped and mixed. device: on the GPU (nvJPEG), for machines whose loader
    processes cannot keep up; the clips are the same except for the decoder's rounding. Evaluation always decodes as the
    server does."""
    view: ViewConfig = ViewConfig()
    augment: AugmentConfig = AugmentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @property
    def learning_rate(self) -> float:
        """Highest learning rate of the run: as configured, or 3e-4 * sqrt(global_batch / 32).

        Source: Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", for the square
        root; the linear rule of SGD gives too high a rate for Adam.
        """
        return self.optimizer.learning_rate or 3e-4 * math.sqrt(self.global_batch / 32)

    @model_validator(mode="after")
    def _is_consistent(self) -> "TrainConfig":
        if self.evaluation.three_crops and self.view.mode == "squash":
            raise ValueError("evaluation.three_crops needs view.mode crop: give that, or leave it off")
        if self.evaluation.num_clips > 1 and self.view.num_frames is None:
            raise ValueError(f"evaluation.num_clips ({self.evaluation.num_clips}) needs a view.num_frames: give 1")
        if self.sampling == self.optimizer.class_weights == "balanced":
            raise ValueError("sampling and optimizer.class_weights both balance the classes: give balanced to one only")
        if self.compile and self.model.batch_norm == "sync":
            raise ValueError(
                "compile cannot see through model.batch_norm (sync): leave it off, or give train or frozen"
            )
        if self.audit and self.sampling == "balanced":
            raise ValueError(
                "audit proves that each sample is used once per epoch, and sampling (balanced) does not do that: leave "
                "one of them off"
            )
        if self.min_workers and self.num_workers and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most num_workers ({self.num_workers})")
        return self


class CvConfig(TrainConfig):
    """All options of `python -m trainer cv`: those of a training and, in `shards`, the packs to repeat it on."""

    shards: str = "shards-1,shards-2,shards-3"
    """Folders or addresses of the packs, separated by commas: one for each split or fold of the same videos."""

    def folds(self) -> list[TrainConfig]:
        """Returns the configuration of each pack's training; the runs are called `<run>-1`, `<run>-2` and so on."""
        packs = [pack.strip() for pack in self.shards.split(",")]
        values = self.model_dump()
        return [
            TrainConfig(**values | {"shards": pack, "run": self.run and f"{self.run}-{number}"})
            for number, pack in enumerate(packs, start=1)
        ]


class PromoteConfig(Section):
    """All options of `python -m trainer promote`."""

    version: CliPositionalArg[str] = Field(description="version that becomes the champion, such as 3")
    registered_model: str = REGISTERED_MODEL
    """Name of the model in the MLflow registry."""


class UiConfig(Section):
    """All options of `python -m trainer ui`."""

    port: int = Field(5000, ge=1, le=65535)
    """Port of the page, on 127.0.0.1."""


class AuditConfig(Section):
    """All options of `python -m trainer audit`."""

    run: CliPositionalArg[str] = Field(description="Name of the run")
    runs: str = "runs"
    """Folder of all runs."""
