"""Makes the planes that a JPEG stores from a decoded frame: colours converted, shrunk, squared, turned upright.

One swscale step converts and shrinks, from the decoder's planes to full-range BT.601 4:2:0. `Resizer` holds what is the
same for all frames of a video: the stored size and the orientation. Frames that swscale would read wrongly are mended
first (`Mender`); all others go to swscale as they come from the decoder.
"""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from packer.video.filters import FrameFilter

Planes = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
"""Y `(H, W)`, U and V `(ceil(H/2), ceil(W/2))`: uint8 in [0, 255], full-range BT.601 as in JFIF."""
_SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_BLACK = (0, 128, 128)
_LIMITED = ColorRange.MPEG.value
_KNOWN_MATRICES = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
"""Colour matrices (ITU-T H.273, table 4) that swscale has: it refuses to convert frames that state another one."""
_BY_PRIMARIES = {1: Colorspace.ITU709, 9: Colorspace.BT2020}
"""The matrix that follows from a frame's primaries, for frames that state just that (12 and 13)."""
_BT2020_CONSTANT, _DERIVED, _DERIVED_CONSTANT = 10, 12, 13
_WITH_CHROMA = {"gray": "yuv420p", "gray10le": "yuv420p10le", "gray12le": "yuv420p12le"}
"""By the pixel format of a monochrome frame, the format of the same luma with chroma."""


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


class Orientation(NamedTuple):
    """How a frame is turned or mirrored: first swap rows and columns, then reverse them."""

    swaps_sides: bool = False
    reverses_rows: bool = False
    """The bottom row comes first."""
    reverses_columns: bool = False
    """The right column comes first."""


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Returns the orientation in which a player shows the frame, by its display matrix, which container or SEI give.

    The matrix (a, b, u, c, d, v, x, y, w) moves the pixel (x, y) to (a x + c y, b x + d y); the nearest of the eight
    orientations that keep pixels on their grid is taken.

    Source: ISO/IEC 14496-12, 6.2.2.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18.1 knows no EXIF, which a JPEG holds; it still gives the angle, not the mirroring
        quarter_turns = round(frame.rotation / 90) % 4
        return Orientation(quarter_turns % 2 == 1, quarter_turns in (1, 2), quarter_turns in (2, 3))
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(matrix, np.int32))  # type: ignore[call-overload]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)


class Matrix(NamedTuple):
    """The colour matrix that a frame is read with."""

    given: Colorspace | None
    """None: the one that the frame states."""
    is_approximate: bool
    """The frame's own matrix is one that swscale lacks."""


def matrix_of(frame: av.VideoFrame) -> Matrix:
    """Returns the matrix for a frame: its own, or, if swscale lacks that, the closest; otherwise BT.709.

    A matrix of constant luminance is no matrix at all but a curve; the one with the same weights comes close to it.
    """
    stated = frame.colorspace
    if stated in _KNOWN_MATRICES:
        return Matrix(None, False)
    if stated == _BT2020_CONSTANT:
        return Matrix(Colorspace.BT2020, True)
    if stated in (_DERIVED, _DERIVED_CONSTANT) and frame.color_primaries in _BY_PRIMARIES:
        return Matrix(_BY_PRIMARIES[frame.color_primaries], stated == _DERIVED_CONSTANT)
    return Matrix(Colorspace.ITU709, True)


class PixelShape(Protocol):
    """What tells the shape of a pixel: a stream."""

    @property
    def sample_aspect_ratio(self) -> Fraction | None:
        """Width of a pixel divided by its height; None: not stated."""
        ...


class Resizer:
    """Makes planes of one size from all frames of a video; its first frame sets the orientation.

    The size is that of the first frame, or of another one that is given. A frame of another shape keeps it: it is
    fitted into that size, between black bars.
    """

    def __init__(self, short_side_px: int, reference_size: tuple[int, int] | None = None) -> None:
        """Takes the longest allowed short side (0 allows any), and height and width of a frame that sets the size."""
        self._short_side_px = short_side_px
        self._given_size = reference_size
        self._reformatter = VideoReformatter()
        self._mender = Mender()
        self._orientation = Orientation()
        self._pixel_aspect = Fraction(1)
        self._stored_size = (0, 0)
        self.reference_size = (0, 0)
        """Height and width of the frame that sets the size, as decoded."""
        self.sizes: dict[int, tuple[int, int]] = {}
        """Height and width of the frames as decoded, by index."""
        self.is_colour_approximate = False
        """Whether a frame states a colour matrix that was replaced by another one."""

    def __call__(self, frame: av.VideoFrame, stream: PixelShape, index: int) -> Planes:
        """Returns the planes of frame `index` of a stream."""
        size = (frame.height, frame.width)
        if index == 0:
            self.reference_size = self._given_size or size
            self._pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
            self._stored_size = stored_size(*self.reference_size, self._pixel_aspect, self._short_side_px)
            self._orientation = orientation_of(frame)
        self.sizes[index] = size
        if frame.colorspace not in _KNOWN_MATRICES:
            self.is_colour_approximate |= matrix_of(frame).is_approximate
        frame = self._mender.mended(frame)
        if size == self.reference_size:
            return to_planes(frame, self._reformatter, *self._stored_size, self._orientation)
        fitted = fitted_size(*size, self._pixel_aspect, self._stored_size)
        planes = to_planes(frame, self._reformatter, *fitted, self._orientation)
        height_px, width_px = self._stored_size[:: -1 if self._orientation.swaps_sides else 1]
        return _between_bars(planes, height_px, width_px)


