"""The table that a pack closes with."""

from configs.pack import SplitConfig
from packer.run import PackResult


def format_report(result: PackResult) -> str:
    """Returns what was packed, per class and split, and what was not, as the text that the user reads."""
    manifest = result.manifest
    names = list(manifest.splits)
    width = max(len(name) for name in (*manifest.class_names, "share wanted"))
    lines = [f"{'samples':<{width}} " + " ".join(f"{name:>8}" for name in names)]
    for class_name in manifest.class_names:
        counts = [manifest.splits[name].num_per_class[class_name] for name in names]
        lines.append(f"{class_name:<{width}} " + " ".join(f"{count:>8}" for count in counts))
    totals = [manifest.splits[name].num_samples for name in names]
    wanted = wanted_shares(manifest.config.split)
    lines.append(f"{'all':<{width}} " + " ".join(f"{total:>8}" for total in totals))
    lines.append(f"{'share':<{width}} " + " ".join(f"{total / max(1, sum(totals)):>8.3f}" for total in totals))
    lines.append(f"{'share wanted':<{width}} " + " ".join(f"{wanted[name]:>8.3f}" for name in names))
    num_bytes = sum(shard.num_bytes for split in manifest.splits.values() for shard in split.shards)
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    lines += [
        "",
        f"videos    {manifest.num_videos}: {sum(totals)} packed, {sum(manifest.rejected.values())} rejected",
        *(f"rejected  {count} {reason} (rejected.csv)" for reason, count in manifest.rejected.items()),
        f"damaged   {result.num_damaged} of the packed (samples.parquet: num_bad_packets, num_frames_claimed)",
        *(f"passed by {count} {what}" for what, count in sorted(result.num_skipped.items())),
        f"written   {num_bytes:,} bytes in {num_shards} shards",
        f"took      {result.seconds:.1f} s, {result.num_videos_now / result.seconds:.1f} videos/s",
    ]
    return "\n".join(lines)


def wanted_shares(config: SplitConfig) -> dict[str, float]:
    """Returns the share of the videos that each split was to have."""
    test = 1 / config.num_folds if config.num_folds else config.test_fraction
    return {"train": 1 - config.val_fraction - test, "val": config.val_fraction, "test": test}
