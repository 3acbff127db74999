"""Opens videos that cannot be trusted.

FFmpeg gets an open file, never a name or an address, and may use the demuxers of real video containers only. Otherwise
it would take a text for a video (tty), and a text that lists other files would make it read those (concat, hls).
Whatever PyAV raises becomes a `VideoError`.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from configs.pack import DecodeLimits
from packer.storage.files import local_copy
from packer.storage.location import at, concerns_the_file, is_url
from packer.video.frame_folder import FrameFolder, is_frame_folder, open_frame_folder
from packer.video.headers import is_motion_jpeg

CONTAINERS = (
    "3gp,asf,av1,avi,dirac,dv,flv,gif,h261,h263,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,nuv,"
    "obu,ogg,rm,vc1,vvc,webm,wtv,yuv4mpegpipe,"
    "dhav,hxvs,ifv,luodat,mpjpeg"
)
"""The FFmpeg demuxers that may read a file: containers of one file, without references to others.

For recordings of cameras: dhav (Dahua), ifv (IFV recorders), luodat (.dat of recorders), hxvs (HX IP cameras), mpjpeg
(the saved stream of a network camera). Left out though cameras write them: mxg (Mobotix), which FFmpeg knows by the
file's name alone; nc, which it always ends with an error; iv8 and lvf, of which no file was at hand to try.
"""

_NEVER_THE_VIDEO = (
    Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
)
_REASONS_OF_A_CUT = frozenset({"not_a_video", "no_video_stream", "undecodable"})
_MAX_BOXES = 1000
_READ_BYTES = 1 << 16  # 32 KiB cost as much, 256 KiB 0.3 ms more per short video
_PYAV_ERRORS = (av.FFmpegError, ValueError, LookupError, AttributeError, EOFError, OverflowError, TypeError)


class VideoError(ValueError):
    """A video that gives no clip.

    Attributes:
        reason: A stable code: not_a_video, no_video_stream, encrypted, truncated, undecodable, damaged, unreadable,
            changed, too_large, bad_segment, timeout, out_of_memory or decoder_crash; and in a pack's lists also
            duplicate, contradiction, proxy and no_file.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        """Takes the code and one sentence, without paths, for the user."""
        super().__init__(reason, sentence)
        self.reason = reason

    def __str__(self) -> str:
        """Returns the sentence."""
        return str(self.args[1])


@contextmanager
def fetched(source: str | Path | bytes) -> Iterator[str | Path | bytes]:
    """Yields a video that can be read here: a temporary copy of one at an address, any other as it is.

    A copy, because every byte is read for the digest and some bytes are read three times.

    Raises:
        VideoError: The address holds nothing.
        OSError: The storage does not give it, after several tries.
    """
    if not (isinstance(source, str) and is_url(source)):
        yield source
        return
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(at(source)))
        except FileNotFoundError as error:
            raise _unreadable(error) from error
        yield path


@contextmanager
def reachable(source: str | Path | bytes) -> Iterator[str | Path | bytes | FrameFolder]:
    """Yields a video or a folder of pictures that can be read here: a video as `fetched` does, a folder once listed.

    Raises:
        VideoError: The file cannot be read or is empty, or the folder holds no numbered pictures.
        OSError: Its storage fails.
    """
    if isinstance(source, bytes) or not is_frame_folder(source):
        with fetched(source) as fetched_source:
            yield fetched_source
        return
    with translated_errors():
        folder = open_frame_folder(source)
    if folder is None:
        raise VideoError("not_a_video", "the folder holds no numbered pictures")
    yield folder


def source_sha256(source: str | Path | bytes | FrameFolder) -> str:
    """Returns the digest of a video, given as a path or as bytes, or of a folder of pictures.

    Raises:
        VideoError: It cannot be read, or is empty.
    """
    if isinstance(source, FrameFolder):
        with translated_errors():
            return source.sha256()
    with open_source(source) as file, translated_errors():
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def kept_still(source: str | Path | bytes | FrameFolder) -> Iterator[None]:
    """Guards the reading of a local file: its digest and its frames must be those of one file.

    Raises:
        VideoError: The file changed while the block ran, whatever the block made of it.
    """
    before = _stamp(source)
    try:
        yield
    finally:
        if _stamp(source) != before:
            raise VideoError("changed", "the file changed while it was read")