def fitted_size(height_px: int, width_px: int, pixel_aspect: Fraction, box: tuple[int, int]) -> tuple[int, int]:
    """Returns the largest (height, width) with a frame's shape in a box of (height, width).

    Sides are even; up to 2 px of the box are filled rather than left. 640 x 360 in a box of (180, 320) gives (180,
    320), and 360 x 640 gives (180, 102).
    """
    shape = Fraction(width_px, height_px) * pixel_aspect
    height = min(Fraction(box[0]), box[1] / shape)
    return _fitted(height, box[0]), _fitted(height * shape, box[1])


def _fitted(side: Fraction, limit_px: int) -> int:
    even = max(2, 2 * round(side / 2))
    return limit_px if limit_px - even <= 2 else even


def _between_bars(planes: Planes, height_px: int, width_px: int) -> Planes:
    """Returns smaller planes in the middle of black ones."""
    top, left = ((side - inner) // 4 * 2 for side, inner in zip((height_px, width_px), planes[0].shape, strict=True))
    framed = []
    for plane, level, step in zip(planes, _BLACK, (1, 2, 2), strict=True):
        whole = np.full((-(-height_px // step), -(-width_px // step)), level, np.uint8)
        rows, columns = plane.shape
        whole[top // step :, left // step :][:rows, :columns] = plane
        framed.append(whole)
    luma, blue, red = framed
    return luma, blue, red


def common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the largest (height, width) of the commonest shape; of shapes as common, that of the largest frame.

    Sides that differ by a pixel through rounding, as 426 x 240 and 1280 x 720, have one shape.
    """
    if len(set(sizes)) == 1:  # nearly all videos
        return sizes[0]
    num_of_shape = Counter(_shape(size) for size in sizes)
    return max(sizes, key=lambda size: (num_of_shape[_shape(size)], size[0] * size[1]))


def _shape(size: tuple[int, int]) -> int:
    return round(40 * math.log(size[1] / size[0]))


class Mender:
    """Mends frames that swscale would read wrongly; returns all others as they are."""

    def __init__(self) -> None:
        self._as_progressive = FrameFilter("setfield", "prog")

    def mended(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Returns a frame that swscale reads rightly.

        swscale scales the even and the odd rows of a frame that is flagged as interlaced apart, which mixes rows that
        lie far from each other; and it takes a monochrome frame as full-range, whatever the frame states.
        """
        if frame.interlaced_frame:
            frame = self._as_progressive(frame)
        if frame.color_range == _LIMITED and frame.format.name in _WITH_CHROMA:
            frame = _with_neutral_chroma(frame)
        return frame


def _with_neutral_chroma(gray: av.VideoFrame) -> av.VideoFrame:
    """Returns a monochrome frame of limited range as 4:2:0."""
    coloured = av.VideoFrame(gray.width, gray.height, _WITH_CHROMA[gray.format.name])
    coloured.color_range = gray.color_range
    kind, bits = ("u1", 8) if gray.format.name == "gray" else ("<u2", coloured.format.components[0].bits)
    luma, *chroma = (_rows(plane, kind) for plane in coloured.planes)
    luma[:] = _rows(gray.planes[0], kind)
    for plane in chroma:
        plane[:] = 1 << (bits - 1)
    return coloured


def _rows(plane: av.video.plane.VideoPlane, kind: str) -> NDArray[np.generic]:
    """Returns a plane's memory as (height, width), without the padding of FFmpeg's lines."""
    # PyAV's stubs do not say that a plane is a buffer.
    rows: NDArray[np.generic] = np.frombuffer(plane, kind).reshape(plane.height, -1)  # type: ignore[call-overload]
    return rows[:, : plane.width]


def to_planes(
    frame: av.VideoFrame, reformatter: VideoReformatter, height_px: int, width_px: int, orientation: Orientation
) -> Planes:
    """Returns the planes of a frame of any pixel format and colour space, resized and then turned.

    A frame that states no colour matrix is taken as BT.601, as in FFmpeg, whatever its size; one that states a matrix
    that swscale lacks is read with another one (`matrix_of`).

    Args:
        frame: The decoded frame.
        reformatter: Keeps swscale's tables between the frames of a video.
        height_px: Height before the turn.
        width_px: Width before the turn.
        orientation: How to turn and mirror.
    """
    resized = reformatter.reformat(
        frame,
        width=width_px,
        height=height_px,
        format="yuv420p",
        src_colorspace=matrix_of(frame).given,
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.JPEG,
        interpolation=_SCALING,
        threads=1,  # the default, one per core, is 1.6x slower on small frames
    )
    luma, blue, red = (_turned(plane, orientation) for plane in resized.planes)
    return luma, blue, red


def _turned(plane: av.video.plane.VideoPlane, orientation: Orientation) -> NDArray[np.uint8]:
    # PyAV's stubs do not say that a plane is a buffer.
    rows: NDArray[np.uint8] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
    pixels = rows[: plane.height, : plane.width]
    if orientation.swaps_sides:
        pixels = pixels.T
    step = slice(None, None, -1)
    if orientation.reverses_rows:
        pixels = pixels[step]
    if orientation.reverses_columns:
        pixels = pixels[:, step]
    # A copy: the rows lie in FFmpeg's memory, padded to its line size.
    return pixels.copy()
