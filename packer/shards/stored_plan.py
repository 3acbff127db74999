"""Stores the plan of a pack in its target, and reads it again.

A stored plan binds the target: a stopped pack continues as it began, and a command with other videos, settings or
versions is refused with a message that says what differs.
"""

from collections.abc import Sequence

from pydantic import ValidationError

from configs.pack import PackRecipe
from configs.section import Section, UsageError
from packer.planning.plan import Plan, PlannedShard
from packer.storage.files import file_sha256, write_atomically
from packer.storage.location import Location
from packer.storage.target_lock import RECORDS
from packer.video.catalog import Video

_PLAN = "plan.json"


class _StoredShard(Section):
    name: str
    split: str
    videos: tuple[tuple[str, str, int], ...]
    """Source, class name and number of bytes of each."""


class _StoredPlan(Section):
    recipe: PackRecipe
    versions: dict[str, str]
    class_names: tuple[str, ...]
    shards: tuple[_StoredShard, ...]
    leaks: tuple[str, ...]
    copies: dict[str, str]
    contradictions: tuple[str, ...] = ()
    """Empty also in plans from before they were looked for."""


def plan_sha256(target: Location) -> str:
    """Returns the sha256 of the stored plan; empty if there is none."""
    try:
        return file_sha256(target / RECORDS / _PLAN)
    except (FileNotFoundError, NotADirectoryError):
        return ""


def write_plan(target: Location, plan: Plan) -> None:
    """Binds the target to a plan."""
    shards = [
        _StoredShard(
            name=shard.name,
            split=shard.split,
            videos=tuple((video.source, video.class_name, video.num_bytes) for video in shard.videos),
        )
        for shard in plan.shards
    ]
    stored = _StoredPlan(
        recipe=plan.recipe,
        versions=dict(plan.versions),
        class_names=plan.class_names,
        shards=tuple(shards),
        leaks=plan.leaks,
        copies=dict(plan.copies),
        contradictions=plan.contradictions,
    )
    with write_atomically(target / RECORDS / _PLAN) as file:
        file.write(stored.model_dump_json().encode())


def read_plan(target: Location, videos: Sequence[Video]) -> Plan | None:
    """Returns the plan that a target is bound to; None if it is bound to none.

    Args:
        target: The folder of the pack.
        videos: The videos of the data folder. A planned video that is gone from it, or whose size changed, gets an
            empty path.

    Raises:
        UsageError: The plan is damaged, or another version wrote it.
    """
    path = target / RECORDS / _PLAN
    try:
        stored = _StoredPlan.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if any((target / RECORDS).glob("*-*.json")):
            raise UsageError(f"{target} has lost the plan of its shards: delete it to pack anew") from None
        return None
    except ValidationError as error:
        raise UsageError(f"{path} is damaged: delete {target} to pack anew") from error
    paths = {(video.source, video.num_bytes): video.path for video in videos}
    shards = tuple(
        PlannedShard(
            shard.name,
            shard.split,
            tuple(Video(paths.get((source, size), ""), source, name, size) for source, name, size in shard.videos),
        )
        for shard in stored.shards
    )
    return Plan(
        stored.recipe,
        stored.versions,
        stored.class_names,
        shards,
        stored.leaks,
        stored.copies,
        stored.contradictions,
    )
