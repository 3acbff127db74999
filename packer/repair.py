"""Packs the damaged shards of a complete pack again. The manifest stays, and the result must agree with it."""

from configs.section import UsageError
from packer.pack import PackError, pack_shards
from packer.shards.manifest import SAMPLES, ManifestError, read_manifest, write_samples
from packer.shards.shard import stored_record, verified_record
from packer.shards.stored_plan import plan_sha256, read_plan
from packer.storage.commit import recover
from packer.storage.location import Location
from packer.storage.target_lock import locked
from packer.verify import find_faults
from packer.video.catalog import find_unlabelled


def repair(target: Location, source: Location, workers: int) -> list[str]:
    """Repairs a pack and returns the names of the files that were damaged and are written again.

    Args:
        target: A complete pack.
        source: The data folder that it was packed from.
        workers: Processes that decode videos; 0: one per core.

    Raises:
        UsageError: There is no complete pack, or its manifest or plan is damaged.
        PackError: Videos of a damaged shard have changed since they were packed.
    """
    try:
        manifest = read_manifest(target)
    except ManifestError as error:
        raise UsageError(str(error)) from error
    plan = read_plan(target, find_unlabelled(source).videos) if plan_sha256(target) == manifest.plan_sha256 else None
    if plan is None:
        raise UsageError(f"{target} has lost the plan that its manifest names: delete it and pack again")
    with locked(target):
        recover(target)
        damaged = {fault.file for fault in find_faults(target)}
        if not damaged:
            return []
        bad = [shard for shard in plan.shards if verified_record(target, shard) is None]
        pack_shards(target, plan, bad, workers)
        if SAMPLES in damaged:
            write_samples(target, (row for shard in plan.shards for row in stored_record(target, shard).rows))
        if left := sorted({fault.file for fault in find_faults(target)}):
            raise PackError(
                f"{', '.join(left)} cannot be repaired, because the videos in {source} have changed since they were "
                f"packed: put the old ones back, or delete {target} and pack again"
            )
    return sorted({*(f"{shard.name}.tar" for shard in bad), *(damaged & {SAMPLES})})
