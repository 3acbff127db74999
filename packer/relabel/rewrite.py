"""Writes a pack with new labels: from the stored frames, and so that a kill leaves the old pack or the new one."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from configs.section import UsageError
from packer.labels.rows import Labels
from packer.planning.plan import PlannedShard
from packer.progress import Progress
from packer.relabel.decision import Decision, decide
from packer.shards.manifest import (
    MANIFEST,
    REJECTED,
    SAMPLES,
    Manifest,
    RejectedRow,
    ShardSummary,
    SplitSummary,
    read_manifest,
    write_manifest,
    write_rejected,
    write_samples,
)
from packer.shards.sample import SampleRow, StoredSample, read_members, relabelled_members
from packer.shards.shard import ShardRecord, ShardWriter, record_name, stored_record, write_record
from packer.shards.stored_plan import PLAN, plan_sha256, write_plan
from packer.storage.commit import Change, commit, recover, waiting_folder
from packer.storage.files import file_sha256, local_copy, open_sha256
from packer.storage.location import Location
from packer.storage.target_lock import locked


@dataclass(frozen=True)
class RelabelResult:
    """What new labels changed in a pack, or would change."""

    decision: Decision
    manifest: Manifest
    """The pack as it is now."""
    seconds: float


def relabel(target: Location, labels: Labels, *, dry_run: bool = False) -> RelabelResult:
    """Gives the samples of a complete pack, and its rejected videos, new labels; no video is read.

    The pack becomes what packing the videos with the new labels gives, but for the names of the shards: each shard that
    changes gets a new one. Samples that no label is about keep theirs, and all samples stay in their split.

    Args:
        target: A complete pack.
        labels: The new labels.
        dry_run: Only decide, and write nothing.

    Raises:
        UsageError: The pack is not complete or damaged, another process writes it, or the labels cannot be used.
        OSError: The storage fails. The pack is as it was, or has all new labels.
    """
    started = time.monotonic()
    decision = decide(target, labels)
    manifest = decision.held.manifest
    if not dry_run:
        with locked(target):
            recover(target)
            if plan_sha256(target) != manifest.plan_sha256:
                raise UsageError(f"another process has just changed {target}: give the same command again")
            if decision.is_change:
                _write(target, decision)
        manifest = read_manifest(target)
    return RelabelResult(decision, manifest, time.monotonic() - started)


def _write(target: Location, decision: Decision) -> None:
    num_samples = sum(video.source in decision.held.sha256_of for _, new in decision.rewritten for video in new.videos)
    with waiting_folder(target) as waiting, Progress(num_samples, "sample", "relabel") as progress:
        writer = _Writer(target, waiting, decision, progress)
        for old, new in zip(decision.held.plan.shards, decision.plan.shards, strict=True):
            writer.write(old, new)
        write_plan(waiting, decision.plan)
        write_rejected(waiting, decision.rejected)
        manifest = decision.held.manifest.model_copy(
            update={
                "class_names": decision.plan.class_names,
                "rejected": dict(sorted(Counter(row.reason for row in decision.rejected).items())),
                "splits": writer.splits(),
                "samples_sha256": write_samples(waiting, writer.rows()),
                "plan_sha256": file_sha256(waiting / PLAN),
            }
        )
        write_manifest(waiting, manifest)
        commit(target, writer.change)


class _Writer:
    """Writes the shards that change into the folder where new files wait, and knows what changes."""

    def __init__(self, target: Location, waiting: Location, decision: Decision, progress: Progress) -> None:
        self._target = target
        self._waiting = waiting
        self._plan = decision.plan
        self._max_bytes = decision.plan.recipe.shards.max_bytes
        self._index_of = {name: index for index, name in enumerate(decision.plan.class_names)}
        self._rejected = {row.source: row for row in decision.rejected if row.split}
        self._num_per_class = decision.num_per_class
        self._progress = progress
        self._summaries: dict[str, tuple[ShardSummary, ...]] = {}
        self._added: list[str] = []
        self._replaced: list[str] = []
        self._removed: list[str] = []

    @property
    def change(self) -> Change:
        """What changes in the target."""
        index = (PLAN, f"{REJECTED}.parquet", f"{REJECTED}.csv", SAMPLES, MANIFEST)
        return Change(added=tuple(self._added), replaced=(*self._replaced, *index), removed=tuple(self._removed))

    def write(self, old: PlannedShard, new: PlannedShard) -> None:
        """Writes one shard, if anything of it changes."""
        record = self._record(self._target, old)
        sources = {video.source for video in new.videos}  # others were planned into another shard since
        rejected = tuple(
            self._rejected.get(row.source, row) if row.source in sources else row for row in record.rejected
        )
        if new.name != old.name:
            written = self._rewrite(new, record, rejected)
            self._added += [*(shard.name for shard in written.shards), record_name(new)]
            self._removed += [*(shard.name for shard in record.shards), record_name(old)]
            record = written
        elif rejected != record.rejected:
            write_record(self._waiting, new, record.model_copy(update={"rejected": rejected}))
            self._replaced.append(record_name(new))
        self._summaries[new.name] = record.shards

    def splits(self) -> dict[str, SplitSummary]:
        """Returns the summary of each split."""
        return {
            split: SplitSummary(
                num_samples=sum(num_per_class.values()),
                num_per_class=num_per_class,
                shards=tuple(s for new in self._plan.shards if new.split == split for s in self._summaries[new.name]),
            )
            for split, num_per_class in self._num_per_class.items()
        }

    def rows(self) -> Iterator[SampleRow]:
        """Yields the rows of the index, shard by shard."""
        added = set(self._added)
        for new in self._plan.shards:
            yield from self._record(self._waiting if record_name(new) in added else self._target, new).rows

    def _rewrite(self, new: PlannedShard, record: ShardRecord, rejected: tuple[RejectedRow, ...]) -> ShardRecord:
        videos = {video.source: video for video in new.videos}
        with ShardWriter(self._waiting, new, self._max_bytes) as writer:
            for row, members in self._stored(record):
                video = videos[row.source]
                index = self._index_of[video.class_name]
                known = {"key": video.key, "class_name": video.class_name, "class_index": index}
                writer.add_stored(row.model_copy(update=known), relabelled_members(members, video.class_name, index))
                self._progress.update()
            for of_rejected in rejected:
                if of_rejected.source in videos:
                    writer.add_rejected(of_rejected)
        return writer.record

    def _stored(self, record: ShardRecord) -> Iterator[tuple[SampleRow, StoredSample]]:
        """Yields the samples of a shard, checked."""
        for shard in record.shards:
            with local_copy(self._target / shard.name) as path, path.open("rb") as file:
                if open_sha256(file) != shard.sha256:
                    raise _damaged(self._target, shard.name)
                for row in record.rows:
                    if row.shard == shard.name:
                        yield row, read_members(os.pread(file.fileno(), row.num_bytes, row.offset))

    def _record(self, folder: Location, planned: PlannedShard) -> ShardRecord:
        try:
            return stored_record(folder, planned)
        except (FileNotFoundError, ValidationError) as error:
            raise _damaged(self._target, record_name(planned)) from error


def _damaged(target: Location, name: str) -> UsageError:
    return UsageError(f"{target / name} is damaged: `python -m packer repair {target} DATA` first, then relabel")
