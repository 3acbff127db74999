"""Finds what a command may pack: the videos in class folders, or those that labels name, and their splits if given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from configs.home import resolve
from configs.pack import PackConfig, RelabelConfig
from packer.labels.match import match_labels
from packer.labels.read import read_labels
from packer.labels.rows import Labels
from packer.labels.splits import SPLIT_OF_FOLDER
from packer.planning.background import background_segments
from packer.planning.layout import catalog_notes, check_layout
from packer.planning.lists import GivenSplits, given_by_labels, read_given_splits
from packer.shards.stored_plan import read_plan
from packer.storage.location import Location, locate
from packer.video.catalog import Catalog, Video, find_unlabelled, find_videos


@dataclass(frozen=True)
class Candidates:
    """What a command may pack."""

    catalog: Catalog
    given: GivenSplits | None
    """None: the fractions decide the splits."""
    notes: tuple[tuple[str, str], ...]
    """What the user should know about files that are not packed, labels and classes, as (label, text)."""
    config: PackConfig
    """The configuration, with the method that divides the videos: no longer auto."""


def find_candidates(source: Location, target: Location, config: PackConfig) -> Candidates:
    """Returns the videos of a data folder that a command may pack.

    Args:
        source: The data folder.
        target: The folder of the pack; with `config.append`, it decides which background segments stay.
        config: The command.

    Raises:
        UsageError: The folders, the labels or the lists cannot be used as they are.
    """
    found = _of_labels(source, target, config) if config.labels else _of_folders(source, config)
    catalog, given, config = found.catalog, found.given, found.config
    if config.split.method == "auto":
        config = _with_method(config, "stratified")
    notes = [*found.notes, *(("skipped", f"{what}: {count}") for what, count in sorted(catalog.num_skipped.items()))]
    notes += catalog_notes(catalog, config.split, has_class_folders=not config.labels)
    given = given or read_given_splits(catalog, config.split, resolve(config.lists))
    if given is not None:
        listed = tuple(video for video in catalog.videos if video.source in given.split_of)
        if num_unlisted := len(catalog.videos) - len(listed):
            notes.append(("skipped", f"videos that the split leaves out: {num_unlisted}"))
        if given.num_absent:
            notes.append(("absent", f"listed videos that the data folder lacks: {given.num_absent}"))
        catalog = replace(catalog, videos=listed)
    return Candidates(catalog, given, tuple(notes), config)


def labels_of(config: PackConfig | RelabelConfig) -> Labels:
    """Returns the labels that a command names.

    Raises:
        UsageError: Their file cannot be read as it is.
    """
    return read_labels(
        locate(config.labels),
        config.labels_format,
        classes=locate(config.labels_classes) if config.labels_classes else None,
        frame_rate=Fraction(config.labels_frame_rate) if config.labels_frame_rate else None,
    )


def _of_folders(source: Location, config: PackConfig) -> Candidates:
    has_split_folders = config.split.method == "folders"
    catalog = find_videos(source, SPLIT_OF_FOLDER if has_split_folders else ())
    check_layout(source, catalog, has_split_folders)
    return Candidates(catalog, None, (), config)


def _of_labels(source: Location, target: Location, config: PackConfig) -> Candidates:
    labels = labels_of(config)
    found = match_labels(source, find_unlabelled(source), labels)
    catalog, split_of = found.catalog, found.split_of
    notes = [("labels", f"{len(labels.rows)} rows, read as {labels.format_name}"), *labels.notes, *found.notes]
    if config.labels_background:
        videos = _background(catalog.videos, target, config)
        split_of_file = {video.file_source: split_of[video.source] for video in catalog.videos}
        split_of = {**split_of, **{video.source: split_of_file.get(video.file_source, "") for video in videos}}
        catalog = replace(
            catalog,
            videos=tuple(sorted((*catalog.videos, *videos), key=lambda video: video.source)),
            class_names=tuple(sorted({*catalog.class_names, *(video.class_name for video in videos)})),
        )
        notes.append(("background", f"{len(videos)} segments without a label, as {config.labels_background!r}"))
    if labels.has_splits and config.split.method == "auto" and not config.split.num_folds:
        config = _with_method(config, "labels")
    is_given = config.split.method == "labels"
    if labels.has_splits and not is_given:
        notes.append(("splits", "those of the labels are not used, because the options say otherwise"))
    given = given_by_labels(split_of, config.split) if is_given else None
    return Candidates(catalog, given, tuple(notes), config)


def _with_method(config: PackConfig, method: Literal["labels", "stratified"]) -> PackConfig:
    return config.model_copy(update={"split": config.split.model_copy(update={"method": method})})


def _background(videos: Sequence[Video], target: Location, config: PackConfig) -> list[Video]:
    earlier = read_plan(target, videos) if config.append else None
    return background_segments(videos, config.labels_background, config.seed, tuple(earlier.videos) if earlier else ())
