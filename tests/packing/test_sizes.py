"""Videos whose frames change their size on the way: no picture is squashed."""

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import read_clip
from packer.video.jpeg import decode_frames
from packer.video.planes import common_size, fitted_size
from tests.support.programs import system_program
from tests.support.videos import number_picture, read_number, write_video


def raw_h264(path: Path, parts: list[tuple[int, int, int]]) -> Path:
    """Writes parts of (number of frames, height, width), one after the other; the frames show their number."""
    data, number = b"", 0
    for count, height_px, width_px in parts:
        pictures = [number_picture(number + i, height_px, width_px) for i in range(count)]
        data += write_video(path.with_name("part.h264"), pictures, options={"bf": "0", "g": "10"}).read_bytes()
        number += count
    path.write_bytes(data)
    return path


def through_webrtc(path: Path, parts: list[tuple[int, int, int]]) -> Path:
    """As a browser records a call: VP8 in WebM, of which only the key frames say the size."""
    pieces = []
    for number, (count, height_px, width_px) in enumerate(parts):
        first = sum(part[0] for part in parts[:number])
        pictures = [number_picture(first + i, height_px, width_px) for i in range(count)]
        piece = write_video(path.with_name(f"{number}.webm"), pictures, codec="libvpx", options={"b": "2M", "g": "100"})
        pieces.append(f"file {piece}\n")
    path.with_suffix(".txt").write_text("".join(pieces))
    command = [system_program("ffmpeg"), "-v", "error", "-f", "concat", "-safe", "0", "-i", path.with_suffix(".txt")]
    subprocess.run([*command, "-c", "copy", path], check=True)
    return path


def inner(frame: NDArray[np.uint8], height_px: int, width_px: int) -> NDArray[np.uint8]:
    """What is left without the bars, which must be black."""
    top, left = (frame.shape[0] - height_px) // 2, (frame.shape[1] - width_px) // 2
    outside = np.ones(frame.shape[:2], bool)
    outside[max(0, top - 4) : top + height_px + 4, max(0, left - 4) : left + width_px + 4] = False
    assert not outside.any() or frame[outside].max() <= 8
    return frame[top : top + height_px, left : left + width_px]


@pytest.mark.parametrize("write", [raw_h264, through_webrtc])
def test_the_larger_of_equal_shapes_sets_the_size(tmp_path: Path, write: object) -> None:
    assert callable(write)
    path = write(tmp_path / "video.webm", [(20, 36, 64), (20, 360, 640)])
    for config in (ClipConfig(), ClipConfig(decode="full")):
        clip = read_clip(path, config, DecodeLimits())
        assert (clip.num_frames, clip.num_source_sizes) == (40, 2)
        assert (clip.height_px, clip.width_px) == (128, 228)
        assert (clip.source_height_px, clip.source_width_px) == (36, 64)
        assert tuple(read_number(frame) for frame in decode_frames(clip.jpegs)) == clip.frame_indices
        assert clip.damage == ()


@pytest.mark.parametrize(
    ("parts", "stored", "fitted"),
    [
        ([(10, 360, 640), (30, 640, 360)], (228, 128), {(360, 640): (72, 128)}),
        ([(30, 360, 640), (10, 640, 360)], (128, 228), {(640, 360): (128, 72)}),
        ([(12, 240, 320), (8, 144, 256)], (128, 170), {(144, 256): (96, 170)}),
    ],
)
def test_other_shapes_stand_between_black_bars(
    tmp_path: Path,
    parts: list[tuple[int, int, int]],
    stored: tuple[int, int],
    fitted: dict[tuple[int, int], tuple[int, int]],
) -> None:
    clip = read_clip(raw_h264(tmp_path / "turned.h264", parts), ClipConfig(), DecodeLimits())
    assert ((clip.height_px, clip.width_px), clip.num_source_sizes) == (stored, 2)
    sizes = [part[1:] for part in parts for _ in range(part[0])]
    for index, frame in zip(clip.frame_indices, decode_frames(clip.jpegs), strict=True):
        assert read_number(inner(frame, *fitted.get(sizes[index], stored))) == index


def test_a_video_of_one_size_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", [number_picture(number) for number in range(9)])
    assert read_clip(path, ClipConfig(), DecodeLimits()).num_source_sizes == 1


@pytest.mark.parametrize(
    ("sizes", "common"),
    [
        ([(36, 64)] * 8 + [(360, 640)] * 8, (360, 640)),
        ([(640, 360)] * 9 + [(360, 640)] * 7, (640, 360)),
        ([(240, 426)] * 4 + [(720, 1280)] * 4 + [(1280, 720)] * 7, (720, 1280)),
        ([(100, 100)] * 8 + [(90, 200)] * 8, (90, 200)),
        ([(1, 1)], (1, 1)),
    ],
)
def test_common_size(sizes: list[tuple[int, int]], common: tuple[int, int]) -> None:
    assert common_size(sizes) == common


@pytest.mark.parametrize(
    ("size", "aspect", "box", "fitted"),
    [
        ((360, 640), Fraction(1), (180, 320), (180, 320)),
        ((640, 360), Fraction(1), (180, 320), (180, 102)),
        ((576, 720), Fraction(16, 15), (128, 170), (128, 170)),
        ((361, 640), Fraction(1), (180, 320), (180, 320)),
        ((1, 1000), Fraction(1), (100, 100), (2, 100)),
        ((5, 5), Fraction(1), (1, 9), (1, 2)),
    ],
)
def test_fitted_size(size: tuple[int, int], aspect: Fraction, box: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fitted_size(*size, aspect, box) == fitted
