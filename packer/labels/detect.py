"""Finds out which format a file of labels has. It never guesses: if several fit and read differently, it names them."""

from collections.abc import Callable, Mapping

from packer.labels import (
    activitynet,
    createml,
    dali,
    fiftyone,
    kinetics,
    label_studio,
    mmaction2,
    something_something,
    table,
    via,
)
from packer.labels.label_file import LabelFile

_FITS: Mapping[str, Callable[[LabelFile], bool]] = {
    "via": via.fits,
    "label-studio": label_studio.fits,
    "fiftyone": fiftyone.fits,
    "kinetics": kinetics.fits,
    "activitynet": activitynet.fits,
    "something-something": something_something.fits,
    "createml": createml.fits,
    "table": table.fits,
    "mmaction2": mmaction2.fits,
    "dali": dali.fits,
    "dali-frames": dali.fits_frames,
}
_SPECIAL_TABLES = frozenset({"kinetics", "something-something", "createml", "label-studio", "via"})
"""Formats that may look like a table too, but state more."""


def fitting_formats(file: LabelFile) -> list[str]:
    """Returns the formats that a file may have; a table only if no more special format fits."""
    found = [name for name, fits in _FITS.items() if fits(file)]
    if _SPECIAL_TABLES & set(found):
        found = [name for name in found if name != "table"]
    return found
