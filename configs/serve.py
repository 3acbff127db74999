"""Configuration of the server: which model, what one request may cost, how many processes do the work.

`ServeConfig` is what the application itself takes: `applications[0].args` of serve.yaml. `ServeCommand` adds what
only `python -m serve` needs; a Ray cluster reads those from the top level of the same file.
"""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from configs.pack import DecodeLimits
from configs.section import Section
from configs.train import CHAMPION, REGISTERED_MODEL

API_KEY_VARIABLE = "CLIPSTREAM_API_KEY"


class UploadLimits(DecodeLimits):
    """What decoding one uploaded video may cost; tighter than the packer's, because anybody may send it."""

    survey_share: ClassVar[float] = 0.04
    """By default 0.8 s: a bomb is refused in less than a second, and 10 minutes at 60 per second take 0.35 s."""

    max_frames: int = Field(36_000, ge=1)
    """Most frames a video may have (10 minutes at 60 per second by default)."""
    max_pixels: int = Field(4096 * 2304, ge=1)
    """Most pixels a frame may have (4K by default)."""
    timeout_seconds: float = Field(20.0, gt=0)
    """Longest wall time for one video; its header and packets may take 0.04 of it of the processor's."""
    memory_bytes: int = Field(2**30, ge=2**28)
    """Most memory that decoding one video may take; small frames may take less."""


class Autoscaling(Section):
    """Model replicas that come and go with the load."""

    min_replicas: int = Field(1, ge=1)
    """Replicas that are always there."""
    max_replicas: int = Field(ge=1)
    """Most replicas; those for which the cluster has no cores or GPUs are not started."""
    target_ongoing_requests: float = Field(8.0, gt=0)
    """Videos per replica, worked on and waiting, that are aimed at; well below `max_queued`."""
    upscale_delay_seconds: float = Field(5.0, ge=0)
    """How long the load must ask for more replicas before one is started."""
    downscale_delay_seconds: float = Field(120.0, ge=0)
    """How long the load must ask for fewer before one ends, once it has answered what it had."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self


class ModelSource(Section):
    """Which registered model, and where it is registered."""

    registered_model: str = REGISTERED_MODEL
    """Name in the MLflow registry."""
    alias: str = CHAMPION
    """The version with this alias is taken; a server follows it when it moves."""
    tracking_uri: str | None = None
    """MLflow store; by default MLFLOW_TRACKING_URI, else mlflow.db in the project's folder, as for the trainer."""


class ServeConfig(ModelSource):
    """Everything the served application can be told."""

    alias_poll_seconds: float = Field(10.0, gt=0)
    """How often the alias is looked up."""
    num_replicas: int = Field(1, ge=1)
    """Model replicas: processes that hold the model; with two, one that dies costs no request."""
    autoscaling: Autoscaling | None = None
    """As many replicas as the load asks for, instead of `num_replicas`."""
    num_gateways: int = Field(1, ge=1)
    """Processes that speak HTTP; the death of one costs its own requests, and with one alone new ones wait for it."""
    gpus_per_replica: float = Field(0.0, ge=0)
    """Share of a GPU per replica; 0 runs the model on the CPU."""
    cpu_threads: int = Field(1, ge=1)
    """Torch threads per replica, each with a core of its own; one is best for throughput, more for one's latency."""
    decoder_processes: int = Field(1, ge=1)
    """Processes per replica that decode videos, each with a core of its own."""
    max_batch_size: int = Field(16, ge=1)
    """Most clips per forward pass."""
    max_queued: int = Field(32, ge=1)
    """Most videos that a replica works on or keeps waiting; above it the answer is 503. Two batches keep a GPU busy;
    on a core that takes 40 ms per video the last of 32 waits 1.3 seconds."""
    max_body_bytes: int = Field(32 * 2**20, ge=1)
    """Most bytes of one request, all files together; above it the answer is 413."""
    max_files: int = Field(16, ge=1)
    """Most files, or clips of a batch, of one request."""
    deadline_seconds: float = Field(60.0, gt=0)
    """Longest time for one request, from its headers to its answer; a client cannot raise it."""
    top_k: int = Field(5, ge=1)
    """Classes in an answer, unless the request names another number."""
    api_key_file: str | None = None
    """File with one API key per line; keys may also stand in CLIPSTREAM_API_KEY, separated by commas."""
    allow_unauthenticated: bool = False
    """Serve without a key to programs of this machine; `python -m serve` sets it on a loopback host."""
    samples: str | None = None
    """Folder of videos that the page offers to try, to whoever may ask; the first 24 by name."""
    limits: UploadLimits = UploadLimits()

    @property
    def max_replicas(self) -> int:
        """Most model replicas that there can be."""
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas

    @property
    def cpus_per_replica(self) -> int:
        """Cores that a replica keeps busy."""
        return self.cpu_threads + self.decoder_processes

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.autoscaling and self.num_replicas != 1:
            raise ValueError(f"num_replicas ({self.num_replicas}) and autoscaling exclude each other: leave one out")
        return self


class ServeCommand(ServeConfig):
    """Everything `python -m serve` can be told."""

    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback address needs an API key."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Port of /metrics for Prometheus, open to read, on loopback if `host` is; by default a free one: see the log."""
