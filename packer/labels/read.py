"""Reads a file of labels."""

from fractions import Fraction

from packer.labels.rows import Labels
from packer.storage.location import Location


def read_labels(
    location: Location, format_name: str, *, classes: Location | None, frame_rate: Fraction | None
) -> Labels:
    """Placeholder for the merge."""
    raise NotImplementedError
