"""Checks a complete pack against its manifest and index, byte by byte."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import simplejpeg

from packer.manifest import SAMPLES, ManifestError, ShardSummary, file_sha256, read_manifest, read_samples
from packer.target import plan_sha256


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file."""

    file: str
    text: str

    def __str__(self) -> str:
        """Returns one line."""
        return f"{self.file}: {self.text}"


def find_faults(folder: Path) -> Iterator[Fault]:
    """Yields every fault; a good pack yields none.

    Raises:
        ManifestError: There is no manifest to check against.
    """
    manifest = read_manifest(folder)
    if plan_sha256(folder) not in {"", manifest.plan_sha256}:  # a pack is read without its .pack too
        yield Fault(".pack/plan.json", "its sha256 is not the manifest's")
    yield from _faults_of_bytes(folder / SAMPLES, manifest.samples_sha256)
    for name, split in manifest.splits.items():
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        try:
            for row in read_samples(folder, name).to_pylist():
                rows[row["shard"]].append(row)
        except ManifestError as error:
            yield Fault(SAMPLES, str(error))
        for shard in split.shards:
            yield from _faults_of_bytes(folder / shard.name, shard.sha256)
            if rows:
                yield from _faults_of_rows(folder / shard.name, shard, rows[shard.name])


def _faults_of_bytes(path: Path, sha256: str) -> Iterator[Fault]:
    try:
        if file_sha256(path) != sha256:
            yield Fault(path.name, "its sha256 is not the manifest's")
    except OSError as error:
        yield Fault(path.name, error.strerror or str(error))


def _faults_of_rows(path: Path, shard: ShardSummary, rows: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    if len(rows) != shard.num_samples:
        yield Fault(path.name, f"the index has {len(rows)} samples of it, the manifest {shard.num_samples}")
    with suppress(OSError), path.open("rb") as file:  # that it cannot be read was said above
        for row in rows:
            if fault := _fault_of_sample(file, row):
                yield Fault(path.name, f"sample {row['key']}: {fault}")


def read_members(file: BinaryIO, row: Mapping[str, Any]) -> list[bytes]:
    """Returns the members of a sample, the JPEGs first, from its shard and its row of the index.

    Raises:
        ValueError: The sample is not where the row says.
    """
    data = os.pread(file.fileno(), row["num_bytes"], row["offset"])
    if len(data) < row["num_bytes"] or not data.startswith(f"{row['key']}.000.jpg\0".encode()):
        raise ValueError("it is not where the index says")
    return [
        data[offset : offset + size] for offset, size in zip(row["member_offsets"], row["member_sizes"], strict=True)
    ]


def _fault_of_sample(file: BinaryIO, row: Mapping[str, Any]) -> str | None:
    try:
        *jpegs, label, _ = read_members(file, row)
    except ValueError as error:
        return str(error)
    if label != str(row["class_index"]).encode():
        return f"its cls member is {label!r}, the index has {row['class_index']}"
    for jpeg in jpegs:
        try:
            size = simplejpeg.decode_jpeg_header(jpeg)[:2]
        except ValueError as error:
            return f"a frame is no JPEG: {error}"
        if size != (row["height_px"], row["width_px"]):
            return f"a frame has (height, width) {size}, the index has {(row['height_px'], row['width_px'])}"
    return None
