"""Packs a folder: plans, packs the shards that are not done yet, and declares the pack complete.

A killed pack is continued by the same command. The bytes written depend on the videos and the recipe alone, not on the
number of workers, on time, or on how often the pack was stopped.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from configs.load import UsageError, resolve
from configs.pack import ClipConfig, PackConfig
from packer.catalog import Catalog, Video, find_videos
from packer.clip import SAMPLING_RULE, Clip, VideoError
from packer.manifest import (
    MANIFEST,
    SAMPLES,
    Manifest,
    ManifestError,
    SplitSummary,
    file_sha256,
    read_manifest,
    rejected_row,
    write_manifest,
    write_rejected,
    write_samples,
)
from packer.plan import Plan, PlannedShard, make_plan
from packer.pool import DecodePool
from packer.sample import SampleRow
from packer.shard import RECORDS, ShardRecord, ShardWriter, read_record
from packer.split import SPLITS
from packer.storage import PARTIAL_SUFFIX, write_atomically

logger = logging.getLogger(__name__)

_WINDOW_PER_WORKER = 4
_WHOLE_SHARE = 0.9
_LOAD_REASONS = frozenset({"timeout", "out_of_memory"})
"""Reasons that may lie with the machine's load rather than with the video."""


class PackError(Exception):
    """A pack that could not be finished; the text is one sentence."""


@dataclass(frozen=True)
class PackResult:
    """A complete pack and what this run did for it."""

    manifest: Manifest
    num_skipped: dict[str, int]
    rejected_fraction: float
    """Share of the videos that gave no clip; texts and pictures among them do not count."""
    num_damaged: int
    """Packed videos with damage: packets that could not be decoded, or far fewer frames than the container states."""
    num_videos_now: int
    """Videos that this run decoded; fewer than all where it continued a stopped pack."""
    seconds: float


def pack(config: PackConfig) -> PackResult:
    """Packs `config.source` into `config.target`.

    Raises:
        UsageError: The command cannot be carried out as given; nothing was written.
        PackError: A class lost all its videos of a split, so the pack was not declared complete.
        OSError: The target cannot be written to (a full disk), or no decoder process can be started.
    """
    source, target = resolve(config.source), resolve(config.target)
    _check_folders(source, target)
    catalog = find_videos(source)
    plan = make_plan(catalog, config.recipe)
    started = time.monotonic()
    with _locked(target):
        _bind(target, plan)
        done = {shard.name: record for shard in plan.shards if (record := read_record(target, shard)) is not None}
        missing = [shard for shard in plan.shards if shard.name not in done]
        if done:
            logger.info("continue num_shards_done=%d num_shards_missing=%d", len(done), len(missing))
        _pack_shards(target, plan, missing, config)
        records = [done.get(shard.name) or _record(target, shard) for shard in plan.shards]
        manifest = _finish(target, catalog, plan, records, config)
    return PackResult(
        manifest=manifest,
        num_skipped=catalog.num_skipped,
        rejected_fraction=sum(len(record.rejected) for record in records) / len(catalog.videos),
        num_damaged=sum(_is_damaged(row) for record in records for row in record.rows),
        num_videos_now=sum(len(shard.videos) for shard in missing),
        seconds=time.monotonic() - started,
    )


def _is_damaged(row: SampleRow) -> bool:
    # Whole files miss a frame or three of those stated; one cut in its middle misses half.
    return row.num_bad_packets > 0 or row.num_frames < _WHOLE_SHARE * row.num_frames_claimed


def _check_folders(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder: give the folder that holds one folder of videos per class")
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{target} lies inside {source} and would be packed as a class: choose another target")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file: choose another target")
    if (target / MANIFEST).exists() and _is_whole(target):
        raise UsageError(f"{target} holds a complete pack already: choose another target, or delete it to pack anew")
    if target.exists() and not (target / RECORDS).exists() and any(target.iterdir()):
        raise UsageError(f"{target} holds other files: choose an empty or a new folder")


