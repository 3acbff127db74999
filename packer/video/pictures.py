"""Decodes chosen frames of a folder of pictures, on the same two decode paths as those of a video.

The needed path reads the chosen pictures alone. If one of them is damaged, all are decoded: those that cannot be are
skipped and counted, like the bad packets of a video. So both paths give the same frames unless damage goes unseen.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic

import av
import numpy as np
from PIL import Image, ImageOps

from configs.pack import DecodeLimits
from packer.video.clock import FrameTimes
from packer.video.container import VideoError, check_num_frames, check_pixels
from packer.video.decode import Choose, Decoded, Keep, KeptT, damage_of
from packer.video.frame_folder import FrameFolder
from packer.video.headers import Header

_FORMATS = ("JPEG", "PNG")
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""What Pillow raises for a damaged picture."""


@dataclass(frozen=True)
class SquarePixels:
    """What is known of the pixels of a picture: width and height are equal."""

    sample_aspect_ratio: Fraction | None = Fraction(1)


@dataclass(frozen=True)
class PictureDecoder(Generic[KeptT]):
    """Gets the chosen frames of a folder of pictures; its fields are those of `Decoder`."""

    limits: DecodeLimits
    choose: Choose
    keep: Keep[KeptT]
    before_decode: Callable[[int], None] | None = None

    def decode(self, folder: FrameFolder, may_skip: bool) -> Decoded[KeptT]:
        """Returns the chosen frames; if `may_skip`, pictures that are not chosen are not read.

        Raises:
            VideoError: The folder gives no clip.
            OSError: A picture cannot be read.
        """
        check_num_frames(len(folder.files), self.limits)
        begin = _once(self.before_decode)
        decoded = self._needed_or_none(folder, begin) if may_skip else None
        decoded = decoded or self._full(folder, begin)
        decoded.num_frames_claimed = folder.num_expected
        decoded.damage = damage_of(decoded, Header(), ends_early=False)
        return decoded

    def _needed_or_none(self, folder: FrameFolder, begin: Callable[[int], None]) -> Decoded[KeptT] | None:
        times = frame_times(folder.numbers)
        decoded: Decoded[KeptT] = Decoded("needed", 0, 0.0, 0.0, len(folder.files), times=times)
        wanted = sorted({0, *self.choose(times.ticks)})
        for index, data in zip(wanted, folder.read(wanted), strict=True):
            frame = picture_frame(data, self.limits, begin)
            if frame is None:
                return None
            decoded.kept[index] = self.keep(frame, SquarePixels(), index)
        return decoded

    def _full(self, folder: FrameFolder, begin: Callable[[int], None]) -> Decoded[KeptT]:
        pictures = folder.read(range(len(folder.files)))
        whole = [index for index, data in enumerate(pictures) if picture_frame(data, self.limits, begin) is not None]
        decoded = self._needed_or_none(folder.only(whole), begin) if whole else None
        if decoded is None:
            raise VideoError("undecodable", "not one picture of the folder can be decoded")
        decoded.decode_path = "full"
        decoded.num_bad_packets = len(folder.files) - len(whole)
        return decoded


def _once(call: Callable[[int], None] | None) -> Callable[[int], None]:
    """Returns a function that passes its first call on, and no other."""
    waiting = [call] if call is not None else []

    def first(num_pixels: int) -> None:
        if waiting:
            waiting.pop()(num_pixels)

    return first


def frame_times(numbers: Sequence[int]) -> FrameTimes:
    """Returns when the frames of a folder are shown: their numbers are the only clock there is."""
    has_clock = numbers[0] < numbers[-1]
    return FrameTimes(numbers, True) if has_clock else FrameTimes(range(len(numbers)), False)


def picture_frame(data: bytes, limits: DecodeLimits, begin: Callable[[int], None]) -> av.VideoFrame | None:
    """Returns a picture as a frame of RGB, as a viewer shows it; None if it is damaged, or neither JPEG nor PNG.

    Args:
        data: The file.
        limits: Pixels that the picture may have.
        begin: Called with the number of pixels once the header has been read.

    Raises:
        VideoError: The picture is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is odd
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                check_pixels(picture.width, picture.height, limits)
                begin(picture.width * picture.height)
                return av.VideoFrame.from_ndarray(_rgb(picture), format="rgb24")
    except VideoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoError(
            "too_large", f"a picture has more than {limits.max_pixels} pixels (limits.max_pixels)"
        ) from error
    except _DAMAGE:
        return None


def _rgb(picture: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255 instead of scaling them
        upright = Image.fromarray((np.asarray(upright).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    return np.ascontiguousarray(upright.convert("RGB"))
