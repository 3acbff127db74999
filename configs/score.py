"""Configuration of `python -m serve score`: which videos, by which model, to which file."""

from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from configs.pack import DecodeLimits
from configs.serve import ModelSource


class ScoreConfig(ModelSource):
    """Everything `python -m serve score` can be told."""

    source: CliPositionalArg[str] = Field(description="folder of videos, in it or in folders of it; or its address")
    out: str = "predictions.parquet"
    """Parquet file to write, or its address."""
    version: str | None = None
    """Version of the registered model, instead of the one with the alias."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: on a GPU where there is one."""
    cpu_threads: int = Field(0, ge=0)
    """Torch threads of a forward pass on the CPU; 0: one per core."""
    max_batch_size: int = Field(16, ge=1)
    """Most clips per forward pass."""
    workers: int = Field(0, ge=0)
    """Processes that decode videos; 0: one per core."""
    ray: str = ""
    """Address of a Ray cluster that decodes the videos, such as auto; all of its machines must have this version of
    clipstream and be able to read the source. Unset: this machine decodes."""
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)
    """Above this share of rejected videos the exit code is 1, though the file is complete."""
    limits: DecodeLimits = DecodeLimits()
