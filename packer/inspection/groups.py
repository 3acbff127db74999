"""Tells which packed files belong together: of one recording, of one stated group, or of equal content."""

import pyarrow as pa

from packer.planning.group import video_groups
from packer.shards.manifest import Manifest
from packer.shards.stored_plan import PlanNotes
from packer.video.catalog import Video
from packer.video.segment import file_of

GROUP_COLUMNS = ("source", "class_name", "source_sha256")
"""The columns of the index that `file_groups` reads."""


def file_groups(manifest: Manifest, notes: PlanNotes, table: pa.Table) -> dict[str, int]:
    """Returns the group number of each packed file, in the order of the index.

    Args:
        manifest: The manifest of the pack.
        notes: What the plan says about groups that labels state, and about videos that look alike.
        table: The index, with at least `GROUP_COLUMNS`.
    """
    columns = (table[name].to_pylist() for name in GROUP_COLUMNS)
    digests: dict[str, str] = {}
    videos = []
    for source, class_name, sha256 in zip(*columns, strict=True):
        file = file_of(source)
        if file not in digests:
            digests[file] = sha256
            group, alike = notes.groups.get(source, ""), notes.alike.get(source, "")
            videos.append(Video("", file, class_name, 0, group=group, alike=alike))
    return dict(zip(digests, video_groups(videos, manifest.config.split.group_regex, digests), strict=True))
