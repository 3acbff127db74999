"""Configuration of `python -m serve score`: which videos, by which model, to which file."""

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import CliPositionalArg

from configs.pack import DecodeLimits
from configs.serve import ModelSource

OUT_ENDINGS = (".parquet", ".csv", ".jsonl")
"""Endings of `out`; each stands for a format."""


class ScoreConfig(ModelSource):
    """The options of `python -m serve score`."""

    source: CliPositionalArg[str] = Field(description="folder whose videos, at any depth, are scored; or its address")
    out: str = "predictions.parquet"
    """File to write, or its address. The ending decides the format: .parquet, .csv or .jsonl."""
    version: str | None = None
    """Version of the registered model, instead of the one with the alias."""
    shards: str | None = None
    """Pack that the model was trained on, if it is not where the model's run says: it tells which videos the model
    already knows."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: on a GPU if there is one."""
    cpu_threads: int = Field(0, ge=0)
    """Torch threads of a forward pass on the CPU; 0: one per core."""
    max_batch_size: int = Field(16, ge=1)
    """Most clips per forward pass."""
    workers: int = Field(0, ge=0)
    """Processes that decode videos; 0: one per core."""
    ray: str = ""
    """Address of a Ray cluster that decodes the videos, such as auto. All its machines need this version of clipstream
    and access to the source. If unset, this machine decodes."""
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)
    """If a larger share of the videos is rejected, the exit code is 1; the file is complete nevertheless."""
    limits: DecodeLimits = DecodeLimits()

    @property
    def out_ending(self) -> str:
        """The ending of `out`, such as `.csv`."""
        return PurePosixPath(self.out).suffix

    @field_validator("out")
    @classmethod
    def _check_ending(cls, out: str) -> str:
        if PurePosixPath(out).suffix not in OUT_ENDINGS:
            raise ValueError(f"must end in {', '.join(OUT_ENDINGS[:-1])} or {OUT_ENDINGS[-1]}")
        return out
