"""Tells apart why files and rows of labels gave no clip: rejected, set aside, or no file."""

from collections.abc import Mapping
from typing import Literal

from packer.video.catalog import has_video_extension

Kind = Literal["rejected", "set aside", "no file"]
KINDS: tuple[Kind, ...] = ("rejected", "set aside", "no file")
_SET_ASIDE = ("not_a_video", "no_video_stream", "proxy")
_NO_FILE = "no_file"


def kind_of(row: Mapping[str, str]) -> Kind:
    """Returns what a row of the rejected list is about.

    Args:
        row: The row's `source`, `split` and `reason`.

    Returns:
        `no file` for a row of the labels whose file the data folder lacks, `set aside` for a file that nobody took for
        a video, otherwise `rejected`.
    """
    if row["reason"] == _NO_FILE:
        return "no file"
    is_aside = not row["split"] and row["reason"] in _SET_ASIDE and not has_video_extension(row["source"])
    return "set aside" if is_aside else "rejected"
