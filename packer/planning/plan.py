"""Decides which shard holds which video, before any video is decoded: a pure function of the catalog and the recipe."""

import hashlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from configs.pack import PackRecipe, ShardConfig
from configs.section import UsageError
from packer.planning.group import content_digests, video_groups
from packer.planning.split import SPLITS, find_leaks, split_videos
from packer.video.catalog import Catalog, Video
from packer.video.clip import library_versions

_NUM_NAMED = 5


@dataclass(frozen=True)
class PlannedShard:
    """The videos of one tar, in order; a video that is rejected later does not move the others to another shard."""

    name: str
    split: str
    videos: tuple[Video, ...]


@dataclass(frozen=True)
class Plan:
    """All shards of a pack and what they depend on; a stopped pack is continued only with an equal plan."""

    recipe: PackRecipe
    versions: Mapping[str, str]
    """Versions of this package and of the libraries that decide the bytes."""
    class_names: tuple[str, ...]
    shards: tuple[PlannedShard, ...]
    leaks: tuple[str, ...]
    """Groups of videos that official lists put into more than one split."""
    copies: Mapping[str, str]
    """Videos that are not packed because they are copies: by their source, the source of the packed one."""

    @property
    def num_videos(self) -> int:
        """Planned videos of all shards."""
        return sum(len(shard.videos) for shard in self.shards)


def make_plan(
    catalog: Catalog,
    recipe: PackRecipe,
    given: Mapping[str, str] | None = None,
    earlier: Plan | None = None,
    known_sha256: Mapping[str, str] | None = None,
) -> Plan:
    """Returns the plan of a pack; if it extends an earlier plan, that plan's shards stay and come first.

    Args:
        catalog: The videos, including those of the earlier plan.
        recipe: What decides the bytes.
        given: Splits by source, from lists or folders; an empty split is train, of which a part becomes val. None: the
            fractions decide.
        earlier: The plan that is extended.
        known_sha256: Digests by source, of videos that need not be read again.

    Raises:
        UsageError: A class cannot be in every split, a group would be in two, or two videos would have one key.
    """
    old = {video.source: shard.split for shard in earlier.shards for video in shard.videos} if earlier else {}
    _check_keys(catalog.videos)
    digests = content_digests(catalog.videos, known_sha256 or {})
    groups = video_groups(catalog.videos, recipe.split.group_regex, digests)
    decided = {source: split for source, split in (given or {}).items() if split} | old
    split_of = split_videos(catalog, groups, recipe.split, recipe.seed, decided)
    leaks = find_leaks(catalog.videos, groups, split_of)
    if leaks and not recipe.split.is_official:
        raise UsageError(_leak_sentence(leaks))
    new = [(video, split) for video, split in zip(catalog.videos, split_of, strict=True) if video.source not in old]
    shards = _shards(new, earlier.shards if earlier else (), recipe)
    copies = dict(earlier.copies) if earlier else {}
    if recipe.duplicates == "reject":
        copies |= {source: first for source, first in _copies(digests, old).items() if source not in old}
    return Plan(recipe, library_versions(), catalog.class_names, shards, leaks, copies)


def extend_plan(
    earlier: Plan,
    catalog: Catalog,
    given: Mapping[str, str] | None,
    known_sha256: Mapping[str, str],
) -> Plan:
    """Returns the earlier plan with more shards, for the new videos; new classes come last.

    Raises:
        UsageError: As for `make_plan`, or the earlier plan uses folds.
    """
    if earlier.recipe.split.num_folds:
        raise UsageError("a pack with split.num_folds takes no more videos, because its folds would change: pack again")
    old = [video for shard in earlier.shards for video in shard.videos]
    sources = {video.source for video in old}
    videos = sorted(
        [*old, *(video for video in catalog.videos if video.source not in sources)], key=lambda video: video.source
    )
    new_names = [name for name in catalog.class_names if name not in earlier.class_names]
    both = replace(catalog, videos=tuple(videos), class_names=(*earlier.class_names, *new_names))
    return make_plan(both, earlier.recipe, given, earlier, known_sha256)


def _shards(
    new: Sequence[tuple[Video, str]], earlier: Sequence[PlannedShard], recipe: PackRecipe
) -> tuple[PlannedShard, ...]:
    """Returns the earlier shards and the shards of the new videos, split by split."""
    shards: list[PlannedShard] = []
    for split in SPLITS:
        kept = [shard for shard in earlier if shard.split == split]
        of_split = [video for video, name in new if name == split]
        # A hash instead of a shuffle: one video more or less hardly moves the others.
        of_split.sort(key=lambda video: hashlib.sha256(f"{recipe.seed}/{video.source}".encode()).digest())
        shards += [*kept, *_cut(of_split, split, recipe.shards, len(kept))]
    return tuple(shards)


def _cut(videos: Sequence[Video], split: str, config: ShardConfig, num_earlier: int) -> list[PlannedShard]:
    """Returns shards whose lengths differ by at most one; their numbers continue after the earlier shards."""
    num_shards = -(-len(videos) // config.max_samples)
    if split == "train" and not num_earlier:
        num_shards = max(num_shards, min(config.min_train_shards, len(videos)))
    ends = [len(videos) * number // num_shards for number in range(num_shards + 1)] if num_shards else []
    return [
        PlannedShard(f"{split}-{number:06d}", split, tuple(videos[start:end]))
        for number, (start, end) in enumerate(pairwise(ends), start=num_earlier)
    ]


def _copies(digests: Mapping[str, str], packed: Container[str]) -> dict[str, str]:
    """Returns, by the source of each copy, the source of its original: a packed video, or the first by path."""
    first: dict[str, str] = {}
    for source in sorted(digests, key=lambda source: (source not in packed, source)):
        first.setdefault(digests[source], source)
    return {source: first[digest] for source, digest in digests.items() if first[digest] != source}


def _leak_sentence(leaks: Sequence[str]) -> str:
    more = f"; and {len(leaks) - _NUM_NAMED} more" * (len(leaks) > _NUM_NAMED)
    return (
        f"videos of one recording, or of equal content, would be in two splits: {'; '.join(leaks[:_NUM_NAMED])}{more}: "
        "move or remove them; if only their names are alike, set split.group_regex"
    )


def _check_keys(videos: Sequence[Video]) -> None:
    (key, count), *_ = Counter(video.key for video in videos).most_common(1)
    if count > 1:
        same = " and ".join(video.source for video in videos if video.key == key)
        raise UsageError(f"{same} would share the key {key}: rename one of them")
