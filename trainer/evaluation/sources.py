"""Which files samples come from: pictures and tables name files, because nobody knows the number of a sample."""

from collections.abc import Sequence

from packer.shards.manifest import read_samples
from packer.storage.location import Location


def sample_sources(shards: Location, split: str, samples: Sequence[int]) -> list[str]:
    """Returns the `source` of samples: the video's path below its data folder, and for a segment its time range.

    The second to fifth second of `run/a.mp4` are `run/a.mp4#t=1,5`.

    Args:
        shards: Folder of the pack.
        split: Name of the split.
        samples: Numbers in the split's index.
    """
    sources: list[str] = read_samples(shards, split, columns=["source"])["source"].take(samples).to_pylist()
    return sources
