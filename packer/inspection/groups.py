"""Tells which packed files belong together: of one recording, of one stated group, or of equal content."""

import re

import pyarrow as pa

from packer.planning.group import video_groups
from packer.shards.manifest import Manifest
from packer.shards.stored_plan import PlanNotes
from packer.video.catalog import Video
from packer.video.segment import FRAGMENT

GROUP_COLUMNS = ("source", "class_name", "source_sha256")
"""The columns of the index that `file_groups` reads."""
_FRAGMENT = re.compile(f"{FRAGMENT}$")


def file_of(source: str) -> str:
    """Returns the file that a sample was taken from: its source without the part that names a segment."""
    return _FRAGMENT.sub("", source) if "#" in source else source


def file_groups(manifest: Manifest, notes: PlanNotes, table: pa.Table) -> dict[str, int]:
    """Returns the group number of each packed file, in the order of the index.

    Args:
        manifest: The manifest of the pack.
        notes: What the plan says about the groups that labels state.
        table: The index, with at least `GROUP_COLUMNS`.
    """
    columns = (table[name].to_pylist() for name in GROUP_COLUMNS)
    digests: dict[str, str] = {}
    videos = []
    for source, class_name, sha256 in zip(*columns, strict=True):
        file = file_of(source)
        if file not in digests:
            digests[file] = sha256
            videos.append(Video("", file, class_name, 0, group=notes.groups.get(source, "")))
    return dict(zip(digests, video_groups(videos, manifest.config.split.group_regex, digests), strict=True))
