"""Configuration of the trainer, and `ModelContract`: what a registered model tells the server that loads it."""

import os
from typing import Literal

from pydantic import Field, model_validator

from configs.load import Section, home
from configs.pack import ClipConfig

REGISTERED_MODEL = "clipstream"
CHAMPION = "champion"
METADATA_KEY = "clipstream"
"""Where a registered model keeps its contract, in its MLflow metadata."""


class ViewConfig(Section):
    """How a stored frame becomes the square picture that the model sees."""

    short_side_px: int = Field(128, ge=8)
    """Stored frames are brought to this short side first; equal to the packed one, nothing is resized."""
    size_px: int = Field(112, ge=8)
    """Side of the square picture."""
    mode: Literal["crop", "squash"] = "crop"
    """crop: cut the square out (its centre, when evaluating); squash: scale the whole frame to the square."""

    @model_validator(mode="after")
    def _fits(self) -> "ViewConfig":
        if self.size_px > self.short_side_px:
            raise ValueError(f"size_px ({self.size_px}) must be at most short_side_px ({self.short_side_px})")
        return self


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


class ModelConfig(Section):
    """The CNN that sees single frames and the RNN that reads them in order."""

    backbone: str = "resnet18"
    """A torchvision ResNet by name, or `narrow`: a ResNet-10 of `width` channels for CPUs."""
    width: int = Field(16, ge=8)
    """Channels of the first stage of the `narrow` backbone."""
    weights: str = "imagenet"
    """imagenet (torchvision's, downloaded once), none (random), or the path of a local state_dict."""
    temporal_shift: bool = False
    """Lets each block of the backbone see the frames before and after (TSM): motion is learnt from far fewer clips."""
    differences: bool = False
    """Shows the CNN what changed since the frame before, too: where things move is learnt from far fewer clips."""
    grid: int = Field(1, ge=1, le=8)
    """Frame features are averaged to grid x grid places; 1: one average over the whole frame."""
    feature_size: int = Field(256, ge=8)
    """Features per frame that the RNN reads, used where grid > 1."""
    rnn: Literal["lstm", "gru"] = "lstm"
    """Kind of recurrence."""
    hidden_size: int = Field(256, ge=1)
    """Width of the RNN's state."""
    num_layers: int = Field(1, ge=1)
    """Layers of the RNN."""
    bidirectional: bool = False
    """Read the clip in both directions."""
    pooling: Literal["last", "mean"] = "last"
    """What the classifier sees: the last step of the RNN, or the mean over steps."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of features dropped before the classifier."""


class OptimizerConfig(Section):
    """AdamW with linear warm-up and cosine decay to zero."""

    learning_rate: float = Field(3e-4, gt=0)
    """Highest learning rate, for the global batch as configured."""
    weight_decay: float = Field(0.05, ge=0)
    """Decay of matrices and kernels; biases and norms are left alone."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability spread over the other classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class weighs as much as any other, however few its samples."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""


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
    """Most clips per forward pass and worker; gradients are summed. 0: the worker's whole share."""
    num_workers: int | None = Field(None, ge=1)
    """Training workers; by default one per GPU of the cluster, or one CPU worker where there is none."""
    threads_per_worker: int | None = Field(None, ge=1)
    """CPU threads of a training worker, by default the machine's cores shared between its workers."""
    loader_workers: int | None = Field(None, ge=0)
    """Processes per training worker that read and decode clips, by default the cores that are left, at most 8; results
    do not depend on it."""
    seed: int = Field(0, ge=0)
    """Seed of the order, the augmentation and the model's first weights."""
    shuffle_block: int = Field(2000, ge=1)
    """Samples move at most about this far from their shard's place in the order: locality against mixing."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Share of unreadable samples above which the run stops."""
    checkpoint_interval_seconds: float = Field(300.0, gt=0)
    """Work that a kill may cost at most; every epoch ends with a checkpoint too."""
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
    """auto: bf16 autocast on CUDA, fp32 on CPU."""
    view: ViewConfig = ViewConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


class ModelContract(Section):
    """What a registered model carries as metadata: enough to prepare a video exactly as in training.

    Written by the trainer into the MLflow model's metadata under `METADATA_KEY`, read by the server.
    """

    format_version: Literal[1] = 1
    """Raised when a field changes its meaning; a server refuses one it does not know."""
    class_names: tuple[str, ...]
    """Class names in the order of the logits."""
    clip: ClipConfig
    """How frames were picked, shrunk and compressed."""
    view: ViewConfig
    """How a stored frame becomes the model's picture."""
    manifest_sha256: str
    """Digest of the manifest that the model was trained on."""
    val_sha256: str
    """Digest of the val split that `val_metric` was measured on."""
    select_by: str
    """Name of the metric that chose this model."""
    val_metric: float
    """Its value on the val split."""
    code_version: str
    """Git commit (with `-dirty` where files were changed), or a digest of the package's sources."""


def tracking_uri() -> str:
    """Returns MLFLOW_TRACKING_URI, or the SQLite store in the home folder that `mlflow ui` opens there."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
