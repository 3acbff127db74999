"""Carries out a plan: packs the shards that are not done yet, then writes the index and the manifest.

Val and test are packed first: if none of a class's videos can be read there, others of train take their place, as
long as no train shard that holds them is written.

The same command continues a pack that was killed. The bytes depend on the videos and the recipe alone, not on the
number of workers, on time, or on how often the pack was stopped.
"""

import errno
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from configs.section import UsageError
from packer.decoders.clip_stream import WINDOW_PER_WORKER, open_pool, read_clips
from packer.decoders.pool import DecodePool
from packer.labels.splits import SPLITS
from packer.planning.group import content_digest
from packer.planning.layout import count_and_name, counts_as_failed
from packer.planning.plan import Plan, PlannedShard
from packer.planning.spare import replace_from_train
from packer.prepare import Preparation
from packer.progress import Progress
from packer.retry import CHANGED
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
from packer.shards.shard import ShardRecord, ShardWriter, has_record, stored_record, verified_record
from packer.shards.stored_plan import plan_sha256, write_plan
from packer.storage.commit import recover
from packer.storage.location import Location, is_url
from packer.storage.target_lock import locked
from packer.video.catalog import Video
from packer.video.clip import Clip
from packer.video.container import VideoError
from packer.video.frame_folder import open_frame_folder
from packer.video.sampling import SAMPLING_RULES

logger = logging.getLogger(__name__)

_OF_COPIES = frozenset({"duplicate", "contradiction"})
_GONE = VideoError("unreadable", "the file went away before it was packed")


class PackError(Exception):
    """A pack that could not be finished; the text is one sentence."""


@dataclass(frozen=True)
class PackResult:
    """A complete pack, and what this command did for it."""

    target: Location
    manifest: Manifest
    plan: Plan
    notes: tuple[tuple[str, str], ...]
    rejected_fraction: float
    """Share of the videos that gave no clip. Copies do not count, nor do texts, pictures and the like, unless their
    names end like a video's."""
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
        PackError: A class has no readable video to train on, so the pack is not complete; or, with `strict`, a video
            gave no clip.
        OSError: The storage of a video or of the target fails (the network, credentials, a full disk), or no decoder
            process starts. What is packed stays, and the same command goes on.
    """
    target, plan, notes = prepared.target, prepared.plan, prepared.notes
    misnamed = [item for item in prepared.catalog.non_videos if counts_as_failed(*item, prepared.has_labels)]
    if strict and misnamed:
        raise _strict_error(misnamed[0][0].source, str(misnamed[0][1]))
    started = time.monotonic()
    with locked(target):
        recover(target)
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
        with _packer(target, plan, missing, workers, strict, cluster) as packer:
            done |= packer.pack(_missing(plan, done, ["val", "test"]))
            while spare := replace_from_train(plan, done.keys(), _lacking(plan, done, prepared.free_splits)):
                plan, packer.plan, note = spare.plan, spare.plan, spare.note
                logger.warning(note)
                notes = (*notes, ("replaced", note))
                write_plan(target, plan)
                done |= packer.pack(_missing(plan, done, ["val", "test"]))
            done |= packer.pack(_missing(plan, done, ["train"]))
        records = [done[shard.name] for shard in plan.shards]
        manifest = _finish(replace(prepared, plan=plan), records)
    return PackResult(
        target=target,
        manifest=manifest,
        plan=plan,
        notes=notes,
        rejected_fraction=(len(_failed(records)) + len(misnamed)) / (plan.num_videos + len(misnamed)),
        num_damaged=sum(record.num_damaged for record in records),
        num_videos_now=sum(len(shard.videos) for shard in missing),
        seconds=time.monotonic() - started,
    )


def pack_shards(target: Location, plan: Plan, shards: Sequence[PlannedShard], workers: int) -> None:
    """Packs some of a plan's shards.

    Raises:
        PackError: A video has changed since it was planned.
        OSError: As for `pack`.
    """
    with _packer(target, plan, shards, workers) as packer:
        packer.pack(shards)


@contextmanager
def _packer(
    target: Location,
    plan: Plan,
    shards: Sequence[PlannedShard],
    workers: int,
    strict: bool = False,
    cluster: str = "",
) -> Iterator["_Packer"]:
    num_videos = sum(len(_to_decode(plan, shard)) for shard in shards)
    limits = plan.recipe.limits
    with Progress(num_videos, "video", "pack") as progress, open_pool(limits, workers, num_videos, cluster) as pool:
        yield _Packer(target, plan, pool, progress, strict)


def _to_decode(plan: Plan, shard: PlannedShard) -> list[Video]:
    return [video for video in shard.videos if video.source not in plan.copies]


class _Packer:
    """Packs shards of a plan with one pool of decoders."""

    def __init__(self, target: Location, plan: Plan, pool: DecodePool, progress: Progress, strict: bool) -> None:
        self.plan = plan
        self._target = target
        self._pool = pool
        self._progress = progress
        self._strict = strict
        self._num_rejected = 0
        self._last_digest = ("", "")

    def pack(self, shards: Sequence[PlannedShard]) -> dict[str, _Packed]:
        """Packs shards and returns what they became, by name.

        Raises:
            PackError: A video that was packed once has changed or gone; or, with `strict`, a video gave no clip.
        """
        plan = self.plan
        videos = [video for shard in shards for video in _to_decode(plan, shard)]
        gone = self._gone(shards)
        clips = read_clips(
            self._pool,
            [video for video in videos if video.source not in gone],
            plan.recipe.clip,
            self._pool.num_workers * WINDOW_PER_WORKER,
        )
        class_of = {video.source: video.class_name for shard in plan.shards for video in shard.videos}
        records = {}
        for shard in shards:
            with ShardWriter(self._target, shard, plan.recipe.shards.max_bytes) as writer:
                for video in shard.videos:
                    if original := plan.copies.get(video.source):
                        self._add(writer, video, copy_error(video, original, class_of[original]))
                    else:
                        self._add(writer, video, _GONE if video.source in gone else _checked(video, next(clips)))
            records[shard.name] = _Packed.of(writer.record)
        return records

    def _gone(self, shards: Iterable[PlannedShard]) -> set[str]:
        """Returns the videos that went away before they were packed."""
        gone: set[str] = set()
        for shard in shards:
            lost = [video.source for video in _to_decode(self.plan, shard) if not video.path]
            if lost and has_record(self._target, shard):
                raise PackError(
                    f"{count_and_name(lost)} must be packed again, but changed or went since: put the old files back"
                )
            gone.update(lost)
        return gone

    def _add(self, writer: ShardWriter, video: Video, outcome: Clip | VideoError) -> None:
        is_decoded = video.source not in self.plan.copies
        if isinstance(outcome, VideoError):
            if self._strict and is_decoded:
                raise _strict_error(video.source, str(outcome))
            self._num_rejected += 1
            is_read = is_decoded and outcome.reason not in {"unreadable", CHANGED}
            writer.reject(video, outcome, self._digest(video) if is_read else "")
        else:
            writer.add(video, self.plan.class_names.index(video.class_name), outcome)
        self._progress.update(is_decoded, rejected=self._num_rejected)

    def _digest(self, video: Video) -> str:
        if self._last_digest[0] != video.path:  # a file with many rejected segments is read once
            self._last_digest = (video.path, content_digest(video))
        return self._last_digest[1]


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
    return [row for record in records for row in record.rejected if row.reason not in _OF_COPIES]


def _missing(plan: Plan, done: Mapping[str, _Packed], splits: Sequence[str]) -> list[PlannedShard]:
    return [shard for shard in plan.shards if shard.name not in done and shard.split in splits]


def _lacking(plan: Plan, done: Mapping[str, _Packed], splits: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the classes of which a split, all of whose shards are packed, has no readable video: (class, split)."""
    lacking = []
    for split in splits:
        shards = [shard for shard in plan.shards if shard.split == split]
        num_per_class = sum((done[shard.name].num_per_class for shard in shards), Counter[str]())
        lacking += [(name, split) for name in plan.class_names if shards and not num_per_class[name]]
    return lacking


