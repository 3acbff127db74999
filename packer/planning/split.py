"""Divides the videos into train, val and test, so that no group of videos is in two of them.

Lists, folders or an earlier pack decide first. The other videos are divided by the fractions, class by class.
scikit-learn's StratifiedGroupKFold was refused: it gives k equal folds, not shares, and a fold may lack a class.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from configs.pack import SplitConfig
from configs.section import UsageError
from packer.labels.splits import SPLITS
from packer.video.catalog import Catalog, Video


def split_videos(
    catalog: Catalog,
    groups: Sequence[int],
    config: SplitConfig,
    seed: int,
    decided: Mapping[str, str],
    settled: Collection[str] = (),
) -> list[str]:
    """Returns the split (`train`, `val` or `test`) of each video of the catalog; a pure function of its arguments.

    Args:
        catalog: The videos.
        groups: A group number per video.
        config: Which splits there are, and their shares.
        seed: Decides which groups go where.
        decided: Splits by source that stay. Any other video joins its group's split, or is divided by the fractions.
        settled: Classes that may lack in a split, because an earlier pack has them so and none of their videos is new.

    Raises:
        UsageError: A class has too few videos for all splits, or, if lists or folders decide, none to train on.
    """
    videos = catalog.videos
    if config.is_stratified:
        _check_sizes(catalog, groups, config, settled)
    parts: Sequence[str | None] = [decided.get(video.source) for video in videos]
    if config.num_folds:
        num_per_class = Counter(video.class_name for video in videos)
        share = {name: count / config.num_folds for name, count in num_per_class.items()}
        folds = _divide(videos, groups, parts, {str(fold): share for fold in range(config.num_folds)}, seed)
        parts = ["test" if fold == str(config.fold) else None for fold in folds]
    if None in parts:
        parts = _divide(videos, groups, parts, _wanted_counts(videos, parts, config), seed)
    splits = [part or "train" for part in parts]
    _check_classes(catalog, splits, _wanted_splits(config) if config.is_stratified else ("train",), settled)
    return splits


def find_leaks(videos: Sequence[Video], groups: Sequence[int], splits: Sequence[str]) -> tuple[str, ...]:
    """Returns, for each group in more than one split, one of its videos per split: `a/x.mp4 (train), ...`."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for video, group, split in zip(videos, groups, splits, strict=True):
        found[group].setdefault(split, video.source)
    return tuple(
        ", ".join(f"{source} ({split})" for split, source in sources.items())
        for sources in found.values()
        if len(sources) > 1
    )


def share_counts(num_per_class: Mapping[str, int], fraction: float) -> dict[str, int]:
    """Returns how many videos of each class a split gets: rounded down, at least 1, the rest by largest remainder.

    {"a": 10, "b": 10} at 0.15 gives {"a": 2, "b": 1}: together 3, which is 0.15 of 20.
    """
    if not fraction:
        return dict.fromkeys(num_per_class, 0)
    wanted = {name: count * fraction for name, count in num_per_class.items()}
    counts = {name: max(1, int(share)) for name, share in wanted.items()}
    missing = round(sum(wanted.values())) - sum(counts.values())
    by_remainder = sorted(wanted, key=lambda name: (counts[name] - wanted[name], name))
    for name in by_remainder[: max(0, missing)]:
        counts[name] += 1
    return counts


def _wanted_counts(
    videos: Sequence[Video], parts: Sequence[str | None], config: SplitConfig
) -> dict[str, Mapping[str, float]]:
    """Returns how many videos of each class each split should have, for the splits that undecided videos may join."""
    num_per_class = Counter(video.class_name for video in videos)
    shares = {"val": config.val_fraction}
    if config.is_stratified and not config.num_folds:
        shares["test"] = config.test_fraction
    wanted: dict[str, Mapping[str, float]] = {
        split: share_counts(num_per_class, share) for split, share in shares.items() if share
    }
    left = Counter(
        video.class_name for video, part in zip(videos, parts, strict=True) if part in {None, "train", *wanted}
    )
    train = {name: left[name] - sum(counts[name] for counts in wanted.values()) for name in num_per_class}
    return {"train": train, **wanted}


