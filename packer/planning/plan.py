"""Decides which shard holds which video, before any video is decoded: a pure function of the catalog and the recipe."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from configs.pack import PackRecipe, ShardConfig
from configs.section import UsageError
from packer.labels.splits import SPLITS
from packer.planning.alike import mark_alike
from packer.planning.group import content_digests, video_groups
from packer.planning.split import find_leaks, split_videos
from packer.video.catalog import Catalog, Video
from packer.video.clip import library_versions
from packer.video.segment import Segment

_NUM_NAMED = 5
_Content = tuple[str, Segment | None]
"""sha256 of a file, and the part of it: two segments of one file differ in content."""


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
    """Videos that are not packed because of another one of equal content: by their source, the source of the other. If
    both have one class, the other is packed; if not, at most the one that an earlier pack holds."""
    contradictions: tuple[str, ...] = ()
    """Videos of equal content and different classes, one text for each content."""

    @property
    def videos(self) -> Iterator[Video]:
        """The planned videos of all shards, in order."""
        return (video for shard in self.shards for video in shard.videos)

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
    hashes: Mapping[str, Sequence[str]] | None = None,
) -> Plan:
    """Returns the plan of a pack; if it extends an earlier plan, that plan's shards stay and come first.

    Args:
        catalog: The videos, including those of the earlier plan.
        recipe: What decides the bytes.
        given: Splits by source, from lists or folders; an empty split is train, of which a part becomes val. None: the
            fractions decide.
        earlier: The plan that is extended.
        known_sha256: Digests by source, of videos that need not be read again.
        hashes: Hashes of frames by source, of the videos that are kept together if they look alike.

    Raises:
        UsageError: A class cannot be in every split that it must be in, a group would be in two, or two videos would
            have one key.
    """
    old = {video.source: shard.split for shard in earlier.shards for video in shard.videos} if earlier else {}
    _check_keys(catalog.videos)
    digests = content_digests(catalog.videos, known_sha256 or {})
    groups = video_groups(catalog.videos, recipe.split.group_regex, digests, by_looks=False)
    decided = {source: split for source, split in (given or {}).items() if split} | old
    if hashes:
        catalog = replace(catalog, videos=tuple(mark_alike(catalog.videos, groups, hashes, decided)))
    together = video_groups(catalog.videos, recipe.split.group_regex, digests) if recipe.split.group_similar else groups
    of_new = {video.class_name for video in catalog.videos if video.source not in old}
    settled = set(earlier.class_names) - of_new if earlier else ()
    split_of = split_videos(catalog, together, recipe.split, recipe.seed, decided, settled)
    leaks = find_leaks(catalog.videos, groups, split_of)
    if not recipe.split.is_official:
        _check_leaks(catalog.videos, groups, split_of, old)
    new = [(video, split) for video, split in zip(catalog.videos, split_of, strict=True) if video.source not in old]
    shards = _shards(new, earlier.shards if earlier else (), recipe)
    copies = dict(earlier.copies) if earlier else {}
    if recipe.duplicates == "reject":
        copies |= {s: other for s, other in find_copies(catalog.videos, digests, old).items() if s not in old}
    contradictions = find_contradictions(catalog.videos, digests)
    return Plan(recipe, library_versions(), catalog.class_names, shards, leaks, copies, contradictions)


def extend_plan(
    earlier: Plan,
    catalog: Catalog,
    given: Mapping[str, str] | None,
    known_sha256: Mapping[str, str],
    hashes: Mapping[str, Sequence[str]] | None = None,
) -> Plan:
    """Returns the earlier plan with more shards, for the new videos; new classes come last.

    Raises:
        UsageError: As for `make_plan`, or the earlier plan uses folds.
    """
    if earlier.recipe.split.num_folds:
        raise UsageError("a pack with split.num_folds takes no more videos, because its folds would change: pack again")
    old = list(earlier.videos)
    sources = {video.source for video in old}
    new = [video for video in catalog.videos if video.source not in sources]
    # Videos of a class folder may have been relabelled, all of them: then it is no class any more.
    new_names = sorted({video.class_name for video in new} - set(earlier.class_names))
    both = replace(
        catalog,
        videos=tuple(sorted([*old, *new], key=lambda video: video.source)),
        class_names=(*earlier.class_names, *new_names),
    )
    return make_plan(both, earlier.recipe, given, earlier, known_sha256, hashes)


def move_videos(plan: Plan, moved: Mapping[str, tuple[Video, str]]) -> Plan:
    """Returns the plan with some videos taken out of their shards and put into new ones, the last of their splits.

    Args:
        plan: The plan.
        moved: By source, the video as it is now and its split.
    """
    kept = [
        replace(shard, videos=tuple(video for video in shard.videos if video.source not in moved))
        for shard in plan.shards
    ]
    copies = {source: other for source, other in plan.copies.items() if not {source, other} & moved.keys()}
    return replace(plan, shards=_shards(list(moved.values()), kept, plan.recipe), copies=copies)


def find_contradictions(videos: Sequence[Video], digests: Mapping[str, str]) -> tuple[str, ...]:
    """Returns, for each content that videos of several classes have, those videos: `jump/x.mp4, run/y.mp4`."""
    found: dict[_Content, list[Video]] = defaultdict(list)
    for video in videos:
        if digest := digests.get(video.source):
            found[digest, video.segment].append(video)
    return tuple(
        ", ".join(video.source for video in alike)
        for alike in found.values()
        if len({video.class_name for video in alike}) > 1
    )


def _shards(
    new: Sequence[tuple[Video, str]], earlier: Sequence[PlannedShard], recipe: PackRecipe
) -> tuple[PlannedShard, ...]:
    """Returns the earlier shards and the shards of the new videos, split by split."""
    shards: list[PlannedShard] = []
    for split in SPLITS:
        kept = [shard for shard in earlier if shard.split == split]
        of_split = [video for video, name in new if name == split]
        of_split.sort(key=lambda video: _place(video, recipe.seed))
        shards += [*kept, *_cut(of_split, split, recipe.shards, len(kept))]
    return tuple(shards)


def _place(video: Video, seed: int) -> tuple[bytes, tuple[Fraction, ...]]:
    # A hash instead of a shuffle: one video more or less hardly moves the others. The segments of a file stay together,
    # so that it is read once; those that end first come first, so that few wait in memory.
    digest = hashlib.sha256(f"{seed}/{video.file_source}".encode()).digest()
    return digest, video.segment.order if video.segment else ()


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


def find_copies(videos: Sequence[Video], digests: Mapping[str, str], packed: Container[str]) -> dict[str, str]:
    """Returns, by the source of each copy, the source of its original: a packed video, or the first by path.

    Contents with several classes have no original: each such video names one of another class.
    """
    class_of = {video.source: video.class_name for video in videos}
    segment_of = {video.source: video.segment for video in videos}
    alike: dict[_Content, list[str]] = defaultdict(list)
    for source in sorted(digests, key=lambda source: (source not in packed, source)):
        alike[digests[source], segment_of[source]].append(source)
    copies = {}
    for sources in alike.values():
        for source in sources:
            others = [other for other in sources if class_of[other] != class_of[source]] or sources[:1]
            if others[0] != source:
                copies[source] = others[0]
    return copies


def _check_leaks(videos: Sequence[Video], groups: Sequence[int], splits: Sequence[str], packed: Container[str]) -> None:
    # What an earlier pack separated stays so: only a group with a new video can still be kept together.
    is_new = {group for video, group in zip(videos, groups, strict=True) if video.source not in packed}
    of_new = [item for item in zip(videos, groups, splits, strict=True) if item[1] in is_new]
    leaks = find_leaks(*zip(*of_new, strict=True)) if of_new else ()
    if not leaks:
        return
    more = f"; and {len(leaks) - _NUM_NAMED} more" * (len(leaks) > _NUM_NAMED)
    raise UsageError(
        f"videos of one recording, or of equal content, would be in two splits: {'; '.join(leaks[:_NUM_NAMED])}{more}: "
        "move or remove them; if only their names are alike, set split.group_regex"
    )


def _check_keys(videos: Sequence[Video]) -> None:
    (key, count), *_ = Counter(video.key for video in videos).most_common(1)
    if count > 1:
        same = " and ".join(video.source for video in videos if video.key == key)
        raise UsageError(f"{same} would share the key {key}: rename one of them")
