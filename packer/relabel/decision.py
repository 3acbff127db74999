"""Decides what new labels change in a pack, before anything is written."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from configs.section import UsageError
from packer.labels.rows import Labels
from packer.pack import copy_error
from packer.planning.layout import alike_names, count_and_name
from packer.planning.plan import Plan, PlannedShard, find_contradictions, find_copies
from packer.relabel.match import Match, match_rows
from packer.shards.manifest import (
    REJECTED,
    SAMPLES,
    Manifest,
    ManifestError,
    RejectedRow,
    read_manifest,
    read_rejected,
    rejected_row,
)
from packer.shards.stored_plan import plan_sha256, read_plan
from packer.storage.commit import current
from packer.storage.files import file_sha256, local_copy
from packer.storage.location import Location
from packer.video.catalog import Video
from packer.video.container import VideoError


@dataclass(frozen=True)
class Held:
    """A complete pack, as far as new labels need to know it."""

    manifest: Manifest
    plan: Plan
    rejected: tuple[RejectedRow, ...]
    sha256_of: Mapping[str, str]
    """Digest of the video, by source, of every sample."""


@dataclass(frozen=True)
class Decision:
    """What new labels change."""

    held: Held
    plan: Plan
    """The plan with the new labels. A shard whose tar changes has a new name, all others keep theirs; the shards stand
    in the order of the old plan."""
    rejected: tuple[RejectedRow, ...]
    """The rejected videos with the new labels, in the old order."""
    num_relabelled: int
    """Samples that get another label."""
    num_unlisted: int
    """Samples that no row is about; they keep their label."""
    notes: tuple[tuple[str, str], ...]
    """What the user should know, as (label, text)."""

    @property
    def is_change(self) -> bool:
        """Whether there is anything to write."""
        return self.plan != self.held.plan or self.rejected != self.held.rejected

    @property
    def rewritten(self) -> list[tuple[PlannedShard, PlannedShard]]:
        """The shards whose tars change, as they were and as they will be."""
        pairs = zip(self.held.plan.shards, self.plan.shards, strict=True)
        return [(old, new) for old, new in pairs if old.name != new.name]

    @property
    def num_per_class(self) -> dict[str, dict[str, int]]:
        """The number of samples, by split and class."""
        counts: dict[str, Counter[str]] = {split: Counter() for split in self.held.manifest.splits}
        for shard in self.plan.shards:
            counts[shard.split].update(v.class_name for v in shard.videos if v.source in self.held.sha256_of)
        return {split: {name: of_split[name] for name in self.plan.class_names} for split, of_split in counts.items()}


def decide(target: Location, labels: Labels) -> Decision:
    """Returns what new labels change in a pack.

    Raises:
        UsageError: There is no complete pack, the labels are about other videos or are ambiguous, or a class would be
            left without a sample to train on.
    """
    held = _read_pack(target)
    planned = [video for shard in held.plan.shards for video in shard.videos]
    sources = {video.source for video in planned}
    # Of what was set aside before the plan, only the rejected list knows.
    others = [Video("", row.source, row.class_name, 0) for row in held.rejected if row.source not in sources]
    match = match_rows([*planned, *others], labels.rows)
    if not match.row_of:
        raise UsageError(
            f"{target} holds none of the {len(match.absent)} videos that the labels name, such as "
            f"{match.absent[0].path} ({match.absent[0].where}); it holds videos such as {planned[0].source}"
            if match.absent
            else "the labels are empty: give a file with a row per video"
        )
    class_of = {source: row.label for source, row in match.row_of.items()}
    relabelled = [replace(video, class_name=class_of.get(video.source, video.class_name)) for video in planned]
    class_names = _class_names(held, relabelled)
    plan = _new_plan(held, relabelled, class_names)
    return Decision(
        held=held,
        plan=plan,
        rejected=tuple(_new_rejected(held, plan, class_of)),
        num_relabelled=sum(
            old.class_name != new.class_name and old.source in held.sha256_of
            for old, new in zip(planned, relabelled, strict=True)
        ),
        num_unlisted=len(held.sha256_of.keys() - match.row_of.keys()),
        notes=(_read(labels), *labels.notes, *_notes(held, plan, match, labels)),
    )


def _read_pack(target: Location) -> Held:
    try:
        manifest = read_manifest(target)
    except ManifestError as error:
        raise UsageError(str(error)) from error
    plan = read_plan(target, ())
    if plan is None:
        raise UsageError(f"{target} has lost its plan (.pack), without which its samples keep their labels: pack again")
    again = f"`python -m packer DATA {target} --append`"
    if plan_sha256(target) != manifest.plan_sha256:
        raise UsageError(f"{target} is being appended to: finish that by {again} first")
    if file_sha256(current(target, SAMPLES)) != manifest.samples_sha256:
        raise UsageError(f"{target / SAMPLES} is damaged: `python -m packer repair {target} DATA` writes it again")
    rejected = read_rejected(target)
    if Counter(row.reason for row in rejected) != manifest.rejected:
        raise UsageError(f"{target / REJECTED}.parquet is damaged: {again} writes it again")
    with local_copy(current(target, SAMPLES)) as file:
        table = pq.read_table(file, columns=["source", "source_sha256"])
    sha256_of = dict(zip(table["source"].to_pylist(), table["source_sha256"].to_pylist(), strict=True))
    return Held(manifest, plan, tuple(rejected), sha256_of)


def _class_names(held: Held, videos: Sequence[Video]) -> tuple[str, ...]:
    """Returns the classes that videos have: the old ones in their order, then the new ones.

    Raises:
        UsageError: A class has no sample in train.
    """
    used = {video.class_name for video in videos}
    split_of = {video.source: shard.split for shard in held.plan.shards for video in shard.videos}
    in_train = {v.class_name for v in videos if v.source in held.sha256_of and split_of[v.source] == "train"}
    for name in sorted(used - in_train):
        of_class = [video.source for video in videos if video.class_name == name]
        samples = [source for source in of_class if source in held.sha256_of]
        where = "in val or test" if samples else "among the rejected, which have no frames"
        raise UsageError(
            f"class {name!r} would have no sample in train, only {count_and_name(samples or of_class)} {where}: give "
            "them another label, or this label to samples of train too"
        )
    kept = [name for name in held.plan.class_names if name in used]
    return (*kept, *sorted(used - set(kept)))


def _new_plan(held: Held, videos: Sequence[Video], class_names: tuple[str, ...]) -> Plan:
    old_index = {name: index for index, name in enumerate(held.plan.class_names)}
    new_index = {name: index for index, name in enumerate(class_names)}
    waiting = iter(videos)
    shards = []
    for shard in held.plan.shards:
        of_shard = tuple(next(waiting) for _ in shard.videos)
        is_rewritten = any(
            (old.class_name, old_index[old.class_name]) != (new.class_name, new_index[new.class_name])
            for old, new in zip(shard.videos, of_shard, strict=True)
            if old.source in held.sha256_of
        )
        name = _next_name(shard.name) if is_rewritten else shard.name
        shards.append(replace(shard, name=name, videos=of_shard))
    plan = replace(held.plan, class_names=class_names, shards=tuple(shards))
    if plan == held.plan:
        return plan
    by_source = sorted(videos, key=lambda video: video.source)
    digests = _digests(held)
    return replace(
        plan, copies=_copies(held, by_source, digests), contradictions=find_contradictions(by_source, digests)
    )


def _next_name(name: str) -> str:
    """Returns the name of a shard once it is written with other labels: `val-000000`, `val-000000r1`, `val-000000r2`.

    A name that is never used twice lets the old shard stay whole until the new one counts.
    """
    match = re.fullmatch(r"(.+?)(?:r(\d+))?", name)
    assert match is not None  # every name matches
    return f"{match[1]}r{int(match[2] or 0) + 1}"


def _digests(held: Held) -> dict[str, str]:
    """Returns the digest of the content of every planned video for which it is known, by source."""
    digests = {row.source: row.source_sha256 for row in held.rejected if row.split and row.source_sha256}
    digests |= held.sha256_of
    for linked in _linked(held.plan.copies):
        known = [digests[source] for source in linked if source in digests]
        digests |= dict.fromkeys(linked, known[0] if known else f"of {linked[0]}")
    return digests


def _linked(copies: Mapping[str, str]) -> list[list[str]]:
    """Returns the videos of equal content, as far as copies tell, each group sorted."""
    group_of: dict[str, list[str]] = {}
    for source, other in copies.items():
        first, second = group_of.get(source, [source]), group_of.get(other, [other])
        joined = first if first is second else first + second
        group_of |= dict.fromkeys(joined, joined)
    return [sorted(group) for group in {id(group): group for group in group_of.values()}.values()]


def _copies(held: Held, videos: Sequence[Video], digests: Mapping[str, str]) -> dict[str, str]:
    """Returns the copies once some of the videos have other classes; what is packed stays."""
    class_of = {video.source: video.class_name for shard in held.plan.shards for video in shard.videos}
    changed = {video.source for video in videos if video.class_name != class_of[video.source]}
    linked = {source for group in _linked(held.plan.copies) if changed & set(group) for source in group}
    of_linked = [video for video in videos if video.source in linked]
    found = find_copies(of_linked, {source: digests[source] for source in linked}, held.sha256_of)
    kept = {source: other for source, other in held.plan.copies.items() if source not in linked}
    return kept | {source: other for source, other in found.items() if source not in held.sha256_of}


def _new_rejected(held: Held, plan: Plan, class_of: Mapping[str, str]) -> Iterator[RejectedRow]:
    old_class = {video.source: video.class_name for shard in held.plan.shards for video in shard.videos}
    videos = {video.source: video for shard in plan.shards for video in shard.videos}
    for row in held.rejected:
        old, other = held.plan.copies.get(row.source), plan.copies.get(row.source)
        is_as_before = old == other and all(
            videos[source].class_name == old_class[source] for source in (row.source, old) if source in videos
        )
        if row.reason == "contradiction" and not row.split:
            yield row  # one for each label that the labels gave it
            continue
        if old is None or is_as_before:
            yield row.model_copy(update={"class_name": class_of.get(row.source, row.class_name)})
            continue
        if other is None:
            error = VideoError(
                "contradiction", f"its content had several classes, and {old} has the same one now: --append packs it"
            )
        else:
            error = copy_error(videos[row.source], other, videos[other].class_name)
        yield rejected_row(videos[row.source], row.split, error)


def _read(labels: Labels) -> tuple[str, str]:
    return "labels", f"{len(labels.rows)} rows, read as {labels.format_name}"


def _notes(held: Held, plan: Plan, match: Match, labels: Labels) -> Iterator[tuple[str, str]]:
    if match.absent:
        yield "absent", f"{_counted('row', [row.path for row in match.absent])} of the labels: the pack lacks them"
    if new := [name for name in plan.class_names if name not in held.plan.class_names]:
        yield "new", f"{_counted('class', new)}: last in the order of classes"
    if dropped := [name for name in held.plan.class_names if name not in plan.class_names]:
        yield "dropped", f"{_counted('class', dropped)} without a video: the classes after it have new indices"
    yield from alike_names(plan.class_names)
    split_of = {video.source: shard.split for shard in plan.shards for video in shard.videos}
    moved = [s for s, row in match.row_of.items() if row.split and s in split_of and row.split != split_of[s]]
    if labels.has_splits and moved:
        yield "splits", f"{_counted('row', moved)} with another split than the pack: every sample stays in its split"
    group_of: dict[str, set[str]] = defaultdict(set)
    for source, row in match.row_of.items():
        if row.group and source in split_of:
            group_of[row.group].add(split_of[source])
    if torn := sorted(group for group, splits in group_of.items() if len(splits) > 1):
        yield "groups", f"{_counted('group', torn)} of the labels in several splits of the pack: pack again to mend it"


def _counted(what: str, names: Sequence[str]) -> str:
    plural = what if len(names) == 1 else f"{what}{'es' if what.endswith('s') else 's'}"
    return f"{len(names)} {plural} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
