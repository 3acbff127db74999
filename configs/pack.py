"""Configuration of the packer: what a clip is, what a video may cost, how videos are split, how shards are cut."""

import re
from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg

from configs.section import Section

LabelsFormat = Literal[
    "auto",
    "table",
    "mmaction2",
    "kinetics",
    "activitynet",
    "something-something",
    "createml",
    "label-studio",
    "fiftyone",
    "dali",
    "dali-frames",
    "via",
]
"""What can have written a file of labels."""


class ClipConfig(Section):
    """What one clip is; stored in the manifest and with the model, so that packing, training and serving agree."""

    num_frames: int = Field(16, ge=1, le=1000)
    """Frames per clip, equally spaced from the first to the last (`sampling` says how)."""
    sampling: Literal["frames", "time"] = "frames"
    """frames: equally spaced by their number; time: those shown at equally spaced moments, which differs if the rate
    varies (motion-triggered recordings, phones)."""
    short_side_px: int = Field(128, ge=0, le=4096)
    """Stored frames are shrunk to this short side, never enlarged; 0 keeps the video's own size."""
    jpeg_quality: int = Field(90, ge=1, le=100)
    """JPEG quality of the stored frames."""
    decode: Literal["auto", "full"] = "auto"
    """full: every frame is decoded; auto: only the frames that the clip needs, for videos for which this gives the same
    clip; damage in other frames is then not noticed."""


class DecodeLimits(Section):
    """What one video may cost; a video that costs more is rejected and listed, and the others go on."""

    survey_share: ClassVar[float] = 0.1
    """Share of `timeout_seconds` that the processor may spend on a video's header and packets."""

    max_frames: int = Field(1_000_000, ge=1)
    """Most frames a video may have."""
    max_pixels: int = Field(8192 * 4320, ge=1)
    """Most pixels a frame may have (8K by default)."""
    timeout_seconds: float = Field(600.0, gt=0)
    """Longest time for one video; its header and packets may take a tenth of it, in processor time."""
    memory_bytes: int = Field(4 * 2**30, ge=2**28)
    """Most memory for decoding one video; videos with small frames get less."""


class SplitConfig(Section):
    """How videos are divided into train, val and test; groups and videos of equal content always stay together."""

    method: Literal["auto", "stratified", "folders", "csv", "labels"] = "auto"
    """auto: labels if those of `--labels` state splits, otherwise stratified; stratified: every class is divided by the
    fractions below; folders: the data folder holds the folders train, val and test (or training, validation, testing
    ...), each with one folder per class; csv: the file of `--lists` has the columns source (a path below the data
    folder, or a file's name) and split; labels: the labels of `--labels` state it."""
    hmdb51: int = Field(0, ge=0, le=3)
    """Official split of HMDB51 to use, 1 to 3; `--lists` is the folder of its lists."""
    ucf101: int = Field(0, ge=0, le=3)
    """Official split of UCF101 to use, 1 to 3; `--lists` is the folder of its lists."""
    group_regex: str = ""
    """Regular expression that is searched in each video's path below the data folder; videos whose groups match the
    same text stay in one split. Unset: names like those of HMDB51 and UCF101 are grouped by the recording, and files of
    one folder whose names differ in their extension alone (clip1.avi, clip1.mp4) are one group."""
    group_similar: bool = False
    """Videos that look alike stay in one split too, as parts of one recording whose names do not tell it. To see that,
    every video is decoded once more, before the split. No effect on videos whose split lists or folders state."""
    val_fraction: float = Field(0.15, ge=0, lt=1)
    """Share of the videos for choosing the model; taken from train if lists or folders have no val."""
    test_fraction: float = Field(0.15, ge=0, lt=1)
    """Share of the videos for the final figure; ignored if `num_folds` is set, or if lists or folders decide."""
    num_folds: int = Field(0, ge=0)
    """Set to k for k-fold cross-validation: the test split is then fold `fold` of k."""
    fold: int = Field(0, ge=0)
    """Which fold is the test split, from 0."""

    @property
    def is_official(self) -> bool:
        """Whether the official lists of a dataset decide."""
        return bool(self.hmdb51 or self.ucf101)

    @property
    def is_stratified(self) -> bool:
        """Whether the fractions or folds alone decide."""
        return self.method in ("auto", "stratified") and not self.is_official

    @model_validator(mode="after")
    def _is_consistent(self) -> "SplitConfig":
        chosen = [name for name in ("hmdb51", "ucf101") if getattr(self, name)]
        chosen += [f"method {self.method}"] * (self.method not in ("auto", "stratified")) + ["num_folds"] * bool(
            self.num_folds
        )
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
    """Fewest train shards, if there are as many samples."""


class PackRecipe(Section):
    """What decides the bytes of a pack besides the videos; stored in the manifest."""

    clip: ClipConfig = ClipConfig()
    limits: DecodeLimits = DecodeLimits()
    split: SplitConfig = SplitConfig()
    shards: ShardConfig = ShardConfig()
    duplicates: Literal["keep", "reject"] = "keep"
    """keep: videos of equal content are all packed, into one split; reject: only the first by path is packed, and
    none if they have different classes."""
    seed: int = Field(0, ge=0)
    """Seed of the split and of the order of samples."""


def _checked_rate(value: str) -> str:
    try:
        is_rate = not value or Fraction(value) > 0
    except (ValueError, ZeroDivisionError):
        is_rate = False
    if not is_rate:
        raise ValueError("must be a number above 0, such as 25, 29.97 or 30000/1001")
    return value


