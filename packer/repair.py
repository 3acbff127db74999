"""Packs the damaged shards of a complete pack again, and nothing else: the manifest stays as it is, and must hold."""

from configs.section import UsageError
from packer.pack import PackError, pack_shards
from packer.planning.split import SPLITS
from packer.shards.manifest import SAMPLES, ManifestError, read_manifest, write_samples
from packer.shards.shard import read_record, stored_record
from packer.shards.stored_plan import plan_sha256, read_plan
from packer.storage.location import Location
from packer.storage.lock import locked
from packer.verify import find_faults
from packer.video.catalog import find_videos


def repair(target: Location, source: Location, workers: int) -> list[str]:
    """Returns what was made anew: names of shards, or `samples.parquet`.

    Args:
        target: A complete pack.
        source: The data folder that it was made of.
        workers: As in the configuration.

    Raises:
        UsageError: There is no complete pack, or its manifest or plan is damaged.
        PackError: Videos of a damaged shard are not as they were when they were packed.
    """
    try:
        manifest = read_manifest(target)
    except ManifestError as error:
        raise UsageError(str(error)) from error
    catalog = find_videos(source, SPLITS if manifest.config.split.method == "folders" else ())
    plan = read_plan(target, catalog.videos) if plan_sha256(target) == manifest.plan_sha256 else None
    if plan is None:
        raise UsageError(f"{target} has lost the plan that its manifest binds: delete it to pack anew")
    with locked(target):
        damaged = {fault.file for fault in find_faults(target)}
        if not damaged:
            return []
        bad = [shard for shard in plan.shards if read_record(target, shard) is None]
        pack_shards(target, plan, bad, workers)
        if SAMPLES in damaged:
            write_samples(target, (row for shard in plan.shards for row in stored_record(target, shard).rows))
        if left := sorted({fault.file for fault in find_faults(target)}):
            raise PackError(
                f"{', '.join(left)} came out otherwise than first packed, so {source} holds other videos now: put them "
                f"back, or delete {target} to pack anew"
            )
    return sorted({*(f"{shard.name}.tar" for shard in bad), *(damaged & {SAMPLES})})
