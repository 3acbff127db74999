"""Catalogs of files that need not exist."""

from packer.video.catalog import Catalog, Video


def catalog_of(num_per_class: dict[str, int]) -> Catalog:
    """A catalog of files that need not exist: files of different sizes are never read."""
    names = [(name, number) for name, count in num_per_class.items() for number in range(count)]
    videos = tuple(
        Video(f"/nowhere/{name}/{number}", f"{name}/{number}", name, size)
        for size, (name, number) in enumerate(names, start=1)
    )
    return Catalog(tuple(sorted(num_per_class)), videos, (), {})
