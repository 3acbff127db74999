"""Says what a complete pack holds: samples, segments, labels, groups, sizes, damage, and what was not packed.

Only the columns that it counts are read, and they stay columns: an index of 100,000 rows takes a second or two.
To compare the pictures of as many clips takes 13 s more.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from packer.inspection.classes import samples_per_class, shown_classes
from packer.inspection.groups import file_groups
from packer.inspection.rejections import KINDS, kind_of
from packer.pitfalls.find import pack_pitfalls
from packer.report import class_table
from packer.shards.manifest import Manifest, read_manifest, read_rejected_columns, read_samples
from packer.shards.stored_plan import PlanNotes, read_plan_notes
from packer.storage.location import Location
from packer.video.segment import file_of

_NUM_SIZES = 5
_COLUMNS = (
    *(
        "source",
        "source_sha256",
        "class_name",
        "num_frames",
        "fps",
        "duration_seconds",
        "damage",
        "decode_road",
        "sampled_by",
    ),
    *("width_px", "height_px", "source_width_px", "source_height_px"),
    *("start_seconds", "end_seconds", "num_segment_frames"),
)


def format_inspection(folder: Location, show_all: bool = False) -> str:
    """Returns what a pack holds, as the user reads it.

    Args:
        folder: A complete pack, of this version or an older one.
        show_all: Show every class, however many there are.

    Raises:
        ManifestError: There is no complete pack.
    """
    manifest, notes = read_manifest(folder), read_plan_notes(folder)
    table = read_samples(folder, None, _COLUMNS)
    clip = manifest.clip
    num_frames = table["num_frames"].to_numpy()
    lines = [
        *_class_lines(manifest, show_all),
        "",
        f"clips     {clip.num_frames} frames, short side {clip.short_side_px or 'any'} px, JPEG {clip.jpeg_quality}",
        *_balance_lines(manifest),
        *_split_lines(manifest),
        f"stored    {_sizes(table, 'width_px', 'height_px')}",
        f"sources   {_sizes(table, 'source_width_px', 'source_height_px')}",
        f"frames    {_range(num_frames)} in a video, median {_median(num_frames)}",
        *_segment_lines(table),
        *_group_lines(manifest, notes, table),
        f"decoded   {_counted(_renamed(_counts(table['decode_road']), full='in full', needed='as far as needed'))}",
        *_sampling_lines(table),
        f"damaged   {_counted(_damage(table)) or 'none'}",
        *_rejected_lines(folder, manifest),
        *pack_pitfalls(folder, manifest, notes.alike),
    ]
    return "\n".join(lines)


def _class_lines(manifest: Manifest, show_all: bool) -> list[str]:
    first, last = shown_classes(manifest, show_all)
    counts = {name: split.num_per_class for name, split in manifest.splits.items()}
    lines = class_table([*first, *last], counts, manifest.config.split)
    if num_hidden := len(manifest.class_names) - len(first) - len(last):
        lines.insert(1 + len(first), f"... and {num_hidden} more (--all)")
    return lines


def _balance_lines(manifest: Manifest) -> list[str]:
    sizes = list(samples_per_class(manifest).values())
    spread = f"{_range(np.array(sizes))} samples each, median {_median(np.array(sizes))}"
    return [
        f"labels    {len(sizes)} class{'es' * (len(sizes) != 1)}, {spread}",
        f"balance   the largest class has {max(sizes) / max(1, min(sizes)):.1f} times the videos of the smallest",
    ]


def _split_lines(manifest: Manifest) -> Iterator[str]:
    for name, split in manifest.splits.items():
        num_bytes = sum(shard.num_bytes for shard in split.shards)
        yield (
            f"{name:<9} {num_bytes:,} bytes in {len(split.shards)} shard{'s' * (len(split.shards) != 1)}, "
            f"{num_bytes / max(1, split.num_samples):,.0f} a sample"
        )


def _segment_lines(table: pa.Table) -> list[str]:
    if "num_segment_frames" not in table.column_names:  # a pack of an earlier version
        return []
    segments = table.filter(pc.field("num_segment_frames") > 0)
    if not segments.num_rows:
        return []
    per_file = np.array([*Counter(map(file_of, segments["source"].to_pylist())).values()])
    ends = pc.coalesce(segments["end_seconds"], segments["duration_seconds"])
    seconds = pc.subtract(ends, pc.coalesce(segments["start_seconds"], 0.0)).to_numpy()
    frames = segments["num_segment_frames"].to_numpy()
    num_files = len(per_file)
    return [
        f"segments  {segments.num_rows} of {num_files} file{'s' * (num_files != 1)}, {_range(per_file)} in a file, "
        f"median {_median(per_file)}",
        f"lengths   {_range(seconds, '.1f')} s in a segment, median {_median(seconds):.1f}; {_range(frames)} frames, "
        f"median {_median(frames)}",
    ]


def _group_lines(manifest: Manifest, notes: PlanNotes, table: pa.Table) -> Iterator[str]:
    """Yields what videos have in common: groups, each of which is in one split, and equal files of several classes."""
    sizes = np.bincount([*file_groups(manifest, notes, table).values()])
    together = sizes[sizes > 1]
    num_stated = len(set(notes.groups.values()))
    if len(together) or num_stated:
        spread = f", {_range(together)} in a group, median {_median(together)}" if len(together) else ""
        stated = f"; the labels state {num_stated}" if num_stated else ""
        yield f"groups    {len(together) or 'none'} of several files{spread}{stated}"
    if count := len(notes.contradictions):
        yield f"labels    {count} time{'s' * (count != 1)}, equal files have different labels (.pack/plan.json)"


def _sampling_lines(table: pa.Table) -> list[str]:
    if "sampled_by" not in table.column_names:  # a pack of an earlier version
        return []
    counts = _counts(table["sampled_by"])
    meanings = {"index": "by index", "time": "by time", "rate": "by mean rate, as their frames have no times"}
    return [f"sampled   {_counted(_renamed(counts, **meanings))}"] if {name for name, _ in counts} != {"index"} else []


def _damage(table: pa.Table) -> list[tuple[str, int]]:
    if "damage" not in table.column_names:  # a pack of an earlier version
        return []
    return _counts(pc.list_flatten(table["damage"]))


def _rejected_lines(folder: Location, manifest: Manifest) -> list[str]:
    counts = {kind: Counter[str]() for kind in KINDS}
    rows = read_rejected_columns(folder, ("source", "split", "reason"))
    for row in rows.to_pylist() if rows is not None else ():
        counts[kind_of(row)][row["reason"]] += 1
    if rows is None:  # its list is lost: the manifest has the sums
        counts["rejected"].update(manifest.rejected)
    lines = [f"rejected  {_counted(counts['rejected'].most_common()) or 'none'}"]
    if counts["set aside"]:
        lines.append(f"set aside {_counted(counts['set aside'].most_common())}, which nobody took for videos")
    if num_rows := counts["no file"].total():
        lines.append(
            f"no file   {num_rows} row{'s' * (num_rows != 1)} of the labels, whose files the data folder lacked"
        )
    return lines


def _sizes(table: pa.Table, width: str, height: str) -> str:
    counts = (
        table.group_by([width, height])
        .aggregate([([], "count_all")])
        .sort_by([("count_all", "descending"), (width, "descending"), (height, "descending")])
    )
    num_more = max(0, counts.num_rows - _NUM_SIZES)
    more = f", {num_more} more sizes" if num_more else ""
    first = counts.slice(0, _NUM_SIZES).to_pylist()
    return _counted([(f"of {row[width]} x {row[height]}", row["count_all"]) for row in first]) + more


def _counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    found = [(row["values"], row["counts"]) for row in pc.value_counts(column).to_pylist()]
    return sorted(found, key=lambda item: (-item[1], item[0]))


def _renamed(counts: Sequence[tuple[str, int]], **meanings: str) -> list[tuple[str, int]]:
    return [(meanings.get(name, name), count) for name, count in counts]


def _counted(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts)


def _range(numbers: NDArray[Any], form: str = "") -> str:
    return f"{numbers.min():{form}} to {numbers.max():{form}}"


def _median(numbers: NDArray[Any]) -> float:
    median: float = np.sort(numbers)[len(numbers) // 2]
    return median