def _divide(
    videos: Sequence[Video],
    groups: Sequence[int],
    parts: Sequence[str | None],
    wanted: Mapping[str, Mapping[str, float]],
    seed: int,
) -> list[str]:
    """Returns `parts` with each None replaced: by the part that its group is in, otherwise by the neediest part."""
    place = {group: part for group, part in zip(groups, parts, strict=True) if part is not None and part in wanted}
    shares = _Shares(wanted)
    to_place: dict[int, list[Video]] = defaultdict(list)
    for video, group, part in zip(videos, groups, parts, strict=True):
        if part is None and group not in place:
            to_place[group].append(video)
        else:
            shares.add(place[group] if part is None else part, {video.class_name: 1})
    left = Counter(name for of_group in to_place.values() for name in {video.class_name for video in of_group})
    # Large groups first, so that small ones can even out the differences.
    for group in sorted(to_place, key=lambda group: (-len(to_place[group]), _rank(to_place[group][0], seed))):
        counts = Counter(video.class_name for video in to_place[group])
        place[group] = shares.neediest(counts, left)
        shares.add(place[group], counts)
        left.subtract(counts.keys())
    return [place[group] if part is None else part for group, part in zip(groups, parts, strict=True)]


class _Shares:
    """What each part still lacks of each class."""

    def __init__(self, wanted: Mapping[str, Mapping[str, float]]) -> None:
        self._wanted = wanted
        self._missing = {part: defaultdict(float, counts) for part, counts in wanted.items()}
        self._totals = {name: sum(of_part[name] for of_part in wanted.values()) for name in next(iter(wanted.values()))}
        self._missing_in_all = {part: float(sum(counts.values())) for part, counts in wanted.items()}

    def add(self, part: str, counts: Mapping[str, int]) -> None:
        if part in self._missing:
            for name, count in counts.items():
                self._missing[part][name] -= count
                self._missing_in_all[part] -= count

    def neediest(self, counts: Mapping[str, int], num_groups_left: Mapping[str, int]) -> str:
        """Returns the part that most lacks the classes of a group."""
        parts = list(self._wanted)
        for name in sorted(counts, key=lambda name: (-num_groups_left[name], name)):
            without = [part for part in self._wanted if self._missing[part][name] == self._wanted[part][name] > 0]
            if num_groups_left[name] <= len(without):  # the last groups of a class go to parts without that class
                parts = without
        return max(parts, key=lambda part: (self._need(part, counts), self._missing_in_all[part]))

    def _need(self, part: str, counts: Mapping[str, int]) -> float:
        return sum(count * self._missing[part][name] / self._totals[name] for name, count in counts.items())


def _rank(video: Video, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{video.source}".encode()).digest()


def _wanted_splits(config: SplitConfig) -> tuple[str, ...]:
    wanted = {"train": True, "val": bool(config.val_fraction), "test": bool(config.num_folds or config.test_fraction)}
    return tuple(split for split in SPLITS if wanted[split])


def _check_sizes(catalog: Catalog, groups: Sequence[int], config: SplitConfig, settled: Collection[str]) -> None:
    pairs = {(video.class_name, group) for video, group in zip(catalog.videos, groups, strict=True)}
    num_groups = Counter(name for name, _ in pairs)
    splits = _wanted_splits(config)
    needed = max(len(splits), config.num_folds)
    for name in catalog.class_names:
        if num_groups[name] < needed and name not in settled:
            what = f"{config.num_folds} folds" if config.num_folds >= len(splits) else " and ".join(splits)
            alike = "videos that look alike, " * config.group_similar
            way_out = "leave --split.group-similar out, " * config.group_similar
            raise UsageError(
                f"class {name!r} has too few videos ({num_groups[name]}; copies, videos of one recording, {alike}and "
                f"segments of one file count as one): {what} need at least {needed}; add videos, {way_out}leave the "
                "class out, or set a split's fraction to 0"
            )


def _check_classes(catalog: Catalog, splits: Sequence[str], wanted: Sequence[str], settled: Collection[str]) -> None:
    got = {(video.class_name, split) for video, split in zip(catalog.videos, splits, strict=True)}
    for name in catalog.class_names:
        for split in wanted:
            if (name, split) not in got and name not in settled:
                alike = [other for other in catalog.class_names if other != name and spelling(other) == spelling(name)]
                hint = ""
                if alike:  # in ASCII: names whose accents are coded in two ways look the same
                    hint = f"{name!a} may be the same class as {alike[0]!a}, then give both one name; otherwise "
                raise UsageError(
                    f"class {name!r} has no video for {split}: {hint}it has too few videos or groups, or the given "
                    "splits leave it out; add videos, leave the class out, or remove the copies of its videos in "
                    "other classes"
                )


def spelling(class_name: str) -> str:
    """Returns what class names have in common that differ in case, spaces or the form of their accents alone."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", class_name).casefold())
    return re.sub(r"[\s_-]+", "", text)
