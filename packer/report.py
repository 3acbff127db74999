"""The tables that a pack and a dry run print at their end."""

from collections import Counter
from collections.abc import Mapping, Sequence

from configs.pack import SplitConfig
from packer.labels.splits import SPLITS
from packer.pack import PackResult
from packer.pitfalls.find import pack_pitfalls, plan_pitfalls
from packer.planning.plan import Plan
from packer.prepare import Preparation
from packer.relabel.rewrite import RelabelResult

_NUM_NAMED = 5


def format_report(result: PackResult) -> str:
    """Returns what was packed, per class and split, and what was not, as the user reads it."""
    manifest = result.manifest
    counts = {name: split.num_per_class for name, split in manifest.splits.items()}
    num_bytes = sum(shard.num_bytes for split in manifest.splits.values() for shard in split.shards)
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    num_samples = sum(split.num_samples for split in manifest.splits.values())
    lines = [
        *class_table(manifest.class_names, counts, manifest.config.split),
        "",
        f"videos    {manifest.num_videos}: {num_samples} packed, {sum(manifest.rejected.values())} rejected",
        *_segment_lines(result.plan),
        *(f"rejected  {count} {reason} (rejected.csv)" for reason, count in manifest.rejected.items()),
        f"damaged   {result.num_damaged} of the packed videos (samples.parquet: damage)",
        *(f"{label:<9} {note}" for label, note in result.notes),
        *_lacking_lines(manifest.class_names, counts),
        *_leak_lines(result.plan.leaks),
        *_contradiction_lines(result.plan),
        *pack_pitfalls(result.target, manifest, _alike(result.plan)),
        f"written   {num_bytes:,} bytes in {num_shards} shards",
        f"took      {result.seconds:.1f} s for {result.num_videos_now} videos, "
        f"{result.num_videos_now / result.seconds:.1f} videos/s",
    ]
    return "\n".join(lines)


def format_plan(prepared: Preparation) -> str:
    """Returns what a pack would do, as the user reads it."""
    plan, catalog = prepared.plan, prepared.catalog
    counts = {
        split: Counter(video.class_name for shard in plan.shards if shard.split == split for video in shard.videos)
        for split in SPLITS
    }
    num_bytes = sum(video.num_bytes for shard in plan.shards for video in shard.videos)
    class_of = {video.source: video.class_name for shard in plan.shards for video in shard.videos}
    rejected = {"not_a_video": 0, "duplicate": 0}
    rejected |= Counter(error.reason for _, error in catalog.non_videos)
    for source, other in plan.copies.items():
        reason = "duplicate" if class_of[source] == class_of[other] else "contradiction"
        rejected[reason] = rejected.get(reason, 0) + 1
    lines = [
        *class_table(plan.class_names, {name: count for name, count in counts.items() if count}, plan.recipe.split),
        "",
        f"videos    {plan.num_videos} of {num_bytes:,} bytes, into {len(plan.shards)} shards in {prepared.target}",
        *_segment_lines(plan),
        f"rejected  {', '.join(f'{count} {reason}' for reason, count in rejected.items())}; decoding may reject more",
        *(f"{label:<9} {note}" for label, note in prepared.notes),
        *_lacking_lines(plan.class_names, {name: count for name, count in counts.items() if count}),
        *_leak_lines(plan.leaks),
        *_contradiction_lines(plan),
        *plan_pitfalls(plan, counts),
        "dry run   nothing was written",
    ]
    return "\n".join(lines)


def format_relabelling(result: RelabelResult, is_dry_run: bool) -> str:
    """Returns what new labels changed, or would change, as the user reads it."""
    decision = result.decision
    counts, class_names = decision.num_per_class, decision.plan.class_names
    num_samples = sum(sum(of_split.values()) for of_split in counts.values())
    num_shards = len(decision.rewritten)
    lines = [
        *class_table(class_names, counts, decision.held.manifest.config.split),
        "",
        f"samples   {decision.num_relabelled} of {num_samples} get another label; no row is about "
        f"{decision.num_unlisted}, which keep theirs",
        *(f"{label:<9} {note}" for label, note in decision.notes),
        *_lacking_lines(class_names, counts),
        *_contradiction_lines(decision.plan),
        f"shards    {num_shards} of {len(decision.plan.shards)} with other labels or class indices, under new names",
        "next      copy the pack first if runs that were trained on it are to be explained or reviewed later"
        if is_dry_run
        else "next      train again: runs of the pack before can no longer be explained or reviewed",
        "dry run   nothing was written" if is_dry_run else f"took      {result.seconds:.1f} s; no video was read",
    ]
    return "\n".join(lines)


def class_table(class_names: Sequence[str], counts: Mapping[str, Mapping[str, int]], config: SplitConfig) -> list[str]:
    """Returns the lines of a table of samples per class and split, with the share of each split, actual and wanted."""
    width = max(len(name) for name in (*class_names, "share wanted"))
    totals = {split: sum(of_split.values()) for split, of_split in counts.items()}
    num_samples = max(1, sum(totals.values()))

    def line(title: str, cells: Sequence[object], form: str = "") -> str:
        return f"{title:<{width}} " + " ".join(f"{cell:>8{form}}" for cell in cells)

    lines = [line("samples", list(counts))]
    lines += [line(name, [of_split.get(name, 0) for of_split in counts.values()]) for name in class_names]
    lines += [line("all", list(totals.values()))]
    lines += [line("share", [total / num_samples for total in totals.values()], ".3f")]
    if config.is_stratified:
        wanted = wanted_shares(config)
        lines += [line("share wanted", [wanted[split] for split in counts], ".3f")]
    return lines


def wanted_shares(config: SplitConfig) -> dict[str, float]:
    """Returns the share of the videos that each split should have, if the fractions decide."""
    test = 1 / config.num_folds if config.num_folds else config.test_fraction
    return {"train": 1 - config.val_fraction - test, "val": config.val_fraction, "test": test}


def _alike(plan: Plan) -> dict[str, str]:
    return {video.source: video.alike for video in plan.videos if video.alike}


def _segment_lines(plan: Plan) -> list[str]:
    segments = [video for video in plan.videos if video.segment]
    files = {video.file_source for video in segments}
    return [f"segments  {len(segments)} of the videos are segments of {len(files)} files"] * bool(segments)


def _lacking_lines(class_names: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns a line for each split that has no video of some classes."""
    lines = []
    for split, of_split in counts.items():
        if lacking := [name for name in class_names if not of_split.get(name)]:
            named = ", ".join(map(repr, lacking[:_NUM_NAMED])) + ", ..." * (len(lacking) > _NUM_NAMED)
            lines.append(
                f"lacking   {split} has no video of class{'es' * (len(lacking) > 1)} {named}: it does not test them"
            )
    return lines


def _leak_lines(leaks: Sequence[str]) -> list[str]:
    return _listed(f"leaks     {len(leaks)} groups of videos are in more than one split of the official lists:", leaks)


def _contradiction_lines(plan: Plan) -> list[str]:
    num = len(plan.contradictions)
    what = (
        "not packed, or as an earlier pack has them" if plan.recipe.duplicates == "reject" else "packed with each label"
    )
    return _listed(
        f"labels    {num} time{'s' * (num != 1)}, equal files have different labels ({what}):",
        plan.contradictions,
    )


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"          ... and {len(items) - _NUM_NAMED} more (.pack/plan.json)"] * (len(items) > _NUM_NAMED)
    return [title, *(f"          {item}" for item in items[:_NUM_NAMED]), *more]
