"""Makes the planes that a JPEG stores from a decoded frame: colours converted, shrunk, squared, turned upright.

One swscale step converts and shrinks, from the decoder's planes to full-range BT.601 4:2:0. `Resizer` holds what is the
same for all frames of a video: the stored size and the turn.
"""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

Planes = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
"""Y `(H, W)`, U and V `(ceil(H/2), ceil(W/2))`: uint8 in [0, 255], full-range BT.601 as in JFIF."""
_SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def stored_size(height_px: int, width_px: int, pixel_aspect: Fraction, short_side_px: int) -> tuple[int, int]:
    """Returns (height, width) of the stored frame before it is turned: square pixels, shrunk, never enlarged.

    Sides are even, as 4:2:0 needs, except a side of 1. 240 x 320 at short side 128 gives (128, 170); 576 x 720
    with pixels 16:15 wide gives (128, 170) too, and (540, 720) when the size is kept.

    Args:
        height_px: Height of the decoded frame.
        width_px: Width of the decoded frame.
        pixel_aspect: Width of a pixel divided by its height.
        short_side_px: Longest allowed short side; 0 allows any.
    """
    shape = Fraction(width_px, height_px) * pixel_aspect
    width = min(Fraction(width_px), height_px * shape)
    height = width / shape
    if short_side_px:
        scale = min(Fraction(1), short_side_px / min(width, height))
        width, height = width * scale, height * scale
    return _even(height, height_px), _even(width, width_px)


def _even(side: Fraction, limit_px: int) -> int:
    return 1 if limit_px == 1 else max(2, min(2 * round(side / 2), limit_px - limit_px % 2))


class Resizer:
    """Makes planes of one size from all frames of a video; its first frame sets the size and the turn."""

    def __init__(self, short_side_px: int) -> None:
        """Takes the longest allowed short side; 0 allows any."""
        self._short_side_px = short_side_px
        self._reformatter = VideoReformatter()
        self._quarter_turns = 0
        self._size = (0, 0)
        self.source_size = (0, 0)
        """Height and width of the first frame as decoded."""

    def __call__(self, frame: av.VideoFrame, stream: VideoStream, index: int) -> Planes:
        """Returns the planes of frame `index` of a stream."""
        if index == 0:
            self.source_size = (frame.height, frame.width)
            aspect = stream.sample_aspect_ratio or Fraction(1)
            self._size = stored_size(frame.height, frame.width, aspect, self._short_side_px)
            self._quarter_turns = round(frame.rotation / 90) % 4
        return to_planes(frame, self._reformatter, *self._size, self._quarter_turns)


def to_planes(
    frame: av.VideoFrame, reformatter: VideoReformatter, height_px: int, width_px: int, quarter_turns: int
) -> Planes:
    """Returns the planes of a frame of any pixel format and colour space, resized and then turned.

    A frame that states no colour matrix is taken as BT.601, as in FFmpeg, whatever its size.

    Args:
        frame: The decoded frame.
        reformatter: Keeps swscale's tables between the frames of a video.
        height_px: Height before the turn.
        width_px: Width before the turn.
        quarter_turns: Number of turns by 90 degrees, counter-clockwise.
    """
    resized = reformatter.reformat(
        frame,
        width=width_px,
        height=height_px,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.JPEG,
        interpolation=_SCALING,
        threads=1,  # the default, one per core, is 1.6x slower on small frames
    )
    luma, blue, red = (_turned(plane, quarter_turns) for plane in resized.planes)
    return luma, blue, red


def _turned(plane: av.video.plane.VideoPlane, quarter_turns: int) -> NDArray[np.uint8]:
    # PyAV's stubs do not say that a plane is a buffer.
    rows: NDArray[np.uint8] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
    # A copy: the rows lie in FFmpeg's memory, padded to its line size.
    return np.rot90(rows[: plane.height, : plane.width], quarter_turns).copy()
