"""Names and members of a sample: the record that a shard holds per clip, and its row in the index."""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from configs.section import Section
from packer.video.catalog import Video
from packer.video.clip import Clip


class SampleRow(Section):
    """One sample as the index (`samples.parquet`) and the shard's record list it."""

    key: str
    split: str
    shard: str
    """File name of the tar."""
    offset: int
    """Where the sample's first tar header starts, in bytes."""
    num_bytes: int
    """From there to the end of its last member, padding included."""
    member_offsets: tuple[int, ...]
    """Where the data of each member starts, from `offset`: the JPEGs, then cls, then json."""
    member_sizes: tuple[int, ...]
    crc32: int = 0
    """Of the members' bytes, one behind the other: a damaged JPEG may well decode; 0: not known, as of older packs."""
    class_index: int
    class_name: str
    source: str
    source_sha256: str
    num_frames: int
    num_frames_claimed: int
    num_bad_packets: int
    num_concealed_frames: int = 0
    """0 also in packs from before it was counted."""
    damage: tuple[str, ...] = ()
    """Codes of `Clip.damage`; empty also in packs from before there were any."""
    fps: float
    duration_seconds: float
    source_width_px: int
    source_height_px: int
    num_source_sizes: int = 1
    """1 also in packs from before it was counted."""
    width_px: int
    height_px: int
    is_colour_approximate: bool = False
    """False also in packs from before such videos were packed."""
    frame_indices: tuple[int, ...]
    decode_road: str


def sample_members(video: Video, class_index: int, clip: Clip) -> list[tuple[str, bytes]]:
    """Returns what a sample holds as (extension, bytes), in the order of the tar."""
    facts = {"class_name": video.class_name, "source": video.source, **clip_facts(clip)}
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    frames = [(f"{number:03d}.jpg", jpeg) for number, jpeg in enumerate(clip.jpegs)]
    return [*frames, ("cls", str(class_index).encode()), ("json", text.encode())]


def members_crc32(members: Iterable[bytes]) -> int:
    """Returns the checksum of a sample's members, in the order of the tar."""
    crc = 0
    for data in members:
        crc = zlib.crc32(data, crc)
    return crc


def clip_facts(clip: Clip) -> dict[str, object]:
    """Returns what is known about a clip and its video, without the JPEGs."""
    return {name: value for name, value in vars(clip).items() if name != "jpegs"}


def stored_members(data: bytes, row: Mapping[str, Any]) -> list[bytes]:
    """Returns the members of a sample, the JPEGs first, from what its shard holds where its row of the index says.

    Raises:
        ValueError: The sample is not there.
    """
    if len(data) < row["num_bytes"] or not data.startswith(f"{row['key']}.000.jpg\0".encode()):
        raise ValueError("it is not where the index says")
    return [
        data[offset : offset + size] for offset, size in zip(row["member_offsets"], row["member_sizes"], strict=True)
    ]
