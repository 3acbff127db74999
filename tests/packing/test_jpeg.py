"""Colours come back as they went in, whatever the video's pixel format and colour space."""

import av
import numpy as np
import pytest
import simplejpeg
from av.video.reformatter import VideoReformatter

from packer.video.jpeg import decode_frames, encode
from packer.video.planes import Orientation, to_planes

RED, GREEN, BLUE = (200, 60, 30), (40, 180, 70), (30, 50, 210)
BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)
UNSTATED, LIMITED, FULL = 0, 1, 2
UPRIGHT = Orientation()


def yuv_frame(
    colour: tuple[int, int, int], pixel_format: str, matrix: tuple[float, float], space: int, colour_range: int
) -> av.VideoFrame:
    """A 64 x 64 frame of one colour, by the definition of YCbCr rather than by swscale."""
    red, green, blue = (level / 255 for level in colour)
    luma = matrix[0] * red + (1 - sum(matrix)) * green + matrix[1] * blue
    chroma = [(blue - luma) / 2 / (1 - matrix[1]), (red - luma) / 2 / (1 - matrix[0])]
    if colour_range == FULL:
        levels = [255 * luma, *(128 + 255 * level for level in chroma)]
    else:
        levels = [16 + 219 * luma, *(128 + 224 * level for level in chroma)]
    frame = av.VideoFrame(64, 64, pixel_format)
    for plane, level in zip(frame.planes, levels, strict=True):
        if pixel_format.endswith("10le"):
            data = np.full(plane.buffer_size // 2, round(level * 4), "<u2").tobytes()
        else:
            data = bytes([round(level)]) * plane.buffer_size
        plane.update(data)
    frame.colorspace, frame.color_range = space, colour_range
    return frame


def through_jpeg(frame: av.VideoFrame, orientation: Orientation = UPRIGHT) -> np.ndarray:
    planes = to_planes(frame, VideoReformatter(), frame.height, frame.width, orientation)
    return decode_frames([encode(planes, 95)])[0].astype(int)


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE])
@pytest.mark.parametrize(
    ("pixel_format", "matrix", "space", "colour_range"),
    [
        ("yuv420p", BT601, 2, UNSTATED),
        ("yuv420p", BT601, 5, LIMITED),
        ("yuv420p", BT601, 6, LIMITED),
        ("yuv420p", BT709, 1, LIMITED),
        ("yuv420p", BT709, 1, FULL),
        ("yuv420p", BT2020, 9, LIMITED),
        ("yuvj420p", BT601, 2, FULL),
        ("yuvj420p", BT709, 1, FULL),
        ("yuv422p", BT709, 1, LIMITED),
        ("yuv444p", BT709, 1, LIMITED),
        ("yuv420p10le", BT709, 1, LIMITED),
    ],
)
def test_yuv_colours(
    colour: tuple[int, int, int], pixel_format: str, matrix: tuple[float, float], space: int, colour_range: int
) -> None:
    frame = yuv_frame(colour, pixel_format, matrix, space, colour_range)
    assert np.abs(through_jpeg(frame) - colour).max() <= 6


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE])
@pytest.mark.parametrize("pixel_format", ["rgb24", "bgr24", "gbrp", "bgra", "rgb48le", "rgb565le", "pal8"])
def test_rgb_colours(colour: tuple[int, int, int], pixel_format: str) -> None:
    picture = np.full((64, 64, 3), colour, np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    if pixel_format == "pal8":
        palette = np.zeros((256, 4), np.uint8)
        palette[1] = (255, *colour)
        frame = av.VideoFrame.from_ndarray((np.ones((64, 64), np.uint8), palette), format="pal8")
    elif pixel_format != "rgb24":
        frame = frame.reformat(format=pixel_format)
    assert np.abs(through_jpeg(frame) - colour).max() <= (8 if pixel_format == "rgb565le" else 4)


def test_gray() -> None:
    frame = av.VideoFrame.from_ndarray(np.full((64, 64), 90, np.uint8), format="gray")
    assert np.abs(through_jpeg(frame) - 90).max() <= 2


def test_quarter_turns_are_counter_clockwise() -> None:
    picture = np.zeros((64, 32, 3), np.uint8)
    picture[:16] = RED
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    turned = through_jpeg(frame, Orientation(True, True, False))
    assert turned.shape == (32, 64, 3)
    assert np.abs(turned[:, :12] - RED).max() <= 8
    assert turned[:, 24:].max() <= 8


def test_decode_frames_keeps_order_and_shape() -> None:
    pictures = [np.full((6, 8, 3), level, np.uint8) for level in (10, 200)]
    frames = decode_frames([simplejpeg.encode_jpeg(picture, quality=95) for picture in pictures])
    assert frames.shape == (2, 6, 8, 3)
    assert [int(frame.mean().round()) for frame in frames] == [10, 200]


def test_decode_frames_refuses_what_is_no_clip() -> None:
    small, large = (simplejpeg.encode_jpeg(np.zeros((side, side, 3), np.uint8)) for side in (8, 16))
    with pytest.raises(ValueError, match=r"of one size, got \(height, width\) \[\(8, 8\), \(16, 16\)\]"):
        decode_frames([small, large])
    with pytest.raises(ValueError, match=r"jpegs \(0 of them\)"):
        decode_frames([])
    with pytest.raises(ValueError, match=r"."):
        decode_frames([small[:40]])
    with pytest.raises(ValueError, match=r"."):
        decode_frames([small[:-20]])
