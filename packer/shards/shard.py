"""Writes one shard: its tar files, each whole or absent, then the record that says that the shard is done."""

import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BufferedRandom
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from configs.section import Section
from packer.planning.plan import PlannedShard
from packer.shards.manifest import RejectedRow, ShardSummary, rejected_row
from packer.shards.sample import SampleRow, clip_metadata, members_crc32, sample_members, stored_bytes, write_members
from packer.storage.files import file_sha256, open_sha256, write_atomically
from packer.storage.location import Location
from packer.storage.target_lock import RECORDS
from packer.video.catalog import Video
from packer.video.clip import Clip
from packer.video.container import VideoError
from packer.video.picture_hash import frame_hashes


class ShardRecord(Section):
    """What one planned shard became: several tars if its samples take more than `max_bytes`."""

    shards: tuple[ShardSummary, ...]
    rows: tuple[SampleRow, ...]
    rejected: tuple[RejectedRow, ...]


class ShardWriter:
    """Writes the samples of one planned shard in order; when the block ends without an error, also the record.

    Attributes:
        record: What the shard became; set when the block ends without an error.
    """

    record: ShardRecord

    def __init__(self, folder: Location, planned: PlannedShard, max_bytes: int) -> None:
        """Takes the pack's folder, the planned shard, and the most bytes of one tar, which holds a sample at least."""
        self._folder = folder
        self._planned = planned
        self._max_bytes = max_bytes
        self._open = ExitStack()
        self._file: BufferedRandom
        self._tar: tarfile.TarFile | None = None
        self._tar_rows: list[SampleRow] = []
        self._shards: list[ShardSummary] = []
        self._rows: list[SampleRow] = []
        self._rejected: list[RejectedRow] = []

    def add(self, video: Video, class_index: int, clip: Clip) -> None:
        """Appends a sample."""
        known = {
            "key": video.key,
            "class_index": class_index,
            "class_name": video.class_name,
            "source": video.source,
            **clip_metadata(clip),
            "frame_hashes": frame_hashes(clip.jpegs),
        }
        self._append(known, sample_members(video, class_index, clip))

    def add_stored(self, row: SampleRow, members: Sequence[tuple[str, bytes]]) -> None:
        """Appends a sample that another shard holds; all of its row stays but where the sample lies."""
        self._append(row.model_dump(), members)

    def _append(self, known: Mapping[str, Any], members: Sequence[tuple[str, bytes]]) -> None:
        tar = self._tar_with_room(stored_bytes(members))
        offset = tar.offset
        member_offsets = write_members(tar, known["key"], members)
        place = {
            "split": self._planned.split,
            "shard": self._tar_name,
            "offset": offset,
            "num_bytes": tar.offset - offset,
            "member_offsets": member_offsets,
            "member_sizes": [len(data) for _, data in members],
            "crc32": members_crc32(data for _, data in members),
        }
        self._tar_rows.append(SampleRow.model_validate({**known, **place}))

    def add_rejected(self, row: RejectedRow) -> None:
        """Lists a video that gave no clip."""
        self._rejected.append(row)

    def reject(self, video: Video, error: VideoError, sha256: str = "") -> None:
        """Lists a video that gave no clip, with the digest of its file if that is known."""
        self.add_rejected(rejected_row(video, self._planned.split, error, sha256))

    def __enter__(self) -> "ShardWriter":
        """Returns the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the last tar and writes the record; after an error, leaves neither."""
        if error is not None:
            self._open.__exit__(kind, error, trace)
            return
        self._close_tar()
        self.record = ShardRecord(shards=tuple(self._shards), rows=tuple(self._rows), rejected=tuple(self._rejected))
        write_record(self._folder, self._planned, self.record)

    @property
    def _tar_name(self) -> str:
        part = len(self._shards)
        return f"{self._planned.name}_{part}.tar" if part else f"{self._planned.name}.tar"

    def _tar_with_room(self, num_bytes: int) -> tarfile.TarFile:
        if self._tar is not None and self._tar.offset + num_bytes + tarfile.RECORDSIZE > self._max_bytes:
            self._close_tar()
        if self._tar is None:
            self._file = self._open.enter_context(write_atomically(self._folder / self._tar_name))
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        return self._tar

    def _close_tar(self) -> None:
        if self._tar is None:
            return
        with self._open:
            self._tar.close()
            shard = ShardSummary(
                name=self._tar_name,
                num_samples=len(self._tar_rows),
                sha256=open_sha256(self._file),
                num_bytes=self._file.tell(),
            )
        self._shards.append(shard)
        self._rows += self._tar_rows
        self._tar, self._tar_rows = None, []


def write_record(folder: Location, planned: PlannedShard, record: ShardRecord) -> None:
    """Writes the record of a shard, whose tars must be whole."""
    with write_atomically(folder / record_name(planned)) as file:
        file.write(record.model_dump_json().encode())


def verified_record(folder: Location, planned: PlannedShard) -> ShardRecord | None:
    """Returns the record of a shard whose tars are all as recorded; None if one is not, or the record is missing."""
    try:
        record = stored_record(folder, planned)
        whole = all(file_sha256(folder / shard.name) == shard.sha256 for shard in record.shards)
        # Rejected videos may have been planned into another shard since, to be tried again.
        sources = {video.source for video in planned.videos}
        rejected = tuple(row for row in record.rejected if row.source in sources)
        record = record.model_copy(update={"rejected": rejected})
    except (FileNotFoundError, ValidationError):
        return None
    return record if whole else None


def has_record(folder: Location, planned: PlannedShard) -> bool:
    """Tells whether a shard has been written; it may have been damaged since."""
    return (folder / record_name(planned)).exists()


def stored_record(folder: Location, planned: PlannedShard) -> ShardRecord:
    """Returns the record of a shard as it is stored; the tars are not read.

    Raises:
        FileNotFoundError: There is no record.
        ValidationError: The record is damaged.
    """
    return ShardRecord.model_validate_json((folder / record_name(planned)).read_bytes())


def record_name(planned: PlannedShard) -> str:
    """Returns the name of a shard's record, below the pack's folder."""
    return f"{RECORDS}/{planned.name}.json"
