"""Decides, before any video is decoded, which shard holds which video: a pure function of catalog, recipe and seed."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise

from configs.load import UsageError
from configs.pack import PackRecipe, ShardConfig
from packer.catalog import Catalog, Video
from packer.sample import sample_key
from packer.split import SPLITS, split_videos


@dataclass(frozen=True)
class PlannedShard:
    """The videos of one tar, in the order of the tar; a rejected one leaves a hole and shifts nothing."""

    name: str
    split: str
    videos: tuple[Video, ...]


@dataclass(frozen=True)
class Plan:
    """All shards of a pack, and what they depend on."""

    class_names: tuple[str, ...]
    shards: tuple[PlannedShard, ...]
    versions: Mapping[str, str]
    fingerprint: str
    """Equal for equal plans: a stopped pack is continued only under the same one."""


def make_plan(catalog: Catalog, recipe: PackRecipe) -> Plan:
    """Returns the plan of a pack.

    Raises:
        UsageError: A class has too few videos for the splits, or two videos would have one key.
    """
    _check_keys(catalog.videos)
    split_of = split_videos(catalog, recipe.split, recipe.seed)
    shards: list[PlannedShard] = []
    for split in SPLITS:
        of_split = [video for video, name in zip(catalog.videos, split_of, strict=True) if name == split]
        # By a hash rather than a shuffle: a video more or less hardly moves the others.
        of_split.sort(key=lambda video: hashlib.sha256(f"{recipe.seed}/{video.source}".encode()).digest())
        shards += _cut(of_split, split, recipe.shards)
    versions = {name: version(name) for name in ("clipstream", "av", "simplejpeg")}
    return Plan(catalog.class_names, tuple(shards), versions, _fingerprint(shards, recipe, versions))


def _cut(videos: Sequence[Video], split: str, config: ShardConfig) -> list[PlannedShard]:
    """Returns the videos in shards whose lengths differ by at most one."""
    num_shards = -(-len(videos) // config.max_samples)
    if split == "train":
        num_shards = max(num_shards, min(config.min_train_shards, len(videos)))
    ends = [len(videos) * number // num_shards for number in range(num_shards + 1)] if num_shards else []
    return [
        PlannedShard(f"{split}-{number:06d}", split, tuple(videos[start:end]))
        for number, (start, end) in enumerate(pairwise(ends))
    ]


def _fingerprint(shards: Sequence[PlannedShard], recipe: PackRecipe, versions: Mapping[str, str]) -> str:
    placed = [[shard.name, [[video.source, video.num_bytes] for video in shard.videos]] for shard in shards]
    text = json.dumps([recipe.model_dump(mode="json"), versions, placed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_keys(videos: Sequence[Video]) -> None:
    (key, count), *_ = Counter(map(sample_key, videos)).most_common(1)
    if count > 1:
        same = " and ".join(video.source for video in videos if sample_key(video) == key)
        raise UsageError(f"{same} would share the key {key}: rename one of them")
