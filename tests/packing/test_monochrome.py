"""Monochrome videos, as of thermal and night cameras, keep their levels of gray."""

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import read_clip
from packer.video.jpeg import decode_frames
from tests.support.programs import system_program

LOSSLESS = {
    "libx265": ["-x265-params", "lossless=1:log-level=none"],
    "libaom-av1": ["-crf", "0", "-cpu-used", "8"],
}
LEVELS = {ColorRange.MPEG: (16, 126, 235), ColorRange.JPEG: (0, 128, 255)}
"""Stored luma of black, gray and white."""


def write_gray(path: Path, codec: str, colour_range: ColorRange, pixel_format: str) -> Path:
    """Writes three bars, black, gray and white, of the range's levels."""
    bits = 8 if pixel_format == "gray" else int(pixel_format[4:6])
    levels = np.array(LEVELS[colour_range]) << (bits - 8)
    if colour_range == ColorRange.JPEG:
        levels = np.round(np.array(LEVELS[colour_range]) * ((1 << bits) - 1) / 255).astype(int)
    picture = np.repeat(levels, 32)[None].repeat(67, axis=0).astype(np.uint8 if bits == 8 else "<u2")
    command = [system_program("ffmpeg"), "-v", "error", "-f", "rawvideo", "-pix_fmt", pixel_format, "-s", "96x67"]
    command += ["-i", "-", "-color_range", "tv" if colour_range == ColorRange.MPEG else "pc"]
    command += ["-c:v", codec, "-pix_fmt", pixel_format, *LOSSLESS[codec], str(path)]
    subprocess.run(command, input=picture.tobytes() * 4, check=True)
    return path


@pytest.mark.parametrize("colour_range", LEVELS, ids=["limited", "full"])
@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [("libx265", "gray"), ("libx265", "gray10le"), ("libx265", "gray12le"), ("libaom-av1", "gray")],
)
@pytest.mark.parametrize("short_side_px", [0, 32])
def test_black_gray_and_white(
    tmp_path: Path, codec: str, pixel_format: str, colour_range: ColorRange, short_side_px: int
) -> None:
    path = write_gray(tmp_path / "gray.mp4", codec, colour_range, pixel_format)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.format.name, frame.color_range) == (pixel_format, colour_range.value)
    clip = read_clip(path, ClipConfig(num_frames=2, short_side_px=short_side_px, jpeg_quality=100), DecodeLimits())
    frames = decode_frames(clip.jpegs).astype(int)
    for third, level in zip((1, 3, 5), (0, 128, 255), strict=True):
        column = frames[:, :, third * frames.shape[2] // 6]
        assert np.abs(column - level).max() <= 2  # 10 bits are dithered to 8
