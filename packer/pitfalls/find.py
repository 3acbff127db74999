"""All that may spoil the figure of a pack, or of a plan, as the lines that the user reads."""

from collections.abc import Mapping, Sequence

from packer.pitfalls.counts import count_pitfalls
from packer.pitfalls.recordings import COLUMNS, crowd_pitfalls, look_pitfalls
from packer.planning.plan import Plan
from packer.shards.manifest import Manifest, read_samples
from packer.storage.location import Location
from packer.video.catalog import Video
from packer.video.segment import file_of


def pack_pitfalls(folder: Location, manifest: Manifest, alike: Mapping[str, str]) -> list[str]:
    """Returns what may spoil the figure of a complete pack; nothing if all is well.

    Args:
        folder: The pack.
        manifest: Its manifest.
        alike: `Video.alike` by source.

    Raises:
        ManifestError: The index is missing or damaged.
    """
    config = manifest.config.split
    counts = {name: split.num_per_class for name, split in manifest.splits.items()}
    table = read_samples(folder, None, COLUMNS)
    packed = zip(table["source"].to_pylist(), table["class_name"].to_pylist(), strict=True) if alike else ()
    videos = [Video("", file_of(source), name, 0, alike=alike.get(source, "")) for source, name in packed]
    return _lines(
        [
            *count_pitfalls(manifest.class_names, counts, config),
            *look_pitfalls(table, config),
            *crowd_pitfalls(videos),
        ]
    )


def plan_pitfalls(plan: Plan, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns what is known to spoil the figure before anything is decoded; nothing if all is well.

    Args:
        plan: The plan.
        counts: The number of its videos by split and class.
    """
    return _lines([*count_pitfalls(plan.class_names, counts, plan.recipe.split), *crowd_pitfalls(list(plan.videos))])


def _lines(pitfalls: Sequence[tuple[str, str]]) -> list[str]:
    if not pitfalls:
        return []
    return ["", "what may spoil the figure:", *(f"{label:<9} {text}" for label, text in pitfalls), ""]
