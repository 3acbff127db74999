"""What codec or container cut off is not packed."""

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import read_clip
from packer.video.jpeg import decode_frames
from tests.support.programs import system_program
from tests.support.videos import write_video

WIDTH, HEIGHT = 320, 192


def picture() -> NDArray[np.uint8]:
    """Levels of gray that say the column (a step each 8 pixels) and, in the lower half, the row."""
    columns = np.arange(WIDTH) // 8 * 6
    rows = np.arange(HEIGHT) // 8 * 10
    half = np.arange(HEIGHT)[:, None] >= HEIGHT // 2
    levels = np.where(half, rows[:, None] % 256, columns[None, :] % 256)
    return np.repeat(levels[..., None], 3, axis=2).astype(np.uint8)


def check(path: Path, left: int, top: int, right: int, bottom: int) -> None:
    wanted = picture()[top : HEIGHT - bottom, left : WIDTH - right].astype(int)
    for decode in ("auto", "full"):
        config = ClipConfig(num_frames=3, short_side_px=0, jpeg_quality=100, decode=decode)
        clip = read_clip(path, config, DecodeLimits())
        assert (clip.width_px, clip.height_px) == (WIDTH - left - right, HEIGHT - top - bottom)
        assert (clip.source_width_px, clip.source_height_px) == (clip.width_px, clip.height_px)
        assert np.abs(decode_frames(clip.jpegs).astype(int) - wanted).mean() < 2


def source(path: Path, codec: str = "libx264") -> Path:
    options = {"qp": "1"} if codec == "libx264" else {"x265-params": "lossless=1:log-level=none"}
    return write_video(path, [picture()] * 6, codec=codec, options=options)


@pytest.mark.parametrize(
    "crop", [(2, 0, 0, 0), (16, 0, 0, 0), (32, 0, 16, 0), (64, 0, 0, 0), (0, 0, 16, 0), (0, 16, 0, 8)]
)
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_the_codecs_crop(tmp_path: Path, crop: tuple[int, int, int, int], codec: str) -> None:
    name = {"libx264": "h264", "libx265": "hevc"}[codec]
    sides = ":".join(
        f"crop_{side}={value}" for side, value in zip(("left", "top", "right", "bottom"), crop, strict=True)
    )
    command = [system_program("ffmpeg"), "-v", "error", "-i", str(source(tmp_path / "source.mp4", codec))]
    command += ["-c", "copy", "-bsf:v", f"{name}_metadata={sides}", str(tmp_path / "cropped.mp4")]
    subprocess.run(command, check=True)
    check(tmp_path / "cropped.mp4", *crop)


def with_clean_aperture(data: bytes, left: int, top: int, right: int, bottom: int) -> bytes:
    """Adds the box `clap` to the sample entry of an MP4 whose index is at its end."""
    assert data.index(b"mdat") < data.index(b"moov")
    sides = (WIDTH - left - right, 1, HEIGHT - top - bottom, 1, left - right, 2, top - bottom, 2)
    box = struct.pack(">I4s8i", 40, b"clap", *sides)
    changed = bytearray(data)
    place = 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = changed.index(kind, place)
        size = int.from_bytes(changed[place - 4 : place], "big")
        changed[place - 4 : place] = (size + len(box)).to_bytes(4, "big")
    end = place - 4 + size
    return bytes(changed[:end]) + box + bytes(changed[end:])


@pytest.mark.parametrize("crop", [(8, 0, 0, 0), (16, 8, 24, 32), (0, 0, 0, 64)])
@pytest.mark.parametrize("extension", ["mp4", "mov"])
def test_the_clean_aperture_of_mp4(tmp_path: Path, crop: tuple[int, int, int, int], extension: str) -> None:
    path = source(tmp_path / f"source.{extension}")
    path.write_bytes(with_clean_aperture(path.read_bytes(), *crop))
    check(path, *crop)


def test_the_pixel_crop_of_matroska(tmp_path: Path) -> None:
    path = tmp_path / "wide.mkv"
    command = [system_program("ffmpeg"), "-v", "error", "-i", str(source(tmp_path / "source.mp4"))]
    subprocess.run([*command, "-c", "copy", "-aspect", "2:1", str(path)], check=True)
    data = path.read_bytes()
    for old, new, value in ((0x54B0, 0x54CC, 16), (0x54BA, 0x54BB, 8)):  # display width and height: crop left and top
        place = data.index(old.to_bytes(2, "big"))
        size = data[place + 2] & 0x7F
        data = (
            data[:place]
            + new.to_bytes(2, "big")
            + data[place + 2 : place + 3]
            + value.to_bytes(size, "big")
            + data[place + 3 + size :]
        )
    path.write_bytes(data)
    check(path, 16, 8, 0, 0)


def test_a_crop_that_leaves_nothing_is_ignored(tmp_path: Path) -> None:
    path = source(tmp_path / "source.mp4")
    path.write_bytes(with_clean_aperture(path.read_bytes(), 200, 0, 200, 0))
    check(path, 0, 0, 0, 0)
