"""Damaged videos: real ones, changed at random; a seed and a number always give the same file."""

import os
import struct
import tempfile
from pathlib import Path
from random import Random

from tests.support.videos import write_numbered_video

MAX_SOURCE_BYTES = 400_000
"""Larger files take longer to send and to decode, and break in no other way."""
_MADE = {
    "a.mp4": "libx264",
    "b.mkv": "libx264",
    "c.avi": "mpeg4",
    "d.webm": "libvpx-vp9",
    "e.ts": "libx264",
    "f.mov": "png",
}
_SIZES = (0, 1, 7, 8, 9, 2**16, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1)


def sources() -> list[bytes]:
    """Returns the videos to damage: those below CLIPSTREAM_TEST_DATA if it is set, otherwise a few made ones."""
    folder = os.environ.get("CLIPSTREAM_TEST_DATA")
    if folder:
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return [path.read_bytes() for path in paths if 0 < path.stat().st_size <= MAX_SOURCE_BYTES]
    with tempfile.TemporaryDirectory() as made:
        return [
            write_numbered_video(
                Path(made) / name, 12, codec=codec, pixel_format="rgb24" if codec == "png" else "yuv420p"
            ).read_bytes()
            for name, codec in _MADE.items()
        ]


def mutated(videos: list[bytes], seed: int, number: int) -> bytes:
    """Returns one damaged video, the `number`-th of a seed: one to three changes to one of `videos`."""
    chance = Random(f"{seed}/{number}")
    video = chance.choice(videos)
    for _ in range(chance.randint(1, 3)):
        video = chance.choice(_MUTATIONS)(video, chance, chance.choice(videos))
    return video or b"\0"


def _flip(video: bytes, chance: Random, other: bytes) -> bytes:
    changed = bytearray(video)
    for _ in range(min(len(video), 2 ** chance.randint(0, 10))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _flip_in_header(video: bytes, chance: Random, other: bytes) -> bytes:
    return _flip(video[:2000], chance, other) + video[2000:]


def _flip_at_end(video: bytes, chance: Random, other: bytes) -> bytes:
    return video[:-4000] + _flip(video[-4000:], chance, other)


def _cut(video: bytes, chance: Random, other: bytes) -> bytes:
    return video[: chance.randrange(len(video) + 1)]


def _remove(video: bytes, chance: Random, other: bytes) -> bytes:
    start = chance.randrange(len(video) + 1)
    return video[:start] + video[start + 2 ** chance.randint(0, 14) :]


def _insert(video: bytes, chance: Random, other: bytes) -> bytes:
    start = chance.randrange(len(video) + 1)
    return video[:start] + chance.randbytes(2 ** chance.randint(0, 12)) + video[start:]


def _overwrite(video: bytes, chance: Random, other: bytes) -> bytes:
    start, length = chance.randrange(len(video) + 1), 2 ** chance.randint(0, 12)
    return video[:start] + chance.choice([b"\0", b"\xff"]) * length + video[start + length :]


def _splice(video: bytes, chance: Random, other: bytes) -> bytes:
    return video[: chance.randrange(len(video) + 1)] + other[chance.randrange(len(other)) :]


def _swap_header(video: bytes, chance: Random, other: bytes) -> bytes:
    length = 2 ** chance.randint(3, 12)
    return other[:length] + video[length:]


def _repeat(video: bytes, chance: Random, other: bytes) -> bytes:
    start = chance.randrange(len(video) + 1)
    stop = start + 2 ** chance.randint(0, 14)
    return video[:stop] + video[start:stop] * chance.randint(1, 8) + video[stop:]


def _edit_size(video: bytes, chance: Random, other: bytes) -> bytes:
    """Changes four bytes before what looks like a box's or a chunk's name, or after it."""
    places = [i for i in range(4, len(video) - 8) if video[i : i + 4].isalnum()][:400]
    place = chance.choice(places or [0]) + chance.choice((-4, 4, 8, 12))
    if place < 0:
        return video
    number = chance.choice((*_SIZES, len(video), chance.randrange(2**32)))
    return video[:place] + struct.pack(chance.choice("<>") + "I", number % 2**32) + video[place + 4 :]


_MUTATIONS = (
    _flip,
    _flip_in_header,
    _flip_at_end,
    _cut,
    _remove,
    _insert,
    _overwrite,
    _splice,
    _swap_header,
    _repeat,
    _edit_size,
    _edit_size,
)
