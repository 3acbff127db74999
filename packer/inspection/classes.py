"""Chooses the classes that are shown of a pack that has too many to look at."""

from collections.abc import Sequence

from packer.shards.manifest import Manifest

_MAX_SHOWN = 40
_NUM_ENDS = 10


def samples_per_class(manifest: Manifest) -> dict[str, int]:
    """Returns the number of samples of each class, in the order of the class indices."""
    return {
        name: sum(split.num_per_class.get(name, 0) for split in manifest.splits.values())
        for name in manifest.class_names
    }


def shown_classes(manifest: Manifest, show_all: bool) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the classes to show, in two parts between which others are left out.

    Up to 40 classes are one part, in the order of their indices, and so are all of them if that is wanted. Of more, the
    parts are the ten largest and the ten smallest, by falling size.
    """
    if show_all or len(manifest.class_names) <= _MAX_SHOWN:
        return manifest.class_names, ()
    sizes = samples_per_class(manifest)
    by_size = sorted(manifest.class_names, key=lambda name: (-sizes[name], name))
    return by_size[:_NUM_ENDS], by_size[-_NUM_ENDS:]
