"""Configuration of the packer: what a clip is, how videos are split, how shards are cut."""

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg

from configs.section import Section


class ClipConfig(Section):
    """What one clip is: kept in the manifest and with the model, so that training and serving cannot differ."""

    num_frames: int = Field(16, ge=1, le=1000)
    """Frames per clip, equally spaced from the first to the last."""
    short_side_px: int = Field(128, ge=0, le=4096)
    """Stored frames are shrunk to this short side, never enlarged; 0 keeps the video's own size."""
    jpeg_quality: int = Field(90, ge=1, le=100)
    """JPEG quality of the stored frames."""
    decode: Literal["auto", "full"] = "auto"
    """full: every frame is decoded; auto: only what the kept ones need, where that was proved to give the same frames:
    damage elsewhere goes unseen."""


class DecodeLimits(Section):
    """What one video may cost before it is given up; it is then rejected and listed, and harms no other."""

    survey_share: ClassVar[float] = 0.1
    """How much of `timeout_seconds` the processor may take for a video's header and packets."""

    max_frames: int = Field(1_000_000, ge=1)
    """Most frames a video may have."""
    max_pixels: int = Field(8192 * 4320, ge=1)
    """Most pixels a frame may have (8K by default)."""
    timeout_seconds: float = Field(600.0, gt=0)
    """Longest wall time for one video; its header and packets may take a tenth of it of the processor's."""
    memory_bytes: int = Field(4 * 2**30, ge=2**28)
    """Most memory that decoding one video may take; small frames may take less."""


class SplitConfig(Section):
    """How videos are divided into train, val and test; a group, and videos of equal content, always stay together."""

    method: Literal["stratified", "folders", "csv"] = "stratified"
    """stratified: every class is divided by the fractions below; folders: the data folder holds train, val and test,
    and each of those one folder per class; csv: the file `--lists` has the columns source and split."""
    hmdb51: int = Field(0, ge=0, le=3)
    """The official split of HMDB51 to use, 1 to 3; its lists lie in the folder `--lists`."""
    ucf101: int = Field(0, ge=0, le=3)
    """The official split of UCF101 to use, 1 to 3; its lists lie in the folder `--lists`."""
    group_regex: str = ""
    """Searched in each video's path below the data folder: videos for which its groups match the same text are never
    in two splits. Unset: names as in HMDB51 and UCF101 are grouped by what they were cut from, others are not."""
    val_fraction: float = Field(0.15, ge=0, lt=1)
    """Share of the videos for choosing the model; taken from train where lists or folders have no val."""
    test_fraction: float = Field(0.15, ge=0, lt=1)
    """Share of the videos for the final figure; ignored when `num_folds` is set, or lists or folders say it."""
    num_folds: int = Field(0, ge=0)
    """Set to k for k-fold cross-validation: the test split is then fold `fold` of k."""
    fold: int = Field(0, ge=0)
    """Which fold is the test split, from 0."""

    @property
    def is_official(self) -> bool:
        """Whether the published lists of a dataset decide."""
        return bool(self.hmdb51 or self.ucf101)

    @property
    def is_stratified(self) -> bool:
        """Whether the fractions or folds alone decide."""
        return self.method == "stratified" and not self.is_official

    @model_validator(mode="after")
    def _is_consistent(self) -> "SplitConfig":
        chosen = [name for name in ("hmdb51", "ucf101") if getattr(self, name)]
        chosen += [f"method {self.method}"] * (self.method != "stratified") + ["num_folds"] * bool(self.num_folds)
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other: give one of them")
        if self.num_folds == 1:
            raise ValueError("num_folds (1) must be 0 (no folds) or at least 2")
        if self.num_folds and self.fold >= self.num_folds:
            raise ValueError(f"fold ({self.fold}) must be below num_folds ({self.num_folds}): folds count from 0")
        test_fraction = 1 / self.num_folds if self.num_folds else self.test_fraction
        if self.is_stratified and self.val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction ({self.val_fraction}) and test ({test_fraction:g}) leave nothing to train on"
            )
        return self

    @field_validator("group_regex")
    @classmethod
    def _is_regex(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class ShardConfig(Section):
    """How a split is cut into tar files."""

    max_samples: int = Field(1000, ge=1)
    """Most samples in one shard."""
    max_bytes: int = Field(256 * 2**20, ge=2**20)
    """Most bytes in one shard; a shard holds at least one sample."""
    min_train_shards: int = Field(8, ge=1)
    """Fewest train shards, where there are as many samples."""


class PackRecipe(Section):
    """What decides the bytes of a pack, given the videos; kept in the manifest."""

    clip: ClipConfig = ClipConfig()
    limits: DecodeLimits = DecodeLimits()
    split: SplitConfig = SplitConfig()
    shards: ShardConfig = ShardConfig()
    duplicates: Literal["keep", "reject"] = "keep"
    """keep: videos of equal content are packed, into one split; reject: only the first of them by path is packed."""
    seed: int = Field(0, ge=0)
    """Seed of the split and of the order of samples."""


class PackConfig(PackRecipe):
    """Everything `python -m packer` can be told."""

    source: CliPositionalArg[str] = Field(
        description="folder with one folder of videos per class, or its address: s3://..."
    )
    target: CliPositionalArg[str] = Field(description="folder for the shards, or its address; it is created")
    lists: str = ""
    """Where the split's lists lie: the folder of the official ones, or the file of `--split.method csv`."""
    append: bool = False
    """Adds the videos that are new in the data folder to a pack; what was packed keeps its split and its bytes."""
    dry_run: bool = False
    """Says what would be done, and writes nothing."""
    strict: bool = False
    """Stops at the first video that gives no clip."""
    workers: int = Field(0, ge=0)
    """Processes that decode videos; 0: one per core. The bytes written do not depend on it."""
    ray: str = ""
    """Address of a Ray cluster that decodes the videos, such as auto or 10.0.0.1:6379, to the same bytes; all of its
    machines must have this version of clipstream and be able to read the source. Unset: this machine decodes."""
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)
    """Above this share of rejected videos the exit code is 1, though the shards are complete."""

    @model_validator(mode="after")
    def _has_lists(self) -> "PackConfig":
        wanted = self.split.is_official or self.split.method == "csv"
        if wanted and not self.lists:
            raise ValueError("lists must say where the split's lists lie: --lists PATH")
        if self.lists and not wanted:
            raise ValueError("lists is for split.hmdb51, split.ucf101 and split.method csv: give one of them too")
        return self

    @property
    def recipe(self) -> PackRecipe:
        """The part of the configuration that decides the bytes."""
        return PackRecipe(**{name: getattr(self, name) for name in PackRecipe.model_fields})


class VerifyConfig(Section):
    """Checks every digest, index row and frame header of a pack, and names the shards that are not as packed."""

    target: CliPositionalArg[str] = Field(description="folder of a complete pack")


class RepairConfig(Section):
    """Packs the damaged shards of a pack again, to the same bytes; the rest is left as it is."""

    target: CliPositionalArg[str] = Field(description="folder of a complete pack")
    source: CliPositionalArg[str] = Field(description="data folder that it was made of")
    workers: int = Field(0, ge=0)
    """Processes that decode videos; 0: one per core."""


class InspectConfig(Section):
    """Says what a pack holds: samples per class and split, sizes, how frames were reached, what was rejected."""

    target: CliPositionalArg[str] = Field(description="folder of a complete pack")
    sheet: str = ""
    """Picture file to draw clips of every class into, such as sheet.png."""
    clips_per_class: int = Field(6, ge=1, le=100)
    """Most clips of a class on the sheet."""
