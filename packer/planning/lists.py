"""Reads the split of each video from official lists, folders or a CSV file.

The splits are used exactly as given. A video that is not listed is not packed. A listed video that the data folder
lacks is counted and is no error, because many people have only a part of a dataset.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from configs.pack import SplitConfig
from configs.section import UsageError
from packer.labels.splits import SPLIT_OF_FOLDER, SPLITS
from packer.video.catalog import Catalog

_HMDB51_MARKS = {"0": "", "1": "train", "2": "test"}
_WAY_OUT = "correct the list, or download it again"


@dataclass(frozen=True)
class GivenSplits:
    """The splits that lists or folders give to the videos of a catalog."""

    split_of: Mapping[str, str]
    """The split by source; empty: train, of which a part becomes val. A video that is missing here is not packed."""
    num_absent: int
    """Listed videos that the data folder lacks."""


def read_given_splits(catalog: Catalog, config: SplitConfig, lists: Path) -> GivenSplits | None:
    """Returns the splits that lists or folders give to the videos; None if the fractions decide.

    Args:
        catalog: The videos.
        config: What gives the splits.
        lists: The folder of the official lists, or the CSV file.

    Raises:
        UsageError: A list is missing or damaged, gives one video two splits, or lists no video of the catalog.
    """
    if config.method == "folders":
        listed = {video.source: SPLIT_OF_FOLDER[video.source.partition("/")[0].casefold()] for video in catalog.videos}
    elif config.hmdb51:
        listed = _listed(_hmdb51(lists, catalog.class_names, config.hmdb51))
    elif config.ucf101:
        listed = _listed(_ucf101(lists, config.ucf101))
    elif config.method == "csv":
        listed = _listed(_with_folders(_csv(lists), catalog))
    else:
        return None
    name_of = {video.source: _name(video.file_source, config) for video in catalog.videos}
    split_of = {source: split for source, name in name_of.items() if (split := listed.get(name))}
    if not split_of:
        raise UsageError(
            f"{lists} lists none of the videos: the lists belong to other data, or use other names; the data folder "
            f"has videos such as {catalog.videos[0].file_source}"
        )
    absent = {name for name, split in listed.items() if split} - set(name_of.values())
    return GivenSplits(_with_val(split_of, config), len(absent))


def given_by_labels(split_of: Mapping[str, str], config: SplitConfig) -> GivenSplits:
    """Returns the splits that labels state, by source; a video without one comes into train or val.

    Raises:
        UsageError: No label states a split.
    """
    if not any(split_of.values()):
        raise UsageError("the labels state no split: leave --split.method labels out")
    return GivenSplits(_with_val(split_of, config), 0)


def _with_val(split_of: Mapping[str, str], config: SplitConfig) -> Mapping[str, str]:
    """Returns the splits; if there is no val, a part of train becomes it."""
    if not config.val_fraction or "val" in split_of.values():
        return split_of
    return {source: "" if split == "train" else split for source, split in split_of.items()}


def _name(source: str, config: SplitConfig) -> str:
    """Returns the name of a video in the lists.

    In official lists it is class/stem in lower case: many people have other containers, and UCF101 has
    v_HandStandPushups_g01_c01.avi in the folder HandstandPushups.
    """
    path = PurePosixPath(source)
    return f"{path.parts[0]}/{path.stem}".casefold() if config.is_official else source


def _listed(entries: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Returns the split by name, from entries (name, split, place in the list); an empty split: not used.

    Raises:
        UsageError: A name has two splits.
    """
    found: dict[str, str] = {}
    for name, split, where in entries:
        if found.setdefault(name, split) != split:
            raise UsageError(
                f"{where} lists {name} as {split or 'unused'}, but it is also listed as {found[name] or 'unused'}: "
                f"{_WAY_OUT}"
            )
    return found


def _with_folders(entries: Iterable[tuple[str, str, str]], catalog: Catalog) -> Iterator[tuple[str, str, str]]:
    """Yields the entries; a file's name alone becomes its path below the data folder.

    Raises:
        UsageError: Several files have that name.
    """
    sources = {video.file_source for video in catalog.videos}
    of_name: dict[str, list[str]] = defaultdict(list)
    for source in sorted(sources):
        of_name[source.rpartition("/")[2]].append(source)
    for name, split, where in entries:
        alike = [] if name in sources else of_name.get(name, [])
        if len(alike) > 1:
            raise UsageError(
                f"{where} lists {name}, which may be {alike[0]} or {alike[1]}: give the path below the data folder"
            )
        yield (alike[0] if alike else name), split, where


def _hmdb51(lists: Path, class_names: Iterable[str], number: int) -> Iterator[tuple[str, str, str]]:
    for class_name in class_names:
        for words, where in _lines(lists / f"{class_name}_test_split{number}.txt"):
            if len(words) != 2 or words[1] not in _HMDB51_MARKS:
                raise UsageError(f"{where} must be a file name and 0, 1 or 2: {_WAY_OUT}")
            yield f"{class_name}/{PurePosixPath(words[0]).stem}".casefold(), _HMDB51_MARKS[words[1]], where


def _ucf101(lists: Path, number: int) -> Iterator[tuple[str, str, str]]:
    for split in ("train", "test"):
        for words, where in _lines(lists / f"{split}list{number:02d}.txt"):
            path = PurePosixPath(words[0])
            if len(path.parts) != 2:
                raise UsageError(f"{where} must be class/file name: {_WAY_OUT}")
            yield f"{path.parts[0]}/{path.stem}".casefold(), split, where


def _lines(path: Path) -> Iterator[tuple[list[str], str]]:
    """Yields the words of each line that is not empty: the name and, if there is one, the number behind it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or 'it is not text'}): --lists must be the "
            "folder with the official lists, one for each class folder"
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield line.rsplit(maxsplit=1), f"{path}:{number}"


def _csv(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"source", "split"} <= set(rows.fieldnames or ()):
                raise UsageError(
                    f"{path} must begin with a line that names the columns source and split; a source is a path below "
                    "the data folder, such as walk/a.mp4, or a file's name if no other file has it; if it says which "
                    "class each video has, give it by --labels instead"
                )
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if row["split"] not in (*SPLITS, ""):
                    raise UsageError(f"{where} has split {row['split']!r}: it must be train, val, test or empty")
                yield row["source"], row["split"], where
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from error
