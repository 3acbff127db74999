"""Looks at the folders that a pack would take for classes: refuses what they cannot be, and names what looks wrong."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from configs.pack import SplitConfig
from configs.section import UsageError
from packer.labels.splits import SPLIT_OF_FOLDER
from packer.planning.group import stem_group
from packer.planning.split import spelling
from packer.storage.location import Location
from packer.video.catalog import Catalog, Video, has_video_extension
from packer.video.container import VideoError

_NUM_NAMED = 3


def check_layout(folder: Location, catalog: Catalog, has_split_folders: bool) -> None:
    """Refuses folders that are no classes: those of splits, and one folder around all classes.

    Args:
        folder: The data folder.
        catalog: What it holds.
        has_split_folders: Whether the class folders lie in folders of splits.

    Raises:
        UsageError: The folders are no classes, or two folders hold one split.
    """
    if has_split_folders:
        _check_split_folders(folder, catalog)
    else:
        splits = [name for name in catalog.class_names if name.casefold() in SPLIT_OF_FOLDER]
        if len({SPLIT_OF_FOLDER[name.casefold()] for name in splits}) > 1:
            others = [name for name in catalog.class_names if name not in splits]
            beside = f", and move {_named(others)} out of it" * bool(others)
            raise UsageError(
                f"{folder} holds {' and '.join(splits)}, not classes: give --split.method folders{beside}; if they are "
                "classes, give them other names"
            )
    _check_wrapper(folder, catalog, num_above=int(has_split_folders))


def catalog_notes(catalog: Catalog, config: SplitConfig, has_class_folders: bool) -> Iterator[tuple[str, str]]:
    """Yields what looks wrong in a data folder, as (label, text)."""
    yield from alike_names(catalog.class_names)
    if misnamed := [
        video.source
        for video, error in catalog.non_videos
        if error.reason != "bad_segment" and counts_as_failed(video, error, not has_class_folders)
    ]:
        yield "failed", f"{count_and_name(misnamed)} empty or no video inside, despite the name: counted as rejected"
    if proxies := [video.source for video, error in catalog.non_videos if error.reason == "proxy"]:
        yield "proxies", f"{count_and_name(proxies)} set aside: small copies or thumbnails that cameras write"
    stems: dict[str, set[str]] = defaultdict(set)
    for video in catalog.videos if not config.group_regex else ():
        if (stem := stem_group(video)) is not None:
            stems[stem].add(video.file_source)
    if alike := [sorted(sources) for sources in stems.values() if len(sources) > 1]:
        several = f"{len(alike)} recording{'s' * (len(alike) > 1)} in several files each"
        yield (
            "groups",
            f"{several}, by their names ({', '.join(alike[0])}{', ...' * (len(alike) > 1)}): all files are packed, "
            "each recording into one split",
        )
    if has_class_folders and (nested := _splits_below_classes(catalog)):
        yield (
            "splits",
            f"{_named(nested)} inside the class folders are not used: for --split.method folders, they must lie above "
            "the class folders",
        )


def counts_as_failed(video: Video, error: VideoError, has_labels: bool) -> bool:
    """Tells whether what was set aside before the split was taken for a video by the user: by its name or its label."""
    if error.reason in {"not_a_video", "no_video_stream"}:
        return has_labels or has_video_extension(video.source)
    return error.reason == "bad_segment"


def alike_names(class_names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the names that may mean one class, as (label, text)."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        spellings[spelling(name)].append(name)
    for names in spellings.values():
        if len(names) > 1:
            yield (
                "classes",
                f"{' and '.join(map(ascii, names))} differ in case, spaces or accents only: if they are one class, "
                "give them one name",
            )


def count_and_name(sources: Sequence[str]) -> str:
    """Returns how many videos there are, and the first names: `5 videos (a/x.mp4, a/y.mp4, a/z.mp4, ...)`."""
    return f"{len(sources)} video{'s' * (len(sources) != 1)} ({_named(sources)})"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + ", ..." * (len(names) > _NUM_NAMED)


def _check_split_folders(folder: Location, catalog: Catalog) -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for video in catalog.videos:
        name = video.source.partition("/")[0]
        names[SPLIT_OF_FOLDER[name.casefold()]].add(name)
    for split, alike in sorted(names.items()):
        if len(alike) > 1:
            raise UsageError(
                f"{folder} holds {' and '.join(sorted(alike))}, which both mean {split}: put their class folders into "
                "one of them"
            )


def _check_wrapper(folder: Location, catalog: Catalog, num_above: int) -> None:
    """Refuses one folder around all classes."""
    if len(catalog.class_names) > 1:
        return
    inside = [video.source.rpartition("/")[0].split("/")[num_above:] for video in catalog.videos]
    wrapper = _common_start(inside)
    below = sorted({parts[len(wrapper)] for parts in inside if len(parts) > len(wrapper)})
    if len(below) > 1 and all(len(parts) > len(wrapper) for parts in inside):
        path = "/".join(wrapper)
        way_out = f"give {folder}/{path}" if not num_above else f"move the class folders out of {path}"
        raise UsageError(
            f"{folder} holds one folder, {path}, around {_named(below)}, which seem to be classes: {way_out}"
        )


def _common_start(paths: Sequence[Sequence[str]]) -> list[str]:
    alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in alike]


def _splits_below_classes(catalog: Catalog) -> list[str]:
    names = {parts[1] for video in catalog.videos if len(parts := video.source.split("/")) > 2}
    is_flat = any(video.source.count("/") < 2 for video in catalog.videos)
    splits = [name for name in names if name.casefold() in SPLIT_OF_FOLDER]
    return [] if is_flat or len({SPLIT_OF_FOLDER[name.casefold()] for name in splits}) < 2 else sorted(splits)
