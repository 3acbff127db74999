"""Checks a complete pack against its manifest and index, byte by byte."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import simplejpeg

from packer.manifest import SAMPLES, file_sha256, read_manifest, read_samples


def find_faults(folder: Path) -> Iterator[str]:
    """Yields one line per fault; a good pack yields none.

    Raises:
        ManifestError: There is no manifest or index to check against.
    """
    manifest = read_manifest(folder)
    if file_sha256(folder / SAMPLES) != manifest.samples_sha256:
        yield f"{SAMPLES}: its sha256 is not the manifest's"
    for name, split in manifest.splits.items():
        rows = read_samples(folder, name).to_pylist()
        if len(rows) != split.num_samples:
            yield f"{SAMPLES}: {len(rows)} rows for {name}, the manifest has {split.num_samples}"
        for shard in split.shards:
            yield from _faults_of_shard(
                folder / shard.name, shard.sha256, [row for row in rows if row["shard"] == shard.name]
            )


def _faults_of_shard(path: Path, sha256: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    try:
        if file_sha256(path) != sha256:
            yield f"{path.name}: its sha256 is not the manifest's"
        with path.open("rb") as file:
            for row in rows:
                fault = _fault_of_sample(file, row)
                if fault:
                    yield f"{path.name}: sample {row['key']}: {fault}"
    except OSError as error:
        yield f"{path.name}: {error.strerror}"


def _fault_of_sample(file: BinaryIO, row: dict[str, Any]) -> str | None:
    data = os.pread(file.fileno(), row["num_bytes"], row["offset"])
    if len(data) < row["num_bytes"] or not data.startswith(f"{row['key']}.000.jpg\0".encode()):
        return "it is not where the index says"
    *jpegs, label, _ = [
        data[offset : offset + size] for offset, size in zip(row["member_offsets"], row["member_sizes"], strict=True)
    ]
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
