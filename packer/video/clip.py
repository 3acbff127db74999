"""Turns one video into one clip: T equally spaced frames, exact, as JPEGs.

Packing and serving both call `read_clip`, so both sample, turn, shrink and compress a video in the same way. The number
of frames is what a full decode gives, never what the container states: all our genuine HMDB51 clips state a wrong one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Literal

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clock import FrameTimes
from packer.video.container import VideoError, kept_still, open_source, reachable, source_sha256, translated_errors
from packer.video.decode import Choose, Decoded, Decoder, Keep, KeptT
from packer.video.frame_folder import FrameFolder
from packer.video.jpeg import encode, frame_size
from packer.video.planes import Resizer, common_size
from packer.video.sampling import frame_indices, time_indices


@dataclass(frozen=True)
class Clip:
    """T frames of one video, and the video's metadata."""

    jpegs: tuple[bytes, ...]
    """The frames in display order, all of one size."""
    height_px: int
    width_px: int
    source_height_px: int
    """Height of the first frame as coded: before rotation, squaring of the pixels and shrinking."""
    source_width_px: int
    num_source_sizes: int
    """How many sizes the clip's frames had in the video; if several, the clip has the largest size of the commonest
    shape, and frames of another shape stand between black bars."""
    source_sha256: str
    """Digest of the video's bytes; of a folder of pictures, see `FrameFolder.sha256`."""
    is_colour_approximate: bool
    """The video states a colour matrix that FFmpeg cannot convert (YCgCo, ICtCp, constant luminance ...): its frames
    were read with BT.709 or BT.2020, so their colours may be off."""
    num_frames: int
    """Frames that a full decode gives."""
    num_frames_claimed: int
    """Frames that the container states; 0 if it states none. Of a folder of pictures: how many there would be without
    gaps in their numbers."""
    num_bad_packets: int
    """Packets, or pictures of a folder, that could not be decoded and were skipped; 0 for an undamaged video."""
    num_concealed_frames: int
    """Frames that the decoder marked as damaged, of those that were decoded; 0 for an undamaged video."""
    damage: tuple[str, ...]
    """What is wrong with the file: bad_packets, concealed_frames, missing_frames (far fewer than claimed), cut_off (it
    ends before its header says), goes_on_in_another_track; empty for an undamaged video."""
    fps: float
    """Mean frames per second as the container states them, or as the frames' own times have them if the stated rate
    cannot be true; 0 if neither is known."""
    duration_seconds: float
    frame_indices: tuple[int, ...]
    """Which of the `num_frames` frames the clip holds."""
    decode_road: str
    """The decode path: `full` if every frame was decoded, `needed` if only those that the clip needs."""
    sampled_by: Literal["index", "time", "rate"] = "index"
    """index: by `clip.sampling` frames; time: by `clip.sampling` time; rate: as time, but the frames lack times that
    rise, so they count as equally spaced. A sample's json leaves out `index`."""
    start_seconds: float | None = None
    """Where the clip's segment begins, as the label says, or as its first frame says if it counts frames; None: the
    clip is of the whole video."""
    end_seconds: float | None = None
    """Where the segment ends, before which its last frame is shown; None: where the video ends."""
    num_segment_frames: int = 0
    """Frames of the video that lie in the segment; 0: the clip is of the whole video."""
    frame_times_seconds: tuple[float, ...] = ()
    """When each frame of the clip is shown, from the start of the file; empty: the clip is of the whole video, or the
    video has neither times nor a rate."""


@dataclass(frozen=True)
class Picked(Generic[KeptT]):
    """The frames of one video that the sampling rule picks, and the video's metadata."""

    frames: tuple[KeptT, ...]
    frame_indices: tuple[int, ...]
    video: Decoded[KeptT]


def read_clip(
    source: str | Path | bytes,
    clip: ClipConfig,
    limits: DecodeLimits,
    before_decode: Callable[[int], None] | None = None,
) -> Clip:
    """Returns the clip of one video, given as a path, an address or the file's bytes; all give the same clip.

    A folder of numbered pictures (a `Path` to a folder, or a text that ends with /) is a video too.

    Args:
        source: The video.
        clip: Number, size and quality of the frames.
        limits: Frames and pixels that a video may have.
        before_decode: Called once, with the number of pixels in a frame by the header, after header and packets have
            been read and before any frame is decoded.

    Raises:
        VideoError: The video gives no clip.
        OSError: The video's storage fails.
    """
    resizer = Resizer(clip.short_side_px)
    with reachable(source) as here, kept_still(here):
        sha256 = source_sha256(here)
        picked = pick_frames(here, clip, limits, resizer, before_decode)
        sizes = [resizer.sizes[index] for index in picked.frame_indices]
        if (size := common_size(sizes)) != resizer.reference_size:  # known only now; such videos are rare
            resizer = Resizer(clip.short_side_px, size)
            picked = pick_frames(here, clip, limits, resizer)
    with translated_errors():
        jpegs = [encode(planes, clip.jpeg_quality) for planes in picked.frames]
    return make_clip(clip, picked, jpegs, [resizer.sizes[0], *sizes], resizer.is_colour_approximate, sha256)


