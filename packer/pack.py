"""Carries out a plan: packs the shards that are not done yet, then writes the index and the manifest.

The same command continues a pack that was killed. The bytes depend on the videos and the recipe alone, not on the
number of workers, on time, or on how often the pack was stopped.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from configs.section import UsageError
from packer.decoders.clip_stream import open_pool, read_clips
from packer.planning.plan import Plan, PlannedShard
from packer.planning.split import SPLITS
from packer.prepare import Preparation, count_and_name
from packer.progress import Progress
from packer.shards.manifest import (
    MANIFEST,
    Manifest,
    RejectedRow,
    ShardSummary,
    SplitSummary,
    rejected_row,
    write_manifest,
    write_rejected,
    write_samples,
)
from packer.shards.sample import SampleRow
from packer.shards.shard import ShardRecord, ShardWriter, stored_record, verified_record
from packer.shards.stored_plan import plan_sha256, write_plan
from packer.storage.location import Location
from packer.storage.target_lock import locked
from packer.video.container import VideoError
from packer.video.sampling import SAMPLING_RULES

logger = logging.getLogger(__name__)

_WINDOW_PER_WORKER = 4
"""Videos per decoder that are decoded, or wait in memory, at one time."""
_WHOLE_SHARE = 0.9
"""A video with a smaller share of its stated frames is damaged: whole files lack a frame or three, cut ones many."""


class PackError(Exception):
    """A pack that could not be finished; the text is one sentence."""


@dataclass(frozen=True)
class PackResult:
    """A complete pack, and what this command did for it."""

    manifest: Manifest
    plan: Plan
    notes: tuple[tuple[str, str], ...]
    rejected_fraction: float
    """Share of the videos that gave no clip; texts, pictures and copies do not count."""
    num_damaged: int
    """Packed videos with packets that could not be decoded, or with far fewer frames than the container states."""
    num_videos_now: int
    """Videos that this command decoded; if it continued a stopped pack, not all of them."""
    seconds: float


@dataclass(frozen=True)
class _Packed:
    """The part of a shard's record that stays in memory: the rows of a million videos would take gigabytes."""

    shards: tuple[ShardSummary, ...]
    rejected: tuple[RejectedRow, ...]
    num_per_class: Counter[str]
    num_damaged: int

    @classmethod
    def of(cls, record: ShardRecord) -> "_Packed":
        num_per_class = Counter(row.class_name for row in record.rows)
        return cls(record.shards, record.rejected, num_per_class, sum(map(_is_damaged, record.rows)))


def pack(prepared: Preparation, workers: int = 0, strict: bool = False, cluster: str = "") -> PackResult:
    """Packs what `prepare` decided.

    Args:
        prepared: What to pack.
        workers: Processes that decode videos; 0: one per core. The bytes do not depend on it.
        strict: Stop at the first video that gives no clip.
        cluster: Address of the Ray cluster that decodes; empty: this machine decodes.

    Raises:
        UsageError: Another process writes the target, or has changed it since `prepare`.
        PackError: A split has no readable video of a class, so the pack is not complete; or, with `strict`, a video
            gave no clip.
        OSError: The target cannot be written to (a full disk), or no decoder process starts.
    """
    target, plan = prepared.target, prepared.plan
    started = time.monotonic()
    with locked(target):
        if plan_sha256(target) != prepared.bound_sha256:
            raise UsageError(f"another process has just changed {target}: give the same command again")
        write_plan(target, plan)
        done = _done_shards(target, plan) if prepared.bound_sha256 else {}
        missing = [shard for shard in plan.shards if shard.name not in done]
        if done:
            logger.info("continue num_shards_done=%d num_shards_missing=%d", len(done), len(missing))
        if strict:
            for row in _failed(done.values()):
                raise _strict_error(row.source, row.message)
        done |= pack_shards(target, plan, missing, workers, strict, cluster)
        records = [done[shard.name] for shard in plan.shards]
        manifest = _finish(prepared, records)
    return PackResult(
        manifest=manifest,
        plan=plan,
        notes=prepared.notes,
        rejected_fraction=len(_failed(records)) / plan.num_videos,
        num_damaged=sum(record.num_damaged for record in records),
        num_videos_now=sum(len(shard.videos) for shard in missing),
        seconds=time.monotonic() - started,
    )


