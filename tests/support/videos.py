"""Real test videos, made by PyAV: frame i carries the number i as 16 black or white blocks.

The blocks survive lossy codecs, shrinking and JPEG, so that a test can tell which frames came back.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from packer.video.container import choose_stream

_GRID = 4


def number_picture(number: int, height_px: int = 64, width_px: int = 64) -> NDArray[np.uint8]:
    """Returns `(H, W, 3)` uint8 RGB that shows `number` (below 65,536), highest bit first, in rows of four blocks."""
    bits = np.array([number >> bit & 1 for bit in reversed(range(_GRID**2))], np.uint8).reshape(_GRID, _GRID)
    rows = np.arange(height_px) * _GRID // height_px
    columns = np.arange(width_px) * _GRID // width_px
    return np.repeat((bits * 255)[rows[:, None], columns[None, :], None], 3, axis=2)


def read_number(picture: NDArray[np.uint8]) -> int:
    """Returns the number that a picture of any size, `(H, W, 3)`, shows."""
    height_px, width_px = picture.shape[:2]
    centres = [(2 * block + 1) for block in range(_GRID)]
    bits = [
        picture[row * height_px // (2 * _GRID), column * width_px // (2 * _GRID)].mean() > 127
        for row in centres
        for column in centres
    ]
    return sum(int(bit) << place for place, bit in enumerate(reversed(bits)))


def moving_pictures(num_frames: int) -> list[NDArray[np.uint8]]:
    """Noise that drifts and flickers: no two frames are alike, and all are predicted from others."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (24, 24, 3)).repeat(4, axis=0).repeat(4, axis=1)
    return [
        np.roll(noise + random.integers(-9, 9, 3), number, axis=1).clip(0, 255).astype(np.uint8)
        for number in range(num_frames)
    ]


def write_numbered_video(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    height_px: int = 64,
    width_px: int = 64,
    fps: int = 25,
    pixel_format: str = "yuv420p",
    first_number: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video whose frame i shows `first_number` + i; the file's extension chooses the container."""
    pictures = [number_picture(first_number + i, height_px, width_px) for i in range(num_frames)]
    return write_video(path, pictures, codec=codec, fps=fps, pixel_format=pixel_format, options=options)


def write_video(
    path: Path,
    pictures: list[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    fps: int = 25,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Writes pictures, each `(H, W, 3)` uint8 RGB, as a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def full_decode(path: Path) -> Iterator[av.VideoFrame]:
    """Yields all frames of a video's chosen stream, decoded by PyAV alone."""
    with av.open(str(path), metadata_errors="ignore") as container:
        index = choose_stream(container)[0]
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[[stream.index for stream in container.streams.video].index(index)]
        stream.codec_context.thread_count = 1  # what becomes of damaged frames depends on the number of threads
        yield from container.decode(stream)


def write_classes(folder: Path, num_per_class: dict[str, int], num_frames: int = 12) -> Path:
    """Writes a data folder; no two of its videos are equal."""
    first_number = 0
    for class_name, num_videos in num_per_class.items():
        (folder / class_name).mkdir(parents=True)
        for number in range(num_videos):
            path = folder / class_name / f"video {number}.mp4"
            write_numbered_video(path, num_frames, first_number=first_number)
            first_number += num_frames
    return folder
