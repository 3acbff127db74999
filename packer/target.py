"""What a target holds: its lock, the plan that it is bound to, and whether the pack is complete.

The plan is stored, rather than made anew, so that a pack goes on as it was begun, and so that one of other videos,
settings or versions can be refused by saying what differs.
"""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pydantic import ValidationError

from configs.load import Section, UsageError, flatten
from configs.pack import PackRecipe
from packer.catalog import Catalog, Video
from packer.manifest import SAMPLES, ManifestError, file_sha256, read_manifest
from packer.owner import owned
from packer.plan import Plan, PlannedShard, library_versions
from packer.shard import RECORDS
from packer.storage import PARTIAL_SUFFIX, Location, RemotePath, is_inside, write_atomically

_PLAN = "plan.json"
_NUM_NAMED = 3


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


def check_folders(source: Location, target: Location) -> None:
    """Raises UsageError where the one cannot be packed into the other."""
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder: give the folder that holds one folder of videos per class")
    if is_inside(target, source):
        raise UsageError(f"{target} lies inside {source} and would be packed as a class: choose another target")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file: choose another target")
    if target.exists() and not (target / RECORDS).exists() and any(target.glob("*")):
        raise UsageError(f"{target} holds other files: choose an empty or a new folder")


@contextmanager
def locked(target: Location) -> Iterator[None]:
    """Creates the target and keeps other packers out; the lock goes with the process, however it ends."""
    if isinstance(target, RemotePath):
        with owned(target / RECORDS / "owner.json"):
            yield
        return
    records = target / RECORDS
    try:
        records.mkdir(parents=True, exist_ok=True)
        lock = (records / "lock").open("wb")
    except OSError as error:
        raise UsageError(f"{target} cannot be written to: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{target} is being written by another process: wait for it, or stop it") from None
        for folder in (target, records):
            for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
                partial.unlink()
        yield


def is_complete(target: Location) -> bool:
    """Tells whether the manifest is there and binds the index and the plan; a torn set is rebuilt from the records."""
    try:
        manifest = read_manifest(target)
        return (manifest.samples_sha256, manifest.plan_sha256) == (file_sha256(target / SAMPLES), plan_sha256(target))
    except (ManifestError, FileNotFoundError):
        return False


def plan_sha256(target: Location) -> str:
    """Returns the sha256 of the stored plan; empty where there is none."""
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
    )
    with write_atomically(target / RECORDS / _PLAN) as file:
        file.write(stored.model_dump_json().encode())


def read_plan(target: Location, videos: Sequence[Video]) -> Plan | None:
    """Returns the plan that a target is bound to; None where it is bound to none.

    Args:
        target: The folder of the pack.
        videos: Those of the data folder; a video of the plan that is not among them as it was has no path.

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
    return Plan(stored.recipe, stored.versions, stored.class_names, shards, stored.leaks, stored.copies)


def differing_settings(plan: Plan, recipe: PackRecipe) -> list[str]:
    """Returns how a recipe and the installed versions differ from a plan's: `clip.num_frames is 16 there ...`."""
    there = flatten({**plan.recipe.model_dump(), "version of": plan.versions})
    here = flatten({**recipe.model_dump(), "version of": library_versions()})
    return [
        f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def differing_videos(plan: Plan, catalog: Catalog, given: Mapping[str, str] | None) -> dict[str, list[str]]:
    """Returns the sources that differ between a plan and a data folder, by how: new, gone, changed, other split."""
    found = {video.source for video in catalog.videos}
    old = {video.source: (video, shard.split) for shard in plan.shards for video in shard.videos}
    differing = {
        "new": sorted(found - old.keys()),
        "gone": sorted(old.keys() - found),
        "changed": sorted(source for source, (video, _) in old.items() if not video.path and source in found),
    }
    if given is not None:
        differing["in another split now"] = sorted(
            source
            for source, (_, split) in old.items()
            if source in given and split not in ({given[source]} if given[source] else {"train", "val"})
        )
    return {how: sources for how, sources in differing.items() if sources}


def named(sources: Sequence[str]) -> str:
    """Returns a number of videos with the first of their names: `5 videos (a/x.mp4, a/y.mp4, a/z.mp4, ...)`."""
    more = ", ..." * (len(sources) > _NUM_NAMED)
    return f"{len(sources)} video{'s' * (len(sources) != 1)} ({', '.join(sources[:_NUM_NAMED])}{more})"