def make_clip(
    clip: ClipConfig,
    picked: "Picked[Any]",
    jpegs: Sequence[bytes],
    sizes: Sequence[tuple[int, int]],
    is_colour_approximate: bool,
    source_sha256: str,
) -> Clip:
    """Returns a clip of the whole video from its parts.

    Args:
        clip: What a clip is.
        picked: Which frames the clip holds, and what was learnt of the video.
        jpegs: The frames.
        sizes: Height and width, as decoded, of frame 0 and then of each frame of the clip.
        is_colour_approximate: As in `Clip`.
        source_sha256: As in `Clip`.
    """
    video = picked.video
    height_px, width_px = frame_size(jpegs[:1])
    return Clip(
        jpegs=tuple(jpegs),
        height_px=height_px,
        width_px=width_px,
        source_height_px=sizes[0][0],
        source_width_px=sizes[0][1],
        num_source_sizes=len(set(sizes[1:])),
        source_sha256=source_sha256,
        is_colour_approximate=is_colour_approximate,
        num_frames=video.num_frames,
        num_frames_claimed=video.num_frames_claimed,
        num_bad_packets=video.num_bad_packets,
        num_concealed_frames=video.num_concealed_frames,
        damage=video.damage,
        fps=video.fps,
        duration_seconds=duration_of(video),
        frame_indices=picked.frame_indices,
        decode_road=video.decode_path,
        sampled_by=_sampled_by(clip, video),
    )


def duration_of(video: Decoded[Any]) -> float:
    """Returns how long a video lasts, in seconds; 0 if that is not known."""
    return video.duration_seconds or (video.num_frames / video.fps if video.fps else 0.0)


def pick_frames(
    source: str | Path | bytes | FrameFolder,
    clip: ClipConfig,
    limits: DecodeLimits,
    keep: Keep[KeptT],
    before_decode: Callable[[int], None] | None = None,
) -> Picked[KeptT]:
    """Returns the frames that the sampling rule picks.

    Args:
        source: The file's path, the file's bytes, or a folder of pictures.
        clip: How many frames are wanted, and whether packets that they do not need may be skipped.
        limits: Frames and pixels that a video may have.
        keep: Returns what to keep of a frame, given its index; called for frame 0 and for every frame that may be
            wanted. If a decode path turns out wrong, it is called again from frame 0 on.
        before_decode: See `read_clip`.

    Raises:
        VideoError: The video gives no clip.
    """

    def choose(times: FrameTimes) -> tuple[int, ...]:
        return sampled(times, clip)

    [decoded] = decode_choices(source, clip, limits, [choose], keep, before_decode)
    if isinstance(decoded, VideoError):
        raise decoded
    indices = choose(decoded.times)
    return Picked(tuple(decoded.kept[index] for index in indices), indices, decoded)


def sampled(times: FrameTimes, clip: ClipConfig, within: range | None = None) -> tuple[int, ...]:
    """Returns the indices of a clip's frames by its sampling rule.

    Args:
        times: When the video's frames are shown.
        clip: The rule, and how many frames are wanted.
        within: Indices that the clip is made of, with step 1 and at least one; None: all of the video.
    """
    within = range(len(times.ticks)) if within is None else within
    if clip.sampling == "time":
        return time_indices(times.ticks, clip.num_frames, within)
    return tuple(within.start + index for index in frame_indices(len(within), clip.num_frames))


def decode_choices(
    source: str | Path | bytes | FrameFolder,
    clip: ClipConfig,
    limits: DecodeLimits,
    choices: Sequence[Choose],
    keep: Keep[KeptT],
    before_decode: Callable[[int], None] | None = None,
) -> list[Decoded[KeptT] | VideoError]:
    """Returns, for each choice of frames, what the decode gave that holds them, or why there is none.

    Args:
        source: See `pick_frames`.
        clip: Whether packets that no choice needs may be skipped.
        limits: Frames and pixels that a video may have.
        choices: They are decoded in one pass, and none depends on the others.
        keep: See `pick_frames`.
        before_decode: See `read_clip`.

    Raises:
        VideoError: The video gives no clip, whatever the choice.
    """
    may_skip = clip.decode == "auto"
    if isinstance(source, FrameFolder):
        from packer.video.pictures import PictureDecoder  # loads Pillow, which no video needs

        with translated_errors():
            return PictureDecoder(limits, choices, keep, before_decode).decode(source, may_skip)
    with open_source(source) as file, translated_errors():
        return Decoder(limits, choices, keep, before_decode).decode(file, may_skip)


def _sampled_by(clip: ClipConfig, video: Decoded[Any]) -> Literal["index", "time", "rate"]:
    if clip.sampling == "frames":
        return "index"
    return "time" if video.times.are_own else "rate"


def library_versions() -> dict[str, str]:
    """Returns the versions of this package and of the libraries that decide the bytes."""
    return {name: version(name) for name in ("clipstream", "av", "simplejpeg")}