class PackConfig(PackRecipe):
    """The options of `python -m packer`."""

    source: CliPositionalArg[str] = Field(
        description="folder with one folder of videos per class, or its address: s3://...; with --labels, any folder"
    )
    target: CliPositionalArg[str] = Field(description="folder for the shards, or its address; it is created")
    lists: str = ""
    """Folder of the official lists, or the file for `--split.method csv`."""
    labels: str = ""
    """File with a label per video or segment, or its address: a table (.csv, .tsv, .jsonl, .parquet) with the columns
    path and label, and if you like split, group, start and end; or the format of a tool or dataset. Unset: the folders
    are the classes."""
    labels_format: LabelsFormat = "auto"
    """What wrote the file of `--labels`; auto: told by its content."""
    labels_classes: str = ""
    """File with the class names, one per line, if the labels are numbers from 0."""
    labels_frame_rate: str = ""
    """Frames per second at which the labels count frames, such as 25 or 30000/1001, if their tool counted at a rate of
    its own; needed for label-studio."""
    labels_background: str = ""
    """Name of one more class, of segments that no label is about: as long as the median segment, at most as many as the
    commonest class has. Unset: there are none."""
    append: bool = False
    """Adds the videos that are new in the data folder to a pack; packed videos keep their split and bytes."""
    dry_run: bool = False
    """Shows what the command would do, and writes nothing."""
    strict: bool = False
    """Stops at the first video that gives no clip."""
    workers: int = Field(0, ge=0)
    """Processes that decode videos; 0: one per core. The bytes do not depend on it."""
    ray: str = ""
    """Address of a Ray cluster that decodes the videos, such as auto or 10.0.0.1:6379; the bytes stay the same. Its
    machines must have this version of clipstream and be able to read the source. Unset: this machine decodes."""
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)
    """If more of the videos are rejected, the exit code is 1; the shards are complete nevertheless."""

    @model_validator(mode="after")
    def _has_lists(self) -> "PackConfig":
        wanted = self.split.is_official or self.split.method == "csv"
        if wanted and not self.lists:
            raise ValueError("lists must name the folder or file of the split's lists: --lists PATH")
        if self.lists and not wanted:
            raise ValueError("`lists` is for split.hmdb51, split.ucf101 and split.method csv: give one of them too")
        return self

    @model_validator(mode="after")
    def _has_labels(self) -> "PackConfig":
        if self.labels:
            if self.split.is_official or self.split.method == "folders":
                raise ValueError(
                    "labels name the classes, and official lists and --split.method folders need class folders: give "
                    "one of the two"
                )
            return self
        others = [name for name in ("classes", "frame_rate", "background") if getattr(self, f"labels_{name}")]
        others += ["format"] * (self.labels_format != "auto")
        if others or self.split.method == "labels":
            what = f"labels_{others[0]}" if others else "split.method labels"
            raise ValueError(f"{what} is for labels from a file: give --labels PATH too")
        return self

    _is_rate = field_validator("labels_frame_rate")(_checked_rate)

    @property
    def recipe(self) -> PackRecipe:
        """The part of the configuration that decides the bytes."""
        return PackRecipe(**{name: getattr(self, name) for name in PackRecipe.model_fields})


class VerifyConfig(Section):
    """Checks every digest, index row and frame header of a pack, and names the damaged shards."""

    target: CliPositionalArg[str] = Field(description="folder of a complete pack")


class RepairConfig(Section):
    """Packs the damaged shards of a pack again, to the same bytes; the other shards are not touched."""

    target: CliPositionalArg[str] = Field(description="folder of a complete pack")
    source: CliPositionalArg[str] = Field(description="data folder that it was packed from")
    workers: int = Field(0, ge=0)
    """Processes that decode videos; 0: one per core."""


class RelabelConfig(Section):
    """Gives the samples of a pack new labels, from the stored frames; no video is read, and none changes its split."""

    target: CliPositionalArg[str] = Field(description="folder of a complete pack, or its address")
    labels: str = Field(min_length=1)
    """File with a label per video or segment, or its address, as for packing. What it does not name keeps its label."""
    labels_format: LabelsFormat = "auto"
    """What wrote the file of `--labels`; auto: told by its content."""
    labels_classes: str = ""
    """File with the class names, one per line, if the labels are numbers from 0."""
    labels_frame_rate: str = ""
    """Frames per second at which the labels count frames, such as 25 or 30000/1001, if their tool counted at a rate of
    its own; needed for label-studio."""
    dry_run: bool = False
    """Shows what the command would do, and writes nothing."""

    _is_rate = field_validator("labels_frame_rate")(_checked_rate)


class InspectConfig(Section):
    """Shows what a pack holds: samples, labels, segments, groups, sizes, damage, and what was rejected or set aside."""

    target: CliPositionalArg[str] = Field(description="folder of a complete pack")
    sheet: str = ""
    """File for a contact sheet, such as sheet.html: a page per class and split with five frames of each clip, and what
    was rejected and why. Any browser opens it, without a network. An older sheet is replaced, no other file is."""
    clips_per_class: int = Field(6, ge=1, le=100)
    """Most clips per class and split on the sheet, spread over the recordings; the same ones each time."""
    all: bool = False
    """Shows every class; otherwise, of more than 40 classes, the largest and the smallest ones."""

    @field_validator("sheet")
    @classmethod
    def _is_html(cls, value: str) -> str:
        if value and not value.lower().endswith((".html", ".htm")):
            raise ValueError("must end in .html: the sheet is one file for a browser, such as sheet.html")
        return value
