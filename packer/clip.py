"""Turns one video into one clip: T equally spaced frames, exact, as JPEGs.

Packing and serving both call `read_clip`, so a served video is sampled, turned, shrunk and compressed just as a packed
one. The number of frames is what a full decode gives, never what the container states: that is wrong in every genuine
HMDB51 clip we have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Generic

import av
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from configs.pack import ClipConfig, DecodeLimits
from packer.container import VideoError as VideoError
from packer.container import fetched, open_source, source_sha256, translated_errors
from packer.decode import Decoded, Decoder, Keep, KeptT
from packer.jpeg import Planes, encode, to_planes

SAMPLING_RULE = "index_i = (2*i*(N-1) + (T-1)) // (2*(T-1)), i = 0..T-1; T = 1: (N-1) // 2"
"""How T frames are chosen of the N that a full decode gives; kept in the manifest."""


@dataclass(frozen=True)
class Clip:
    """T frames of one video, and what is known about the video."""

    jpegs: tuple[bytes, ...]
    """The frames in display order, all of one size."""
    height_px: int
    width_px: int
    source_height_px: int
    """Height of the first frame as coded: before rotation, squaring of the pixels and shrinking."""
    source_width_px: int
    source_sha256: str
    """Of the video's bytes."""
    num_frames: int
    """Frames that a full decode gives."""
    num_frames_claimed: int
    """Frames that the container states; 0: it states none."""
    num_bad_packets: int
    """Packets that could not be decoded and were passed over; 0 for an undamaged video."""
    fps: float
    """Mean frames per second as the container states them; 0: it states none."""
    duration_seconds: float
    frame_indices: tuple[int, ...]
    """Which of the `num_frames` frames the clip holds."""
    decode_road: str
    """How the frames were reached; `full`: every frame was decoded; `needed`: those that the clip needs."""


@dataclass(frozen=True)
class Picked(Generic[KeptT]):
    """The frames that the sampling rule wants of one video, and the video's facts."""

    frames: tuple[KeptT, ...]
    frame_indices: tuple[int, ...]
    video: Decoded[KeptT]


def frame_indices(num_frames_available: int, num_frames: int) -> tuple[int, ...]:
    """Returns which frames a clip holds: equally spaced from the first to the last, in integers so that nothing rounds.

    A 10-frame video gives a clip of 4 the frames (0, 3, 6, 9), a clip of 1 the frame (4,); a 3-frame video gives a clip
    of 5 the frames (0, 1, 1, 2, 2): a short video repeats frames.

    Args:
        num_frames_available: Frames in the video, N.
        num_frames: Frames in the clip, T.

    Raises:
        ValueError: One of the counts is below 1.
    """
    if num_frames_available < 1 or num_frames < 1:
        raise ValueError(
            f"num_frames_available ({num_frames_available}) and num_frames ({num_frames}) must be at least 1"
        )
    last, gaps = num_frames_available - 1, num_frames - 1
    if not gaps:
        return (last // 2,)
    return tuple((2 * i * last + gaps) // (2 * gaps) for i in range(num_frames))


def stored_size(height_px: int, width_px: int, pixel_aspect: Fraction, short_side_px: int) -> tuple[int, int]:
    """Returns (height, width) of the stored frame before it is turned: square pixels, shrunk, never enlarged.

    Sides are even, as 4:2:0 colour wants, except a side of 1. 240 x 320 at short side 128 gives (128, 170); 576 x 720
    with pixels 16:15 wide gives (128, 170) too, and (540, 720) when the size is kept.

    Args:
        height_px: Height of the decoded frame.
        width_px: Width of the decoded frame.
        pixel_aspect: Width of a pixel divided by its height.
        short_side_px: Longest allowed short side; 0: any.
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


def read_clip(
    source: str | Path | bytes,
    clip: ClipConfig,
    limits: DecodeLimits,
    before_decode: Callable[[int], None] | None = None,
) -> Clip:
    """Returns the clip of one video: a file's path or address, or the file's bytes; they give the same clip.

    Args:
        source: The video.
        clip: What of it is wanted.
        limits: Frames and pixels that a video may have.
        before_decode: Called with the pixels that a frame has by the header, once header and packets were read, before
            the video's frames may take time and memory.

    Raises:
        VideoError: The video gives no clip.
    """
    resizer = _Resizer(clip.short_side_px)
    with fetched(source) as fetched_source:
        sha256 = source_sha256(fetched_source)
        picked = pick_frames(fetched_source, clip, limits, resizer, before_decode)
    video = picked.video
    with translated_errors():
        jpegs = [encode(planes, clip.jpeg_quality) for planes in picked.frames]
    height_px, width_px = picked.frames[0][0].shape
    return Clip(
        jpegs=tuple(jpegs),
        height_px=height_px,
        width_px=width_px,
        source_height_px=resizer.source_size[0],
        source_width_px=resizer.source_size[1],
        source_sha256=sha256,
        num_frames=video.num_frames,
        num_frames_claimed=video.num_frames_claimed,
        num_bad_packets=video.num_bad_packets,
        fps=video.fps,
        duration_seconds=video.duration_seconds or (video.num_frames / video.fps if video.fps else 0.0),
        frame_indices=picked.frame_indices,
        decode_road=video.road,
    )


class _Resizer:
    """Makes the planes of every frame of a video alike: the video's first frame sets the size and the turn."""

    def __init__(self, short_side_px: int) -> None:
        self._short_side_px = short_side_px
        self._reformatter = VideoReformatter()
        self._quarter_turns = 0
        self._size = (0, 0)
        self.source_size = (0, 0)

    def __call__(self, frame: av.VideoFrame, stream: VideoStream, index: int) -> Planes:
        if index == 0:
            self.source_size = (frame.height, frame.width)
            aspect = stream.sample_aspect_ratio or Fraction(1)
            self._size = stored_size(frame.height, frame.width, aspect, self._short_side_px)
            self._quarter_turns = round(frame.rotation / 90) % 4
        return to_planes(frame, self._reformatter, *self._size, self._quarter_turns)


def pick_frames(
    source: str | Path | bytes,
    clip: ClipConfig,
    limits: DecodeLimits,
    keep: Keep[KeptT],
    before_decode: Callable[[int], None] | None = None,
) -> Picked[KeptT]:
    """Returns the frames of the sampling rule.

    Args:
        source: The file's path, or the file's bytes.
        clip: How many frames are wanted, and whether packets that they do not need may be left out.
        limits: Frames and pixels that a video may have.
        keep: What to keep of a frame, given its index; called for frame 0 and for every frame that may be wanted, and
            once more from frame 0 on where a road proves wrong.
        before_decode: See `read_clip`.

    Raises:
        VideoError: The video gives no clip.
    """

    def choose(num_frames_available: int) -> tuple[int, ...]:
        return frame_indices(num_frames_available, clip.num_frames)

    with open_source(source) as file, translated_errors():
        decoded = Decoder(limits, choose, keep, before_decode).decode(file, may_skip=clip.decode == "auto")
    indices = choose(decoded.num_frames)
    return Picked(tuple(decoded.kept[index] for index in indices), indices, decoded)
