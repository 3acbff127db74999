"""Gives a split another video of a class, out of train, if none of those that it was given can be read."""

import hashlib
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass

from packer.planning.group import content_digests, video_groups
from packer.planning.plan import Plan, PlannedShard, move_videos
from packer.video.catalog import Video


@dataclass(frozen=True)
class Spare:
    """A plan in which a group of videos has moved out of train."""

    plan: Plan
    note: str
    """What has moved, and why, for the user."""


def replace_from_train(plan: Plan, done: Container[str], lacking: Sequence[tuple[str, str]]) -> Spare | None:
    """Returns the plan in which one split gets another video of a class; None if there is none to give.

    Whole groups move, the smallest ones of the class first: as many as the split has unreadable videos of the class,
    and at most half of what train has. The choice depends on the plan alone, so that a pack that is stopped and
    continued comes out the same.

    Args:
        plan: The plan.
        done: Names of the shards that are packed; what they hold stays.
        lacking: The classes and the splits that have no readable video of them.
    """
    if not lacking:
        return None
    of_train = [(video, shard) for shard in plan.shards if shard.split == "train" for video in shard.videos]
    videos = [video for video, _ in of_train if video.path]
    packed = {video.source for video, shard in of_train if shard.name in done}
    groups: dict[int, list[Video]] = defaultdict(list)
    numbers = video_groups(videos, plan.recipe.split.group_regex, content_digests(videos, {}))
    for video, number in zip(videos, numbers, strict=True):
        groups[number].append(video)
    for class_name, split in lacking:
        of_class = [group for group in groups.values() if any(video.class_name == class_name for video in group)]
        free = [group for group in of_class if not any(v.source in packed or v.source in plan.copies for v in group)]
        free.sort(key=lambda group: (len(group), _rank(group[0], plan.recipe.seed)))
        num_lost = sum(_num_of(shard, class_name) for shard in plan.shards if shard.split == split)
        chosen = [video for group in free[: min(max(1, num_lost), len(of_class) // 2)] for video in group]
        if chosen:
            names = ", ".join(video.source for video in chosen)
            note = f"{names} went from train to {split}, which had no readable video of class {class_name!r}"
            return Spare(move_videos(plan, {video.source: (video, split) for video in chosen}), note)
    return None


def _num_of(shard: PlannedShard, class_name: str) -> int:
    return sum(video.class_name == class_name for video in shard.videos)


def _rank(video: Video, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{video.source}".encode()).digest()
