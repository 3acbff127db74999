"""Checks a complete pack against its manifest and index, byte by byte."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from packer.progress import Progress
from packer.shards.manifest import SAMPLES, ManifestError, ShardSummary, read_manifest, read_samples
from packer.shards.sample import StoredSample, members_crc32, read_members
from packer.shards.stored_plan import plan_sha256
from packer.storage.commit import current
from packer.storage.files import file_sha256, local_copy
from packer.storage.location import Location


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file."""

    file: str
    text: str

    def __str__(self) -> str:
        """Returns one line."""
        return f"{self.file}: {self.text}"


def find_faults(folder: Location) -> Iterator[Fault]:
    """Yields every fault; a good pack yields none.

    Raises:
        ManifestError: There is no manifest to check against.
    """
    manifest = read_manifest(folder)
    if plan_sha256(folder) not in {"", manifest.plan_sha256}:  # a pack without its .pack can still be read
        yield Fault(".pack/plan.json", "its sha256 differs from the manifest's")
    yield from _faults_of_file(current(folder, SAMPLES), manifest.samples_sha256)
    with Progress(sum(len(split.shards) for split in manifest.splits.values()), "shard", "verify") as progress:
        for name, split in manifest.splits.items():
            rows = None
            try:
                rows = read_samples(folder, name)
            except ManifestError as error:
                yield Fault(SAMPLES, str(error))
            for shard in split.shards:
                yield from _faults_of_file(folder / shard.name, shard.sha256, shard, rows)
                progress.update()


def _faults_of_file(
    location: Location,
    sha256: str,
    shard: ShardSummary | None = None,
    rows: pa.Table | None = None,
) -> Iterator[Fault]:
    try:
        with local_copy(location) as path:
            if file_sha256(path) != sha256:
                yield Fault(location.name, "its sha256 differs from the manifest's")
            if shard and rows is not None:
                yield from _faults_of_rows(path, shard, rows.filter(pc.field("shard") == shard.name).to_pylist())
    except OSError as error:
        yield Fault(location.name, error.strerror or str(error))


def _faults_of_rows(path: Path, shard: ShardSummary, rows: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    if len(rows) != shard.num_samples:
        yield Fault(shard.name, f"the index lists {len(rows)} of its samples, the manifest {shard.num_samples}")
    with path.open("rb") as file:
        for row in rows:
            if fault := _fault_of_sample(os.pread(file.fileno(), row["num_bytes"], row["offset"]), row):
                yield Fault(shard.name, f"sample {row['key']}: {fault}")


def _fault_of_sample(data: bytes, row: Mapping[str, Any]) -> str | None:
    if len(data) < row["num_bytes"]:
        return "the shard ends before it does"
    try:
        stored = read_members(data)
    except ValueError as error:
        return f"its place {error}"
    places = zip(row["member_offsets"], row["member_sizes"], strict=True)
    if stored.key != row["key"] or [data[start : start + size] for start, size in places] != [*stored.members.values()]:
        return "it is not where the index says"
    return _fault_of_content(stored, row)


def _fault_of_content(stored: StoredSample, row: Mapping[str, Any]) -> str | None:
    label = stored.members.get("cls")
    if label != str(row["class_index"]).encode():
        return f"its cls member is {label!r}, the index has {row['class_index']}"
    for jpeg in stored.jpegs:
        try:
            size = simplejpeg.decode_jpeg_header(jpeg)[:2]
        except ValueError as error:
            return f"a frame is no JPEG: {error}"
        if size != (row["height_px"], row["width_px"]):
            return f"a frame has (height, width) {size}, the index has {(row['height_px'], row['width_px'])}"
    if row.get("crc32") not in {None, 0, members_crc32(stored.members.values())}:
        return "its crc32 differs from the index's"
    return None
