"""Stores the plan of a pack in its target, and reads it again.

A stored plan binds the target: a stopped pack continues as it began, and a command with other videos, settings or
versions is refused with a message that says what differs.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pydantic import Field, ValidationError

from configs.pack import PackRecipe
from configs.section import Section, UsageError
from packer.planning.plan import Plan, PlannedShard
from packer.storage.commit import current
from packer.storage.files import file_sha256, write_atomically
from packer.storage.location import Location
from packer.storage.target_lock import RECORDS
from packer.video.catalog import Video
from packer.video.segment import Segment, text_of

PLAN = f"{RECORDS}/plan.json"


class _StoredShard(Section):
    name: str
    split: str
    videos: tuple[tuple[str, str, int], ...]
    """Source, class name and number of bytes of each."""


class _StoredSegment(Section):
    start: str
    """An exact number, such as 12.5 or 1001/300."""
    end: str | None
    unit: Literal["seconds", "frames"]


class _StoredPlan(Section):
    recipe: PackRecipe
    versions: dict[str, str]
    class_names: tuple[str, ...]
    shards: tuple[_StoredShard, ...]
    leaks: tuple[str, ...]
    copies: dict[str, str]
    contradictions: tuple[str, ...] = ()
    """Empty also in plans from before they were looked for."""
    segments: dict[str, _StoredSegment] = Field(default_factory=dict)
    """By source, of the videos that are segments; left out if there are none, as in plans from before there were."""
    groups: dict[str, str] = Field(default_factory=dict)
    """By source, of the videos whose labels state a group; left out likewise."""
    alike: dict[str, str] = Field(default_factory=dict)
    """By source, see `Video.alike`; left out likewise."""


class PlanNotes(Section, extra="ignore"):
    """The part of a stored plan that says what its videos have in common; of 100,000 videos, it is read in no time."""

    groups: dict[str, str] = Field(default_factory=dict)
    """The groups that labels state, by source."""
    alike: dict[str, str] = Field(default_factory=dict)
    """By source, see `Video.alike`."""
    contradictions: tuple[str, ...] = ()
    """See `Plan.contradictions`."""


def plan_sha256(target: Location) -> str:
    """Returns the sha256 of the stored plan; empty if there is none."""
    try:
        return file_sha256(current(target, PLAN))
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
        segments={video.source: _stored(video.segment) for video in plan.videos if video.segment},
        groups={video.source: video.group for video in plan.videos if video.group},
        alike={video.source: video.alike for video in plan.videos if video.alike},
    )
    absent = {name for name in ("segments", "groups", "alike") if not getattr(stored, name)}
    with write_atomically(target / PLAN) as file:
        file.write(stored.model_dump_json(exclude=absent).encode())


def read_plan_notes(target: Location) -> PlanNotes:
    """Returns what the stored plan says about its videos; nothing if the plan is missing or damaged."""
    try:
        return PlanNotes.model_validate_json(current(target, PLAN).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return PlanNotes()


def read_plan(target: Location, videos: Sequence[Video]) -> Plan | None:
    """Returns the plan that a target is bound to; None if it is bound to none.

    Args:
        target: The folder of the pack.
        videos: The videos of the data folder, or its files. A planned video whose file is gone, or has another size,
            gets an empty path.

    Raises:
        UsageError: The plan is damaged, or another version wrote it.
    """
    path = current(target, PLAN)
    try:
        stored = _StoredPlan.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if any((target / RECORDS).glob("*-*.json")):
            raise UsageError(f"{target} has lost the plan of its shards: delete it to pack anew") from None
        return None
    except ValidationError as error:
        raise UsageError(f"{path} is damaged: delete {target} to pack anew") from error
    paths = {(video.file_source, video.num_bytes): video.path for video in videos}

    def planned(source: str, class_name: str, num_bytes: int) -> Video:
        segment = _segment(stored.segments.get(source))
        group, alike = stored.groups.get(source, ""), stored.alike.get(source, "")
        video = Video("", source, class_name, num_bytes, segment, group, alike)
        return replace(video, path=paths.get((video.file_source, num_bytes), ""))

    shards = tuple(
        PlannedShard(shard.name, shard.split, tuple(planned(*video) for video in shard.videos))
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


def _stored(segment: Segment) -> _StoredSegment:
    end = None if segment.end is None else text_of(segment.end)
    return _StoredSegment(start=text_of(segment.start), end=end, unit=segment.unit)


def _segment(stored: _StoredSegment | None) -> Segment | None:
    if stored is None:
        return None
    return Segment(Fraction(stored.start), None if stored.end is None else Fraction(stored.end), stored.unit)