def _stamp(source: str | Path | bytes | FrameFolder) -> tuple[int, int] | None:
    if not isinstance(source, str | Path):
        return None
    with suppress(OSError, ValueError):
        status = os.stat(source)  # noqa: PTH116 - a tenth of what a Path costs
        return status.st_size, status.st_mtime_ns
    return None


@contextmanager
def open_source(source: str | Path | bytes) -> Iterator[io.BytesIO | io.FileIO]:
    """Yields the video as a file without a name, so that FFmpeg recognises a path and bytes alike, by content.

    Raises:
        VideoError: The file cannot be read or is empty. If the block raises one and the file is a cut-off MP4, the
            reason becomes `truncated`.
        OSError: Its storage fails.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else os.fdopen(os.open(source, os.O_RDONLY), "rb", 0)
    except ValueError as error:
        raise _unreadable(error) from error
    except OSError as error:
        if not concerns_the_file(error):
            raise
        raise _unreadable(error) from error
    with file:
        if not file.seek(0, io.SEEK_END):
            raise VideoError("not_a_video", "the file is empty")
        file.seek(0)
        try:
            yield file
        except VideoError as error:
            if error.reason in _REASONS_OF_A_CUT and _is_cut_mp4(file):
                sentence = "the file ends before its index does: it was not recorded or copied to its end"
                raise VideoError("truncated", sentence) from error
            raise


@contextmanager
def open_container(file: BinaryIO) -> Iterator[InputContainer]:
    """Yields the container in `file`.

    Raises:
        VideoError: The format is not one of `CONTAINERS`, or the header is damaged.
    """
    file.seek(0)
    is_jpeg = file.read(3) == b"\xff\xd8\xff"
    if is_jpeg and not is_motion_jpeg(file):
        raise VideoError("not_a_video", "the file is a picture")
    file.seek(0)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}
    with translated_errors("not_a_video", "no known video container, or its header is missing or damaged"):
        # Real HMDB51 clips have metadata that is not UTF-8: without "ignore" they cannot be opened.
        container = av.open(
            file,
            "r",
            # By itself FFmpeg takes JPEGs for pictures or for a video by the size of the first of them.
            format="mjpeg" if is_jpeg else None,
            options=options,
            metadata_errors="ignore",
            buffer_size=_READ_BYTES,
        )
    with container:
        yield container


def _is_cut_mp4(file: BinaryIO) -> bool:
    """Tells whether an MP4 has its data but lacks its index or a part of it (ISO/IEC 14496-12, 4.2)."""
    end = file.seek(0, io.SEEK_END)
    position, has_data = 0, False
    for _ in range(_MAX_BOXES):
        if position >= end:
            break
        file.seek(position)
        header = file.read(16)
        kind = header[4:8]
        size = int.from_bytes(header[:4], "big")
        size = int.from_bytes(header[8:], "big") if size == 1 else size
        if position == 0 and kind != b"ftyp":
            return False
        if kind in (b"moov", b"meta"):
            return position + size > end
        has_data |= kind == b"mdat"
        if size < 8:  # 0: the box goes on to the end of the file
            break
        position += size
    return has_data


def choose_stream(container: InputContainer) -> tuple[int, bool]:
    """Returns the index of the video stream that a clip is made of, and whether finding it used the container up.

    Pictures of covers, timed thumbnails, and streams that belong to another one never count. Of the rest, a stream of
    several frames goes before one of a single frame; then a stream that is flagged as default before one that is not;
    then, as in the ffmpeg program, the one of most pixels; then the first.

    Raises:
        VideoError: There is no video stream.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & _NEVER_THE_VIDEO]
    if not streams:
        raise VideoError("no_video_stream", "the file holds no video stream")
    if len(streams) == 1:
        return streams[0].index, False
    num_frames = {stream.index: stream.frames for stream in streams}
    is_used = not all(num_frames.values())
    if is_used:  # the header does not say; few files have several streams, so their packets may be counted
        num_frames = dict.fromkeys(num_frames, 0)
        with suppress(av.FFmpegError):  # damage is met again, and counted, while decoding
            for packet in container.demux(streams):
                num_frames[packet.stream.index] += bool(packet.size)
                if min(num_frames.values()) > 1:
                    break

    def rank(stream: VideoStream) -> tuple[bool, bool, bool, int]:
        context = stream.codec_context
        is_default = bool(stream.disposition & Disposition.default)
        num_pixels = context.width * context.height if context else 0
        return context is not None, num_frames[stream.index] > 1, is_default, num_pixels

    return max(streams, key=rank).index, is_used


