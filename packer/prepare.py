"""Settles what a command is to do before anything is written: begin a pack, continue one, or append to one."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from configs.load import UsageError, resolve
from configs.pack import PackConfig
from packer.catalog import Catalog, find_videos
from packer.lists import read_given
from packer.manifest import SAMPLES
from packer.plan import Plan, extend_plan, make_plan
from packer.split import SPLITS
from packer.storage import Location, local_copy, locate
from packer.target import (
    check_folders,
    differing_settings,
    differing_videos,
    is_complete,
    named,
    plan_sha256,
    read_plan,
)


@dataclass(frozen=True)
class Preparation:
    """What is to be done."""

    target: Location
    catalog: Catalog
    plan: Plan
    bound_sha256: str
    """Of the plan that the target was bound to until now; empty: to none."""
    notes: tuple[str, ...]
    """What the user should know of videos that are passed by, one line each."""


def prepare(config: PackConfig) -> Preparation:
    """Returns what packing `config.source` into `config.target` is to do.

    Raises:
        UsageError: The command cannot be carried out as given.
    """
    source, target = locate(config.source), locate(config.target)
    check_folders(source, target)
    bound_sha256 = plan_sha256(target)
    catalog = find_videos(source, SPLITS if config.split.method == "folders" else ())
    if config.split.is_stratified and 1 < len(catalog.class_names) == len({*catalog.class_names} & {*SPLITS}):
        raise UsageError(
            f"{source} holds {' and '.join(catalog.class_names)}, not classes: give --split.method folders"
        )
    notes = Counter(catalog.num_skipped)
    given = read_given(catalog, config.split, resolve(config.lists))
    if given is not None:
        listed = tuple(video for video in catalog.videos if video.source in given.split_of)
        notes["videos that the split leaves out"] = len(catalog.videos) - len(listed)
        notes["listed videos that the data folder lacks"] = given.num_absent
        catalog = replace(catalog, videos=listed)
    plan, differing = _plan(target, catalog, config, given.split_of if given else None)
    lines = [f"{count} {what}" for what, count in sorted(notes.items()) if count]
    lines += [f"{named(sources)} {how}, packed as before" for how, sources in differing.items()]
    return Preparation(target, catalog, plan, bound_sha256, tuple(lines))


def _plan(
    target: Location, catalog: Catalog, config: PackConfig, given: Mapping[str, str] | None
) -> tuple[Plan, dict[str, list[str]]]:
    """Returns the plan, and which of the earlier pack's videos are not as they were."""
    earlier = read_plan(target, catalog.videos)
    if earlier is None:
        if config.append:
            raise UsageError(f"{target} holds no pack to append to: leave --append out to begin one")
        return make_plan(catalog, config.recipe, given), {}
    differing = differing_videos(earlier, catalog, given)
    what = differing_settings(earlier, config.recipe)
    if not config.append:
        what += [f"{named(sources)} {how}" for how, sources in differing.items()]
    if what:
        appending = "add new videos by --append, " * ("new" in differing)
        raise UsageError(
            f"{target} was packed otherwise: {'; '.join(what)}: give the earlier settings and videos, {appending}or "
            "choose another target"
        )
    if not config.append and is_complete(target):
        raise UsageError(
            f"{target} holds a complete pack already: choose another target, or delete it to pack anew; --append adds "
            "videos, when there are new ones"
        )
    if not differing.pop("new", None):
        return earlier, differing
    return extend_plan(earlier, catalog, given, _known_sha256(target)), differing


def _known_sha256(target: Location) -> dict[str, str]:
    """Returns the sha256 of the packed videos by source."""
    try:
        with local_copy(target / SAMPLES) as file:
            table = pq.read_table(file, columns=["source", "source_sha256"])
    except (OSError, pa.ArrowInvalid):
        return {}  # those files are read again
    return dict(zip(table["source"].to_pylist(), table["source_sha256"].to_pylist(), strict=True))