def _is_whole(target: Path) -> bool:
    """Tells whether the index is the one that the manifest binds; a torn pair is rebuilt from the records."""
    try:
        return read_manifest(target).samples_sha256 == file_sha256(target / SAMPLES)
    except (ManifestError, FileNotFoundError):
        return False


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Creates the target and keeps other packers out; the lock goes with the process, however it ends."""
    records = target / RECORDS
    try:
        records.mkdir(parents=True, exist_ok=True)
        lock = (records / "lock").open("wb")
    except OSError as error:
        raise UsageError(f"{target} cannot be written to: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{target} is being packed by another process: wait for it, or stop it") from None
        for folder in (target, records):
            for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
                partial.unlink()
        yield


def _bind(target: Path, plan: Plan) -> None:
    """Ties the target to the plan, so that a pack is never continued with other videos, settings or libraries."""
    path = target / RECORDS / "plan.sha256"
    if not path.exists():
        with write_atomically(path) as file:
            file.write(plan.fingerprint.encode())
    elif path.read_text() != plan.fingerprint:
        raise UsageError(
            f"{target} holds part of a pack of other videos, settings or versions: delete it to pack anew, or "
            "give the earlier settings to continue"
        )


def _pack_shards(target: Path, plan: Plan, shards: Sequence[PlannedShard], config: PackConfig) -> None:
    videos = [video for shard in shards for video in shard.videos]
    class_index = {name: index for index, name in enumerate(plan.class_names)}
    num_workers = min(config.workers or len(os.sched_getaffinity(0)), max(1, len(videos)))
    with DecodePool(num_workers, config.limits) as pool, tqdm(total=len(videos), unit="video", disable=None) as bar:
        outcomes = _outcomes(pool, videos, config.clip, num_workers * _WINDOW_PER_WORKER)
        for shard in shards:
            with ShardWriter(target, shard, config.shards.max_bytes) as writer:
                for video, outcome in zip(shard.videos, outcomes, strict=False):
                    if isinstance(outcome, VideoError):
                        writer.reject(video, outcome)
                    else:
                        writer.add(video, outcome[0], class_index[video.class_name], outcome[1])
                    bar.update()


def _outcomes(
    pool: DecodePool, videos: Sequence[Video], clip: ClipConfig, window: int
) -> Iterator[tuple[str, Clip] | VideoError]:
    """Yields, per video and in order, its sha256 and clip or why it has none; at most `window` clips wait in memory."""
    waiting = iter(videos)
    pending: deque[tuple[Video, Future[Clip]]] = deque()
    while True:
        while len(pending) < window and (video := next(waiting, None)) is not None:
            pending.append((video, pool.submit(video.path, clip)))
        if not pending:
            return
        video, future = pending.popleft()
        try:
            try:
                result = future.result()
            except VideoError as error:
                if error.reason not in _LOAD_REASONS:
                    raise
                logger.warning("retry alone source=%s reason=%s", video.source, error.reason)
                wait([other for _, other in pending])
                result = pool.submit(video.path, clip).result()
            yield _sha256(video), result
        except VideoError as error:
            yield error


def _sha256(video: Video) -> str:
    try:
        with Path(video.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VideoError("unreadable", f"the file cannot be read: {error.strerror}") from error


def _record(target: Path, shard: PlannedShard) -> ShardRecord:
    record = read_record(target, shard)
    if record is None:
        raise PackError(f"{shard.name} in {target} changed while it was packed: run the same command again")
    return record


def _finish(target: Path, catalog: Catalog, plan: Plan, records: Sequence[ShardRecord], config: PackConfig) -> Manifest:
    """Writes the index and, last, the manifest."""
    splits = {}
    for split in SPLITS:
        of_split = [record for planned, record in zip(plan.shards, records, strict=True) if planned.split == split]
        num_per_class = Counter(row.class_name for record in of_split for row in record.rows)
        if not of_split:
            continue
        for name in plan.class_names:
            if not num_per_class[name]:
                raise PackError(
                    f"class {name!r} has no readable video in {split}: repair its videos or remove its folder, delete "
                    f"{target} and pack again"
                )
        splits[split] = SplitSummary(
            num_samples=sum(num_per_class.values()),
            num_per_class={name: num_per_class[name] for name in plan.class_names},
            shards=tuple(shard for record in of_split for shard in record.shards),
        )
    rejected = [rejected_row(video, "", error) for video, error in catalog.non_videos]
    rejected += [row for record in records for row in record.rejected]
    write_rejected(target, rejected)
    manifest = Manifest(
        class_names=plan.class_names,
        sampling_rule=SAMPLING_RULE,
        config=config.recipe,
        versions=dict(plan.versions),
        num_videos=len(catalog.videos) + len(catalog.non_videos),
        rejected=dict(sorted(Counter(row.reason for row in rejected).items())),
        splits=splits,
        samples_sha256=write_samples(target, (row for record in records for row in record.rows)),
    )
    write_manifest(target, manifest)
    return manifest
