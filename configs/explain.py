"""Configuration of the commands that look at a finished run clip by clip: explain and review."""

from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from configs.section import Section


class ExplainConfig(Section):
    """All options of `python -m trainer explain`."""

    run: CliPositionalArg[str] = Field(description="Name of a finished run, or its MLflow id")
    clip: str = ""
    """Clip to explain: a source of the pack such as walk/a.mp4 (a name alone is enough if one clip has it), or any
    video file. Unset: the worst mistakes."""
    worst: int = Field(12, ge=1, le=100)
    """How many of the worst mistakes are explained: wrong clips whose label the model found least probable."""
    split: Literal["auto", "val", "test"] = "auto"
    """Where the worst mistakes are looked for; auto: test, or val if the pack has no test split."""
    nearest: int = Field(6, ge=0, le=6)
    """How many of the nearest train clips are shown; 0: none, and the train split is not read."""
    steps: int = Field(16, ge=4, le=500)
    """Passes through the model for each clip: more give a finer map and take longer."""
    runs: str = "runs"
    """Folder of all runs."""
    shards: str = ""
    """The pack that the run was trained on, if it lies elsewhere now."""


class ReviewConfig(Section):
    """All options of `python -m trainer review`."""

    run: CliPositionalArg[str] = Field(description="Name of a finished run or cross-validation, or its MLflow id")
    out: str = ""
    """Table to write, such as review.csv; by default review.csv in the run's folder."""
    shown: int = Field(16, ge=0, le=200)
    """Most clips on the picture beside the table, the most suspicious first; 0: no picture."""
    runs: str = "runs"
    """Folder of all runs."""
    shards: str = ""
    """The pack that the run was trained on, if it lies elsewhere now; for a cross-validation, its packs, separated by
    commas."""
