"""The sample record: the members that a tar holds for one clip, and the clip's row in the index.

A sample is one contiguous range of a tar. Its members are named `<key>.000.jpg`, `<key>.001.jpg`, ..., `<key>.cls` and
`<key>.json`, in this order. `write_members` and `read_members` are the only code that knows the layout; every file of
the pack, the checks and the training go through them.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from configs.section import Section

if TYPE_CHECKING:  # they import PyAV, which those who read samples need not
    from packer.video.catalog import Video
    from packer.video.clip import Clip

_NAME_BYTES = 100
_SIZE = slice(124, 136)
_MAGIC = slice(257, 262)
"""Where the fields lie in a header of 512 bytes. Source: POSIX.1-1988, ustar interchange format."""


class SampleRow(Section):
    """One sample, as listed in the index (`samples.parquet`) and in the shard's record."""

    key: str
    split: str
    shard: str
    """File name of the tar."""
    offset: int
    """Where the sample's first tar header starts, in bytes."""
    num_bytes: int
    """From there to the end of the last member with its padding."""
    member_offsets: tuple[int, ...]
    """Where the data of each member starts, in bytes from `offset`: the JPEGs, then cls, then json."""
    member_sizes: tuple[int, ...]
    crc32: int = 0
    """Checksum of all members' bytes in order, because a damaged JPEG may still decode; 0: not known (older packs)."""
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
    sampled_by: str = "index"
    """`index` also in packs from before there was a choice."""
    start_seconds: float | None = None
    end_seconds: float | None = None
    num_segment_frames: int = 0
    frame_times_seconds: tuple[float, ...] = ()
    """These four are those of `Clip`; packs from before there were segments lack them."""
    frame_hashes: tuple[str, ...] = ()
    """Perceptual hashes of the clip's first and last frame, in hexadecimal: of pictures that look alike, few bits
    differ. A frame that shows nothing has none; empty also in packs from before there were any."""


@dataclass(frozen=True)
class StoredSample:
    """A sample as its tar holds it."""

    key: str
    members: dict[str, bytes]
    """The bytes by extension: `000.jpg`, `001.jpg`, ..., `cls`, `json`; in the order of the tar."""

    @property
    def jpegs(self) -> list[bytes]:
        """The frames in display order."""
        return [data for extension, data in self.members.items() if extension.endswith(".jpg")]


def sample_members(video: "Video", class_index: int, clip: "Clip") -> list[tuple[str, bytes]]:
    """Returns what a sample holds as (extension, bytes), in the order of the tar."""
    metadata = {"class_name": video.class_name, "source": video.source, **clip_metadata(clip)}
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    frames = [(f"{number:03d}.jpg", jpeg) for number, jpeg in enumerate(clip.jpegs)]
    return [*frames, ("cls", str(class_index).encode()), ("json", text.encode())]


def relabelled_members(stored: StoredSample, class_name: str, class_index: int) -> list[tuple[str, bytes]]:
    """Returns what a sample holds once its class is another one, as `sample_members` gives it for that class."""
    text = json.dumps(
        {**json.loads(stored.members["json"]), "class_name": class_name}, sort_keys=True, ensure_ascii=False
    )
    return [*(stored.members | {"cls": str(class_index).encode(), "json": text.encode()}).items()]


def clip_metadata(clip: "Clip") -> dict[str, object]:
    """Returns what is known about a clip and its video, without the JPEGs.

    A field with a default is left out if it holds it: so packs without it keep the bytes that they had before.
    """
    found = {known.name: (getattr(clip, known.name), known.default) for known in fields(clip)}
    return {name: value for name, (value, default) in found.items() if name != "jpegs" and value != default}


def members_crc32(members: Iterable[bytes]) -> int:
    """Returns the checksum of a sample's members, given in the order of the tar."""
    crc = 0
    for data in members:
        crc = zlib.crc32(data, crc)
    return crc


def stored_bytes(members: Sequence[tuple[str, bytes]]) -> int:
    """Returns how many bytes of a tar the members take, with headers and padding."""
    return sum(tarfile.BLOCKSIZE + _padded(len(data)) for _, data in members)


def write_members(tar: tarfile.TarFile, key: str, members: Sequence[tuple[str, bytes]]) -> list[int]:
    """Appends a sample to a tar and returns where each member's data starts, in bytes from the sample's start."""
    start = tar.offset
    data_offsets = []
    for extension, data in members:
        data_offsets.append(tar.offset - start + tarfile.BLOCKSIZE)
        header = tarfile.TarInfo(f"{key}.{extension}")  # time, owner and group are 0: the same input, the same bytes
        header.size = len(data)
        header.mode = 0o644
        tar.addfile(header, io.BytesIO(data))
    return data_offsets


def read_members(data: bytes) -> StoredSample:
    """Returns the sample that a range of a tar holds.

    Args:
        data: The bytes from the sample's first header to the end of its last member, as the index says.

    Raises:
        ValueError: The range does not hold one whole sample; the text is the end of a sentence about the range.
    """
    key: str | None = None
    members: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        header = data[position : position + tarfile.BLOCKSIZE]
        if header[_MAGIC] != b"ustar":
            raise ValueError(f"holds no tar header at byte {position}: the shard and its index differ")
        found, _, extension = header[:_NAME_BYTES].rstrip(b"\0").decode("ascii", "replace").partition(".")
        if key is None:
            key = found
        elif found != key:
            raise ValueError(f"runs into {found} from {key}: the shard and its index differ")
        try:
            size = int(header[_SIZE].rstrip(b"\0 "), 8)
        except ValueError as error:
            raise ValueError(f"holds a damaged tar header at byte {position}") from error
        start = position + tarfile.BLOCKSIZE
        if not 0 <= size <= len(data) - start:
            raise ValueError(f"holds a member that does not end within it: {key}.{extension}")
        members[extension] = data[start : start + size]
        position = start + _padded(size)
    return StoredSample(key or "", members)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
