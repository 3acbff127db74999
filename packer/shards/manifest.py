"""Reads and writes what describes a pack: `manifest.json`, `samples.parquet` and the list of rejected videos.

The manifest is written last: if it is there, the pack is complete. It holds the sha256 of the index and of the plan.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import ValidationError

from configs.pack import ClipConfig, PackRecipe
from configs.section import Section, describe
from packer.shards.sample import SampleRow
from packer.storage.commit import current
from packer.storage.files import file_sha256, local_copy, open_sha256, write_atomically
from packer.storage.location import Location

if TYPE_CHECKING:  # they import PyAV, which those who read a pack need not
    from packer.video.catalog import Video
    from packer.video.container import VideoError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
REJECTED = "rejected"

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("member_offsets", pa.list_(pa.int64())),
        ("member_sizes", pa.list_(pa.int64())),
        ("crc32", pa.uint32()),
        ("class_index", pa.int32()),
        ("class_name", pa.string()),
        ("source", pa.string()),
        ("source_sha256", pa.string()),
        ("num_frames", pa.int32()),
        ("num_frames_claimed", pa.int64()),
        ("num_bad_packets", pa.int32()),
        ("num_concealed_frames", pa.int32()),
        ("damage", pa.list_(pa.string())),
        ("fps", pa.float64()),
        ("duration_seconds", pa.float64()),
        ("source_width_px", pa.int32()),
        ("source_height_px", pa.int32()),
        ("num_source_sizes", pa.int32()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("is_colour_approximate", pa.bool_()),
        ("frame_indices", pa.list_(pa.int32())),
        ("decode_road", pa.string()),
        ("sampled_by", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("num_segment_frames", pa.int32()),
        ("frame_times_seconds", pa.list_(pa.float64())),
        ("frame_hashes", pa.list_(pa.string())),
    ]
)
_REJECTED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("source", "class_name", "split", "reason", "message", "source_sha256")]
)


class ManifestError(ValueError):
    """A folder without a complete pack that this version can read; the text is one sentence."""


class ShardSummary(Section):
    """One tar file."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str


class SplitSummary(Section):
    """One split."""

    num_samples: int
    num_per_class: dict[str, int]
    shards: tuple[ShardSummary, ...]


class RejectedRow(Section):
    """One video that gave no clip."""

    source: str
    class_name: str
    split: str
    reason: str
    message: str
    source_sha256: str = ""
    """Digest of the file that gave no clip; empty if it could not be read, and in packs from before it was kept."""


class Manifest(Section):
    """A complete pack."""

    format_version: int = FORMAT_VERSION
    class_names: tuple[str, ...]
    """In the order of the class indices."""
    sampling_rule: str
    config: PackRecipe
    versions: dict[str, str]
    """Versions of this package and of the libraries that decide the bytes."""
    num_videos: int
    """Candidates that were found."""
    rejected: dict[str, int]
    """How many of the candidates gave no clip, by reason."""
    splits: dict[str, SplitSummary]
    samples_sha256: str
    """sha256 of samples.parquet."""
    plan_sha256: str = ""
    """sha256 of the plan in .pack; empty in packs without a plan."""

    @property
    def clip(self) -> ClipConfig:
        """What one clip is."""
        return self.config.clip

    @property
    def seed(self) -> int:
        """The seed of the split and of the order of samples."""
        return self.config.seed


def read_manifest(folder: Location) -> Manifest:
    """Returns the manifest of the pack in `folder`.

    Raises:
        ManifestError: There is no manifest, it is damaged, or a newer version wrote it.
    """
    path = current(folder, MANIFEST)
    try:
        values = json.loads(path.read_bytes())
        version = values["format_version"]
    except FileNotFoundError:
        raise ManifestError(
            f"{folder} holds no complete pack ({MANIFEST} is missing): run `python -m packer DATA {folder}`; if a "
            "pack was stopped there, the same command continues it"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path} is not a manifest: pack again into an empty folder") from error
    if version != FORMAT_VERSION:
        raise ManifestError(f"{path} has format {version}, this version reads {FORMAT_VERSION}: update clipstream")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise ManifestError(f"{path} is damaged: {'; '.join(describe(error).splitlines())}") from error


def manifest_sha256(folder: Location) -> str:
    """Returns the sha256 of the manifest's bytes: equal digests mean equal packs."""
    return file_sha256(current(folder, MANIFEST))


def read_samples(folder: Location, split: str | None, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the index rows of one split or of all, in the order of shards and, within a shard, of the tar.

    Args:
        folder: A complete pack.
        split: Name of the split; a split that the pack lacks has no rows. None: all splits.
        columns: Only these columns, such as `("shard", "offset", "num_bytes")`; columns that the pack lacks are left
            out (older packs have no `crc32`); by default all columns.

    Raises:
        ManifestError: The index is missing or damaged.
    """
    path = current(folder, SAMPLES)
    try:
        with local_copy(path) as file:
            held = pq.read_schema(file).names
            names = [name for name in columns or held if name in held]
            filters = None if split is None else [("split", "==", split)]
            return pq.read_table(file, columns=names, filters=filters, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(f"{path} cannot be read: run the packer again, it rebuilds the index") from error


def write_samples(folder: Location, rows: Iterable[SampleRow], rows_per_group: int = 2048) -> str:
    """Writes the index and returns its sha256; at most `rows_per_group` rows are in memory (2048 take some 10 MiB)."""
    waiting = iter(rows)
    with write_atomically(folder / SAMPLES) as file:
        with pq.ParquetWriter(file, _SCHEMA) as writer:
            while some := [row.model_dump() for row in islice(waiting, rows_per_group)]:
                writer.write_table(pa.Table.from_pylist(some, _SCHEMA))
        return open_sha256(file)


def rejected_row(video: "Video", split: str, error: "VideoError", sha256: str = "") -> RejectedRow:
    """Returns the row of a rejected video; `split` is empty if the video was set aside before the split."""
    return RejectedRow(
        source=video.source,
        class_name=video.class_name,
        split=split,
        reason=error.reason,
        message=str(error),
        source_sha256=sha256,
    )


def read_rejected(folder: Location) -> list[RejectedRow]:
    """Returns the rejected videos of a complete pack; none if their list is missing or damaged."""
    try:
        with local_copy(current(folder, f"{REJECTED}.parquet")) as file:
            return [RejectedRow.model_validate(row) for row in pq.read_table(file).to_pylist()]
    except (OSError, pa.ArrowInvalid, ValidationError):
        return []


def read_rejected_columns(folder: Location, columns: Sequence[str]) -> pa.Table | None:
    """Returns columns of the list of rejected videos of a complete pack; None if the list is missing or damaged."""
    try:
        with local_copy(current(folder, f"{REJECTED}.parquet")) as file:
            return pq.read_table(file, columns=list(columns))
    except (OSError, pa.ArrowInvalid):
        return None


def write_rejected(folder: Location, rows: Iterable[RejectedRow]) -> None:
    """Writes the rejected videos as parquet and as CSV; if there are none, both files hold only the column names."""
    table = pa.Table.from_pylist([row.model_dump() for row in rows], _REJECTED_SCHEMA)
    with write_atomically(folder / f"{REJECTED}.parquet") as file:
        pq.write_table(table, file)
    with write_atomically(folder / f"{REJECTED}.csv") as file:
        pyarrow.csv.write_csv(table, file)


def write_manifest(folder: Location, manifest: Manifest) -> None:
    """Writes the manifest, which makes the pack complete."""
    with write_atomically(folder / MANIFEST) as file:
        file.write(manifest.model_dump_json(indent=2).encode() + b"\n")
