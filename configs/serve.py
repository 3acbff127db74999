"""Configuration of the server: which model, what one request may cost, how many processes do the work.

`ServeConfig` holds the options of the application itself: `applications[0].args` of serve.yaml. `ServeCommand` adds
those of `python -m serve`, which a Ray cluster reads from the top level of the same file.
"""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from configs.pack import DecodeLimits
from configs.section import Section
from configs.train import CHAMPION, REGISTERED_MODEL

API_KEY_VARIABLE = "CLIPSTREAM_API_KEY"


class UploadLimits(DecodeLimits):
    """What decoding one uploaded video may cost; less than in the packer, because anybody may send it."""

    survey_share: ClassVar[float] = 0.04
    """By default 0.8 s: a bomb is refused in less than a second. 10 minutes at 60 frames per second take 0.35 s."""

    max_frames: int = Field(36_000, ge=1)
    """Most frames of a video; by default 10 minutes at 60 per second."""
    max_pixels: int = Field(4096 * 2304, ge=1)
    """Most pixels of a frame; by default 4K."""
    timeout_seconds: float = Field(20.0, gt=0)
    """Longest wall time for one video. Its header and packets may take 0.04 of this time of the CPU."""
    memory_bytes: int = Field(2**30, ge=2**28)
    """Most memory for decoding one video; a video of small frames may take less."""


class Autoscaling(Section):
    """A number of model replicas that follows the load."""

    min_replicas: int = Field(1, ge=1)
    """Fewest replicas."""
    max_replicas: int = Field(ge=1)
    """Most replicas; none is started if the cluster has no cores or GPUs left for it."""
    target_ongoing_requests: float = Field(8.0, gt=0)
    """Videos per replica, in work or waiting, to aim at; keep it well below `max_queued`."""
    upscale_delay_seconds: float = Field(5.0, ge=0)
    """How long the load must be too high before a replica is started."""
    downscale_delay_seconds: float = Field(120.0, ge=0)
    """How long the load must be too low before a replica ends; it first answers the requests that it has."""

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
    """Alias of the version to use; a server follows the alias when it moves."""
    tracking_uri: str | None = None
    """MLflow store; by default MLFLOW_TRACKING_URI, or mlflow.db in the project's folder, as for the trainer."""


class ServeConfig(ModelSource):
    """The options of the served application."""

    alias_poll_seconds: float = Field(10.0, gt=0)
    """How often the alias is looked up."""
    num_replicas: int = Field(1, ge=1)
    """Model replicas: processes that hold the model. With two of them no request fails when one dies."""
    autoscaling: Autoscaling | None = None
    """Let the load decide the number of replicas, instead of `num_replicas`."""
    num_gateways: int = Field(1, ge=1)
    """Processes that speak HTTP. If one dies, its requests fail, and if it was the only one, new requests wait."""
    gpus_per_replica: float = Field(0.0, ge=0)
    """Share of a GPU per replica; 0 runs the model on the CPU."""
    cpu_threads: int = Field(1, ge=1)
    """Torch threads per replica, each with its own core. One gives the best throughput, more the best latency."""
    decoder_processes: int = Field(1, ge=1)
    """Processes per replica that decode videos, each with its own core."""
    max_batch_size: int = Field(16, ge=1)
    """Most clips per forward pass."""
    max_queued: int = Field(32, ge=1)
    """Most videos of a replica, in work or waiting; more are answered by 503. Two batches keep a GPU busy; on a core
    that takes 40 ms per video, the last of 32 videos waits 1.3 seconds."""
    max_body_bytes: int = Field(32 * 2**20, ge=1)
    """Most bytes of one request, all files together; a larger one is answered by 413."""
    max_files: int = Field(16, ge=1)
    """Most files, or clips of a batch, in one request."""
    deadline_seconds: float = Field(60.0, gt=0)
    """Longest time for one request, from its headers to its answer; a client cannot raise it."""
    top_k: int = Field(5, ge=1)
    """Classes in an answer, unless the request names another number."""
    api_key_file: str | None = None
    """File with one API key per line; CLIPSTREAM_API_KEY may hold keys too, separated by commas."""
    allow_unauthenticated: bool = False
    """Serve without an API key, but only to programs on this machine; `python -m serve` sets it on a loopback host."""
    explain: bool = False
    """Answer `?explain=1` too: which frames decided. One such video costs the model as much as T + 1 of them, if a clip
    has T frames."""
    samples: str | None = None
    """Folder of videos that the page offers to everybody who may ask: at most 24, from it and the folders below."""
    limits: UploadLimits = UploadLimits()

    @property
    def max_replicas(self) -> int:
        """Most model replicas that may run."""
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas

    @property
    def max_explained(self) -> int:
        """Most videos of a replica that are explained or wait for it; the other half of its room is for all others."""
        return max(1, self.max_queued // 2)

    @property
    def cpus_per_replica(self) -> int:
        """Cores that a replica keeps busy."""
        return self.cpu_threads + self.decoder_processes

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.autoscaling and self.num_replicas != 1:
            raise ValueError(
                f"num_replicas ({self.num_replicas}) and autoscaling.max_replicas ({self.autoscaling.max_replicas}) "
                "exclude each other: leave one out"
            )
        return self


class ServeCommand(ServeConfig):
    """The options of `python -m serve`."""

    host: str = "127.0.0.1"
    """Address to listen on; any address but a loopback one needs an API key."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Port of /metrics for Prometheus, without a key, on loopback if `host` is; by default a free one (see the log)."""
