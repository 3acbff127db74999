"""Divides the videos into train, val and test: stratified by class, seeded, files of equal content kept together.

A class's share of each split is rounded so that the whole split has its share, with at least one video of each class in
each split. Which videos those are, scikit-learn's seeded shuffles decide.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from configs.load import UsageError
from configs.pack import SplitConfig
from packer.catalog import Catalog, Video

SPLITS = ("train", "val", "test")


def content_groups(videos: Sequence[Video]) -> list[int]:
    """Returns a group number per video, in order of first appearance; files of equal content share one.

    Only files of equal size are read.
    """
    by_size = Counter(video.num_bytes for video in videos)
    numbers: dict[str, int] = {}
    contents = (
        _digest(video.path) or video.source if video.num_bytes and by_size[video.num_bytes] > 1 else video.source
        for video in videos
    )
    return [numbers.setdefault(content, len(numbers)) for content in contents]


def _digest(path: str) -> str | None:
    try:
        with Path(path).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:
        return None


def split_videos(catalog: Catalog, config: SplitConfig, seed: int) -> list[str]:
    """Returns the split (`train`, `val` or `test`) of each video of the catalog; a pure function of its arguments.

    Raises:
        UsageError: A class has too few videos to be in every split.
    """
    groups = content_groups(catalog.videos)
    members: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        members[group].append(position)
    # A group that spans classes counts for the class of its first video.
    labels = [catalog.videos[positions[0]].class_name for positions in members.values()]
    _check_sizes(catalog.class_names, Counter(labels), config)
    remaining = list(range(len(labels)))
    split_of = dict.fromkeys(remaining, "train")
    if config.num_folds:
        test = _fold(labels, [len(positions) for positions in members.values()], config, seed)
    else:
        test = _share(remaining, labels, config.test_fraction, seed)
    val_fraction = config.val_fraction * len(labels) / (len(labels) - len(test))
    remaining = [group for group in remaining if group not in test]
    val = _share(remaining, labels, val_fraction, seed + 1)
    split_of.update(dict.fromkeys(test, "test") | dict.fromkeys(val, "val"))
    splits = [split_of[group] for group in groups]
    _check_classes(catalog, splits, config)
    return splits


def _share(groups: Sequence[int], labels: Sequence[str], fraction: float, seed: int) -> set[int]:
    """Returns the groups of a split that is to hold `fraction` of each class."""
    if not fraction:
        return set()
    by_class: dict[str, list[int]] = defaultdict(list)
    for group in groups:
        by_class[labels[group]].append(group)
    counts = share_counts({name: len(of_class) for name, of_class in by_class.items()}, fraction)
    return {
        group
        for name, of_class in by_class.items()
        for group in train_test_split(of_class, test_size=counts[name], random_state=seed)[1]
    }


def share_counts(num_per_class: Mapping[str, int], fraction: float) -> dict[str, int]:
    """Returns how many of each class a split gets: rounded down, at least 1, the rest to the largest remainders.

    {"a": 10, "b": 10} at 0.15 gives {"a": 2, "b": 1}, together the 3 that 0.15 of 20 are.
    """
    wanted = {name: count * fraction for name, count in num_per_class.items()}
    counts = {name: max(1, int(share)) for name, share in wanted.items()}
    missing = round(sum(wanted.values())) - sum(counts.values())
    by_remainder = sorted(wanted, key=lambda name: (counts[name] - wanted[name], name))
    for name in by_remainder[: max(0, missing)]:
        counts[name] += 1
    return counts


def _fold(labels: Sequence[str], sizes: Sequence[int], config: SplitConfig, seed: int) -> set[int]:
    """Returns the groups of fold `config.fold`."""
    group_of = np.repeat(np.arange(len(labels)), sizes)
    label_of = np.repeat(np.array(labels), sizes)
    folds = StratifiedGroupKFold(config.num_folds, shuffle=True, random_state=seed).split(group_of, label_of, group_of)
    test = list(folds)[config.fold][1]
    return {int(group) for group in group_of[test]}


def _wanted_splits(config: SplitConfig) -> tuple[str, ...]:
    wanted = {"train": True, "val": bool(config.val_fraction), "test": bool(config.num_folds or config.test_fraction)}
    return tuple(split for split in SPLITS if wanted[split])


def _check_sizes(class_names: Sequence[str], num_groups: Mapping[str, int], config: SplitConfig) -> None:
    splits = _wanted_splits(config)
    needed = max(len(splits), config.num_folds)
    for name in class_names:
        if num_groups.get(name, 0) < needed:
            what = f"{config.num_folds} folds" if config.num_folds >= len(splits) else " and ".join(splits)
            raise UsageError(
                f"class {name!r} has too few videos ({num_groups.get(name, 0)} of different content): {what} need at "
                f"least {needed}; add videos, remove its folder, or set a split's fraction to 0"
            )


def _check_classes(catalog: Catalog, splits: Sequence[str], config: SplitConfig) -> None:
    got = {(video.class_name, split) for video, split in zip(catalog.videos, splits, strict=True)}
    for name in catalog.class_names:
        for split in _wanted_splits(config):
            if (name, split) not in got:
                raise UsageError(
                    f"class {name!r} has no video left for {split}: it has too few, or its copies in other classes "
                    "hold them together; add videos or remove the copies"
                )