def pack_shards(
    target: Location,
    plan: Plan,
    shards: Sequence[PlannedShard],
    workers: int,
    strict: bool = False,
    cluster: str = "",
) -> dict[str, _Packed]:
    """Packs some of a plan's shards and returns what they became, by name.

    Raises:
        PackError: A video has changed since it was planned; or, with `strict`, a video gave no clip.
    """
    videos = [video for shard in shards for video in shard.videos if video.source not in plan.copies]
    if lost := [video.source for video in videos if not video.path]:
        raise PackError(
            f"{count_and_name(lost)} must be packed again, but changed or went since: put the old files back"
        )
    class_index = {name: index for index, name in enumerate(plan.class_names)}
    clip, limits = plan.recipe.clip, plan.recipe.limits
    records = {}
    with Progress(len(videos), "video", "pack") as progress, open_pool(limits, workers, len(videos), cluster) as pool:
        num_rejected = 0
        outcomes = read_clips(pool, videos, clip, pool.num_workers * _WINDOW_PER_WORKER)
        for shard in shards:
            with ShardWriter(target, shard, plan.recipe.shards.max_bytes) as writer:
                for video in shard.videos:
                    original = plan.copies.get(video.source)
                    outcome = next(outcomes) if original is None else _duplicate(original)
                    if isinstance(outcome, VideoError):
                        if strict and original is None:
                            raise _strict_error(video.source, str(outcome))
                        writer.reject(video, outcome)
                        num_rejected += 1
                    else:
                        writer.add(video, class_index[video.class_name], outcome)
                    progress.update(original is None, rejected=num_rejected)
            records[shard.name] = _Packed.of(writer.record)
    return records


def _done_shards(target: Location, plan: Plan) -> dict[str, _Packed]:
    """Returns the shards that are packed already, by name; reads and checks all their bytes."""
    done = {}
    with Progress(len(plan.shards), "shard", "check") as progress:
        for shard in plan.shards:
            if (record := verified_record(target, shard)) is not None:
                done[shard.name] = _Packed.of(record)
            progress.update()
    return done


def _failed(records: Iterable[_Packed]) -> list[RejectedRow]:
    return [row for record in records for row in record.rejected if row.reason != "duplicate"]


def _is_damaged(row: SampleRow) -> bool:
    # Records of earlier versions have no codes. Whole files miss a frame or three of those stated; cut ones miss half.
    return bool(row.damage) or row.num_bad_packets > 0 or row.num_frames < _WHOLE_SHARE * row.num_frames_claimed


def _duplicate(original: str) -> VideoError:
    return VideoError("duplicate", f"its content is that of {original}, which is packed (duplicates reject)")


def _strict_error(source: str, message: str) -> PackError:
    return PackError(f"{source} is rejected: {message}; repair or remove it, or leave --strict out")


def _finish(prepared: Preparation, records: Sequence[_Packed]) -> Manifest:
    """Writes the index and, last, the manifest."""
    target, plan, non_videos = prepared.target, prepared.plan, prepared.catalog.non_videos
    splits = {}
    for split in SPLITS:
        of_split = [record for planned, record in zip(plan.shards, records, strict=True) if planned.split == split]
        num_per_class = sum((record.num_per_class for record in of_split), Counter[str]())
        if not of_split:
            continue
        for name in plan.class_names:
            if not num_per_class[name]:
                raise PackError(
                    f"class {name!r} has no readable video in {split}: repair its videos or remove its folder, then "
                    f"delete {target} and pack again"
                )
        splits[split] = SplitSummary(
            num_samples=sum(num_per_class.values()),
            num_per_class={name: num_per_class[name] for name in plan.class_names},
            shards=tuple(shard for record in of_split for shard in record.shards),
        )
    rejected = [rejected_row(video, "", error) for video, error in non_videos]
    rejected += [row for record in records for row in record.rejected]
    write_rejected(target, rejected)
    (target / MANIFEST).unlink(missing_ok=True)  # an earlier manifest must never be read with this index
    manifest = Manifest(
        class_names=plan.class_names,
        sampling_rule=SAMPLING_RULES[plan.recipe.clip.sampling],
        config=plan.recipe,
        versions=dict(plan.versions),
        num_videos=plan.num_videos + len(non_videos),
        rejected=dict(sorted(Counter(row.reason for row in rejected).items())),
        splits=splits,
        samples_sha256=write_samples(
            target, (row for shard in plan.shards for row in stored_record(target, shard).rows)
        ),
        plan_sha256=plan_sha256(target),
    )
    write_manifest(target, manifest)
    return manifest
