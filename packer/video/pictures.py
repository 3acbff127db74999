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
from packer.video.decode import Choose, Counted, Decoded, Keep, KeptT, damage_of
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
    choices: Sequence[Choose]
    keep: Keep[KeptT]
    before_decode: Callable[[int], None] | None = None

    def decode(self, folder: FrameFolder, may_skip: bool) -> list[Decoded[KeptT] | VideoError]:
        """Returns, for each choice, what the decode gave that holds its frames, or why there is none.

        Choices share a `Decoded`. If `may_skip`, pictures that no choice needs are not read.

        Raises:
            VideoError: The folder gives no clip, whatever the choice.
            OSError: A picture cannot be read.
        """
        check_num_frames(len(folder.files), self.limits)
        begin = _once(self.before_decode)
        needed, succeeded = self._needed(folder, begin, self.choices if may_skip else ())
        outcomes: list[Decoded[KeptT] | VideoError] = [needed] * len(self.choices)
        left = [number for number in range(len(self.choices)) if number not in succeeded]
        complete: list[Decoded[KeptT]] = [needed]
        if left:
            full: Decoded[KeptT] | VideoError
            try:
                full = self._full(folder, begin, [self.choices[number] for number in left])
                complete.append(full)
            except VideoError as error:
                if not succeeded:
                    raise
                full = error
            for number in left:
                outcomes[number] = full
        for decoded in complete:
            decoded.num_frames_claimed = folder.num_expected
            decoded.damage = damage_of(decoded, Header(), Counted(folder.num_expected), ends_early=False)
        return outcomes

    def _needed(
        self, folder: FrameFolder, begin: Callable[[int], None], choices: Sequence[Choose]
    ) -> tuple[Decoded[KeptT], set[int]]:
        """Decodes the chosen pictures; returns the numbers of the choices none of whose pictures is damaged, too."""
        times = frame_times(folder.numbers)
        decoded: Decoded[KeptT] = Decoded("needed", 0, 0.0, 0.0, len(folder.files), times=times)
        wanted = [{0, *choose(times)} for choose in choices]
        indices = sorted(set().union(*wanted))
        damaged: set[int] = set()
        for index, data in zip(indices, folder.read(indices), strict=True):
            frame = self._frame_or_none(data, begin)
            if frame is not None:
                decoded.kept[index] = self.keep(frame, SquarePixels(), index)
                continue
            damaged.add(index)
            if index == 0 or len(choices) == 1:
                return decoded, set()
        return decoded, {number for number, needs in enumerate(wanted) if damaged.isdisjoint(needs)}

    def _frame_or_none(self, data: bytes, begin: Callable[[int], None]) -> av.VideoFrame | None:
        try:
            return picture_frame(data, self.limits, begin)
        except VideoError:  # too large: only the choices that need it fail, in the full decode
            return None

    def _full(self, folder: FrameFolder, begin: Callable[[int], None], choices: Sequence[Choose]) -> Decoded[KeptT]:
        pictures = folder.read(range(len(folder.files)))
        whole = [index for index, data in enumerate(pictures) if picture_frame(data, self.limits, begin) is not None]
        decoded, succeeded = self._needed(folder.only(whole), begin, choices) if whole else (None, set())
        if decoded is None or len(succeeded) < len(choices):
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
