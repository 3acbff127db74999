"""Decides what a command does, before anything is written: begin a pack, continue one, or append to one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from configs.pack import PackConfig, PackRecipe
from configs.section import UsageError, flatten
from packer.candidates import find_candidates
from packer.decoders.clip_stream import WINDOW_PER_WORKER, open_pool, read_clips
from packer.planning.layout import count_and_name
from packer.planning.lists import GivenSplits
from packer.planning.plan import Plan, extend_plan, make_plan
from packer.progress import Progress
from packer.retry import as_they_are_now, find_retries, plan_again, rejected_rows
from packer.shards.manifest import SAMPLES, ManifestError, read_manifest, read_samples
from packer.shards.stored_plan import plan_sha256, read_plan
from packer.storage.commit import current
from packer.storage.files import file_sha256
from packer.storage.location import Location, is_inside, locate
from packer.storage.target_lock import RECORDS
from packer.video.catalog import Catalog, Video
from packer.video.clip import Clip, library_versions
from packer.video.picture_hash import frame_hashes

_RELABELLED = "labelled otherwise now"


@dataclass(frozen=True)
class Preparation:
    """What a pack does."""

    target: Location
    catalog: Catalog
    plan: Plan
    bound_sha256: str
    """sha256 of the plan that the target is bound to now; empty if it is bound to none."""
    notes: tuple[tuple[str, str], ...]
    """What the user should know about videos that are not packed, and about classes, as (label, text)."""
    has_labels: bool
    """Whether labels from a file name the classes; otherwise folders do."""
    free_splits: tuple[str, ...] = ()
    """Splits that the fractions fill: if no video of a class can be read there, another of train takes its place."""


def prepare(config: PackConfig) -> Preparation:
    """Returns what packing `config.source` into `config.target` does.

    Raises:
        UsageError: The command cannot be carried out as given.
    """
    source, target = locate(config.source), locate(config.target)
    _check_folders(source, target)
    bound_sha256 = plan_sha256(target)
    candidates = find_candidates(source, target, config)
    catalog, given, config = candidates.catalog, candidates.given, candidates.config
    notes = list(candidates.notes)
    plan, differing = _plan(target, catalog, config, given.split_of if given else None)
    notes += [("kept", f"{count_and_name(sources)} {how}; packed as before") for how, sources in differing.items()]
    return Preparation(
        target, catalog, plan, bound_sha256, tuple(notes), bool(config.labels), _free_splits(config, given)
    )


def _free_splits(config: PackConfig, given: GivenSplits | None) -> tuple[str, ...]:
    if given is not None:
        return ("val",) if "" in given.split_of.values() else ()
    return ("val",) if config.split.num_folds else ("val", "test")  # with folds, each video is in one test split


def _check_folders(source: Location, target: Location) -> None:
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise UsageError(f"{source} {what}: give the folder that holds one folder of videos per class")
    if is_inside(target, source):
        raise UsageError(f"{target} lies inside {source} and would be packed as a class: choose another target")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file: choose another target")
    if target.exists() and not (target / RECORDS).exists() and any(target.glob("*")):
        raise UsageError(f"{target} holds other files: choose an empty or a new folder")


def _plan(
    target: Location, catalog: Catalog, config: PackConfig, given: Mapping[str, str] | None
) -> tuple[Plan, dict[str, list[str]]]:
    """Returns the plan, and the sources of the earlier pack's videos that have changed, by how."""
    earlier = read_plan(target, catalog.videos)
    if earlier is None:
        if config.append:
            raise UsageError(f"{target} holds no pack to append to: leave --append out to begin one")
        return make_plan(catalog, config.recipe, given, hashes=_hashes(catalog.videos, config, given or {}, {})), {}
    old = {video.source: video for video in earlier.videos}
    found = {video.source: _as_planned(video, old.get(video.source, video)) for video in catalog.videos}
    earlier = as_they_are_now(earlier, target, found)
    is_complete = _is_complete(target)
    rows = rejected_rows(target, earlier, is_complete)
    may_work = find_retries(rows, earlier, found, with_replaced=True, with_machine=config.append)
    retries = may_work
    if is_complete and not config.append:
        retries = find_retries(rows, earlier, found, with_replaced=False, with_machine=False)
    if retries:
        earlier = plan_again(earlier, retries, _known_sha256(target))
    differing = _differing_videos(earlier, catalog, given, has_labels=bool(config.labels))
    waiting = may_work.keys() - retries.keys()
    no_matter = {"changed": waiting, "gone": {row.source for row in rows}}
    for how, sources in no_matter.items():
        differing[how] = [source for source in differing.get(how, []) if source not in sources]
    differing = {how: sources for how, sources in differing.items() if sources}
    what = _differing_settings(earlier, config.recipe)
    if not config.append:
        what += [f"{count_and_name(sources)} {how}" for how, sources in differing.items()]
    if what:
        raise UsageError(_refusal(target, what, differing, is_complete))
    if is_complete and not config.append and not retries:
        replaced = f"; {count_and_name(sorted(waiting))} rejected then and replaced since: --append packs what is whole"
        raise UsageError(
            f"{target} holds a complete pack already: choose another target, or delete it to pack again; if there are "
            f"new videos, --append adds them{replaced if waiting else ''}"
        )
    if not differing.pop("new", None):
        return earlier, differing
    hashes = _hashes(catalog.videos, config, {**(given or {}), **dict.fromkeys(old, "old")}, _known_hashes(target))
    return extend_plan(earlier, catalog, given, _known_sha256(target), hashes), differing


