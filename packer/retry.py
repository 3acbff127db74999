"""Tells which planned videos may have become packable since they failed, and plans those once more.

Nothing that was packed moves: a video that is tried again leaves the list of the shard that rejected it and comes into
a new shard of the same split. In a shard that is not written yet, a file that has changed is planned as it is now.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError

from packer.planning.group import content_digest, content_digests, video_groups
from packer.planning.plan import Plan, PlannedShard, find_contradictions, move_videos
from packer.shards.manifest import RejectedRow, read_rejected
from packer.shards.shard import has_record, stored_record
from packer.storage.location import Location, is_url
from packer.video.catalog import Video

CHANGED = "changed"
"""Reason of a video whose file changed while it was read."""
_UNREADABLE = "unreadable"
_OF_THE_MACHINE = frozenset({"timeout", "out_of_memory", "decoder_crash"})
"""Reasons that may lie in a busy machine; to find out takes as long as it took before, so only --append does."""


def as_they_are_now(plan: Plan, target: Location, found: Mapping[str, Video]) -> Plan:
    """Returns the plan with the present sizes of files that have changed, in shards that are not written yet."""
    changed: set[str] = set()
    shards = []
    for shard in plan.shards:
        lost = {video.source for video in shard.videos if not video.path and video.source in found}
        if lost and not has_record(target, shard):
            changed |= lost
            videos = tuple(found[video.source] if video.source in lost else video for video in shard.videos)
            shard = replace(shard, videos=videos)
        shards.append(shard)
    copies = {source: other for source, other in plan.copies.items() if not {source, other} & changed}
    return replace(plan, shards=tuple(shards), copies=copies)


def rejected_rows(target: Location, plan: Plan, is_complete: bool) -> list[RejectedRow]:
    """Returns the planned videos that gave no clip, copies left out."""
    sources = {video.source: shard for shard in plan.shards for video in shard.videos}
    if is_complete:
        rows = read_rejected(target)
    else:
        rows = [row for shard in plan.shards if has_record(target, shard) for row in _rejected_of(target, shard)]
    return [row for row in rows if row.split and row.source in sources and row.source not in plan.copies]


def find_retries(
    rows: Sequence[RejectedRow], plan: Plan, found: Mapping[str, Video], with_replaced: bool, with_machine: bool
) -> dict[str, Video]:
    """Returns, by source, the rejected videos that may be packable now.

    Args:
        rows: The rejected videos.
        plan: The plan.
        found: The videos of the data folder, by source.
        with_replaced: Also those whose bytes have changed since; otherwise those that failed for want of access, or
            because they were being written.
        with_machine: Also those that failed by time, memory or a crash.
    """
    num_bytes = {video.source: video.num_bytes for video in plan.videos}
    digests: dict[str, str] = {}
    retries = {}
    for row in rows:
        video = found.get(row.source)
        if video is not None and (
            row.reason == CHANGED
            or (row.reason == _UNREADABLE and _is_readable(video))
            or (with_machine and row.reason in _OF_THE_MACHINE)
            or (with_replaced and _is_replaced(row, video, num_bytes[row.source], digests))
        ):
            retries[row.source] = video
    return retries


def plan_again(plan: Plan, retries: Mapping[str, Video], known_sha256: Mapping[str, str]) -> Plan:
    """Returns the plan with the videos in new shards of their splits, or of the split that their group is in.

    Args:
        plan: The plan.
        retries: The videos, by source; of those that are no copies.
        known_sha256: Digests by source, of packed videos.
    """
    readable_of = {video.source: video for video in plan.videos if video.path}
    freed = {  # a copy of a video with other bytes is no copy any more
        source
        for source, other in plan.copies.items()
        if other in retries
        and (source not in readable_of or content_digest(readable_of[source]) != content_digest(retries[other]))
    }
    old = [(video, shard.split) for shard in plan.shards for video in shard.videos]
    moved = {video.source for video, _ in old if video.source in retries or (video.source in freed and video.path)}
    videos = [retries.get(video.source, video) for video, _ in old]
    readable = [video for video in videos if video.path or video.source in known_sha256]
    digests = content_digests(readable, {s: d for s, d in known_sha256.items() if s not in moved})
    groups = video_groups(videos, plan.recipe.split.group_regex, digests)
    splits_of_group: dict[int, set[str]] = defaultdict(set)
    for (video, split), group in zip(old, groups, strict=True):
        if video.source not in moved:
            splits_of_group[group].add(split)
    places = {}
    for video, (_, split), group in zip(videos, old, groups, strict=True):
        if video.source in moved:
            others = splits_of_group[group]
            places[video.source] = (video, min(others) if others and split not in others else split)
    again = move_videos(plan, places)
    still = {source: other for source, other in plan.copies.items() if other in retries and source not in freed}
    return replace(again, copies={**again.copies, **still}, contradictions=find_contradictions(videos, digests))


def _rejected_of(target: Location, shard: PlannedShard) -> Iterator[RejectedRow]:
    sources = {video.source for video in shard.videos}
    try:
        rejected = stored_record(target, shard).rejected
    except ValidationError:  # damaged: the shard is packed again as it is
        return
    yield from (row for row in rejected if row.source in sources)


def _is_readable(video: Video) -> bool:
    # What an address lists can be asked for; a local file may be protected, or a link that leads nowhere.
    return is_url(video.path) or os.access(video.path, os.R_OK)


def _is_replaced(row: RejectedRow, video: Video, num_bytes: int, digests: dict[str, str]) -> bool:
    if row.reason == _UNREADABLE:
        return False
    if video.num_bytes != num_bytes:
        return True
    if video.path not in digests:  # a file with many rejected segments is read once
        digests[video.path] = content_digest(video)
    return row.source_sha256 != digests[video.path]