def _is_damaged(row: SampleRow) -> bool:
    return bool(row.damage) or row.num_bad_packets > 0  # records of earlier versions have no codes


def copy_error(video: Video, original: str, class_name: str) -> VideoError:
    """Returns why a video is not packed that is a copy of `original`, a video of class `class_name`."""
    if class_name == video.class_name:
        return VideoError("duplicate", f"its content is that of {original}, which is packed (duplicates reject)")
    return VideoError(
        "contradiction", f"its content is that of {original}, whose class is {class_name!r} (duplicates reject)"
    )


def _num_bytes_now(video: Video) -> int:
    if video.is_frame_folder:
        folder = open_frame_folder(video.path)
        return folder.num_bytes if folder else 0
    return Path(video.path).stat().st_size


def _checked(video: Video, outcome: Clip | VideoError) -> Clip | VideoError:
    """Returns the outcome; an error if the file is not the one that was planned.

    Raises:
        FileNotFoundError: Not only the file is gone, but its folder: a disk was taken away.
    """
    if is_url(video.path):
        return outcome
    try:
        num_bytes = _num_bytes_now(video)
    except OSError:
        if not Path(video.path).parent.exists():
            raise FileNotFoundError(errno.ENOENT, "the folder of the video is gone", video.path) from None
        return outcome
    return outcome if num_bytes == video.num_bytes else VideoError(CHANGED, "the file changed before it was read")


def _strict_error(source: str, message: str) -> PackError:
    return PackError(f"{source} is rejected: {message}; repair or remove it, or leave --strict out")


def _finish(prepared: Preparation, records: Sequence[_Packed]) -> Manifest:
    """Writes the index and, last, the manifest."""
    target, plan, non_videos = prepared.target, prepared.plan, prepared.catalog.non_videos
    rejected = [rejected_row(video, "", error) for video, error in non_videos]
    rejected += [row for record in records for row in record.rejected]
    write_rejected(target, rejected)
    done = {shard.name: record for shard, record in zip(plan.shards, records, strict=True)}
    if names := [name for name, _ in _lacking(plan, done, ["train"])]:
        raise PackError(
            f"no video of class{'es' * (len(names) > 1)} {', '.join(map(repr, names))} for train can be read: see "
            f"{target / 'rejected.csv'}, replace the videos by whole ones and give the same command again; or leave "
            f"the class out, delete {target} and pack again"
        )
    splits = {}
    for split in SPLITS:
        of_split = [record for planned, record in zip(plan.shards, records, strict=True) if planned.split == split]
        num_per_class = sum((record.num_per_class for record in of_split), Counter[str]())
        if not of_split:
            continue
        splits[split] = SplitSummary(
            num_samples=sum(num_per_class.values()),
            num_per_class={name: num_per_class[name] for name in plan.class_names},
            shards=tuple(shard for record in of_split for shard in record.shards),
        )
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