def _as_planned(video: Video, planned: Video) -> Video:
    """Returns a video of the data folder with what an earlier pack decided about it."""
    return replace(video, class_name=planned.class_name, alike=planned.alike)


def _hashes(
    videos: Sequence[Video], config: PackConfig, decided: Mapping[str, str], known: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Returns, by source, the hashes of the first and last frame of all videos that can be decoded.

    Args:
        videos: The videos.
        config: The command; unless it groups by looks, there are none.
        decided: The splits of videos that need no other: if no other video is left, there are none.
        known: Hashes of packed videos, which are not decoded again.
    """
    if not config.split.group_similar or all(decided.get(video.source) for video in videos):
        return {}
    hashes = dict(known)
    to_read = [video for video in videos if video.source not in hashes]
    clip = config.clip.model_copy(update={"num_frames": min(2, config.clip.num_frames)})
    with (
        Progress(len(to_read), "video", "look") as progress,
        open_pool(config.limits, config.workers, len(to_read), config.ray) as pool,
    ):
        window = pool.num_workers * WINDOW_PER_WORKER
        for video, outcome in zip(to_read, read_clips(pool, to_read, clip, window), strict=True):
            if isinstance(outcome, Clip) and (of_video := frame_hashes(outcome.jpegs)):
                hashes[video.source] = of_video
            progress.update()
    return hashes


def _refusal(target: Location, what: Sequence[str], differing: Collection[str], is_complete: bool) -> str:
    """Returns why a command does not continue an earlier pack.

    Args:
        target: The pack.
        what: Everything that differs, in words.
        differing: How videos differ.
        is_complete: Whether the pack is complete.
    """
    appending = "add new videos by --append, " * ("new" in differing)
    going_on = "give --append to go on without those that are gone, " * ("gone" in differing)
    if _RELABELLED in differing:
        when = "" if is_complete else ", once the pack is complete,"
        going_on += f"use `python -m packer relabel {target} --labels FILE`{when} if the new labels are right, "
    return (
        f"{target} was packed with other settings or videos: {'; '.join(what)}: give the earlier settings and "
        f"videos, {appending}{going_on}or choose another target"
    )


def _differing_videos(
    plan: Plan, catalog: Catalog, given: Mapping[str, str] | None, has_labels: bool
) -> dict[str, list[str]]:
    """Returns the sources that differ between a plan and a data folder, by how: new, gone, changed, other split."""
    found = {video.source for video in catalog.videos}
    old = {video.source: (video, shard.split) for shard in plan.shards for video in shard.videos}
    # Without labels, a class that differs from the folder's can only come from `relabel`.
    class_of = {video.source: video.class_name for video in catalog.videos if has_labels}
    differing = {
        "new": sorted(found - old.keys()),
        "gone": sorted(old.keys() - found),
        "changed": sorted(source for source, (video, _) in old.items() if not video.path and source in found),
        _RELABELLED: sorted(
            s for s, (video, _) in old.items() if class_of.get(s, video.class_name) != video.class_name
        ),
    }
    if given is not None:
        differing["in another split now"] = sorted(
            source
            for source, (_, split) in old.items()
            if source in given and split not in ({given[source]} if given[source] else {"train", "val"})
        )
    return {how: sources for how, sources in differing.items() if sources}


def _differing_settings(plan: Plan, recipe: PackRecipe) -> list[str]:
    """Returns how a recipe and the installed versions differ from a plan's: `clip.num_frames was 16 and is 8 now`."""
    before = flatten({**plan.recipe.model_dump(), "version of": plan.versions})
    now = flatten({**recipe.model_dump(), "version of": library_versions()})
    return [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _is_complete(target: Location) -> bool:
    """Tells whether the manifest is there and agrees with the index and the plan; if not, packing writes it again."""
    try:
        manifest, samples_sha256 = read_manifest(target), file_sha256(current(target, SAMPLES))
        return (manifest.samples_sha256, manifest.plan_sha256) == (samples_sha256, plan_sha256(target))
    except (ManifestError, FileNotFoundError):
        return False


def _known_sha256(target: Location) -> dict[str, str]:
    """Returns the sha256 of the packed videos by source; empty if the index cannot be read."""
    return _column(target, "source_sha256")


def _known_hashes(target: Location) -> dict[str, Sequence[str]]:
    """Returns the hashes of the packed videos by source; empty if the index cannot be read, or is an older one."""
    return {source: hashes for source, hashes in _column(target, "frame_hashes").items() if hashes}


def _column(target: Location, name: str) -> dict[str, Any]:
    """Returns a column of the index by source; empty if the index cannot be read or lacks it."""
    try:
        table = read_samples(target, None, ("source", name))
    except ManifestError:
        return {}  # then the videos are read again
    if name not in table.column_names:
        return {}
    return dict(zip(table["source"].to_pylist(), table[name].to_pylist(), strict=True))