def video_stream(container: InputContainer, index: int, limits: DecodeLimits) -> VideoStream:
    """Returns the stream that `choose_stream` chose, set to decode on one thread.

    Raises:
        VideoError: Its codec is unknown, or its frames are too large.
    """
    stream = next(stream for stream in container.streams.video if stream.index == index)
    context = stream.codec_context
    if context is None:
        raise VideoError("undecodable", "there is no decoder for the video's codec")
    check_pixels(context.width, context.height, limits)
    # Guards against a larger size later in the stream. Twice: a codec's blocks may reach beyond the frame.
    context.options = {"max_pixels": str(2 * limits.max_pixels)}
    # Without it FFmpeg leaves columns that the codec cuts off on the left, since their memory is then aligned.
    context.flags |= Flags.unaligned
    context.thread_count = 1  # one process per core decodes more videos per second than threads do
    return stream


def start_seconds(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Returns when the file starts on the clock of its streams, as players and the ffmpeg program take it.

    FFmpeg rounds it to microseconds; it is returned exactly if the start of a stream rounds to the same.
    """
    if container.start_time is None:
        return None
    if container.start_time == 0 == stream.start_time:  # nearly all files
        return Fraction(0)
    rounded = Fraction(container.start_time, av.time_base)
    for candidate in (stream, *container.streams):
        if candidate.start_time is not None and candidate.time_base:
            exact = Fraction(candidate.start_time * candidate.time_base)
            if abs(exact - rounded) < Fraction(1, av.time_base):
                return exact
    return rounded


def is_picture(container: InputContainer, num_frames: int) -> bool:
    """Tells whether a file is a picture, in a format that holds pictures as well as videos (GIF, AVIF, HEIC)."""
    brand = container.metadata.get("major_brand")
    return num_frames == 1 and (container.format.name == "gif" or brand in {"avif", "heic", "heix", "mif1"})


def check_num_frames(num_frames: int, limits: DecodeLimits) -> None:
    """Raises VideoError if a video has too many frames."""
    if num_frames > limits.max_frames:
        raise VideoError("too_large", f"the video has more than {limits.max_frames} frames (limits.max_frames)")


def check_pixels(width_px: int, height_px: int, limits: DecodeLimits) -> None:
    """Raises VideoError if a frame has too many pixels."""
    if width_px * height_px > limits.max_pixels:
        raise VideoError(
            "too_large",
            f"a frame has {width_px} x {height_px} pixels, more than {limits.max_pixels} (limits.max_pixels)",
        )


@contextmanager
def translated_errors(reason: str = "undecodable", sentence: str = "the video cannot be decoded") -> Iterator[None]:
    """Turns whatever PyAV raises into a VideoError; mutated files made it raise each of these.

    An OSError of the storage, which is no property of the video, passes.
    """
    try:
        yield
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError("out_of_memory", "decoding the video takes more memory than allowed") from error
    except _PYAV_ERRORS as error:
        raise VideoError(reason, f"{sentence}: {_plain(error)}") from error
    except OSError as error:
        if not concerns_the_file(error):
            raise
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> VideoError:
    return VideoError("unreadable", f"the file cannot be read: {_plain(error)}")


def _plain(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
