"""Decodes chosen frames of a video on one of two decode paths: all frames, or only the packets that the choice needs.

The packets' headers say which packets are needed (`h264.py`, `mpeg4.py`). This is done only for the combinations of
container and codec that were proved equal to a full decode; any doubt, before or while decoding, leads to the full
decode (`NeedsFullDecode`). So both paths give the same frames. Damage in packets that are never decoded goes unseen.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Generic, Literal, NamedTuple, TypeVar

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from configs.pack import DecodeLimits
from packer.video import h264, mpeg4
from packer.video.clock import NO_TIMES, Clock, FrameTimes
from packer.video.container import (
    VideoError,
    check_num_frames,
    check_pixels,
    choose_stream,
    is_picture,
    open_container,
    start_seconds,
    video_stream,
)
from packer.video.filters import Cropper
from packer.video.headers import EVERY_TRACK, Header, read_header, track_key
from packer.video.needed import decode_needed
from packer.video.packets import NeedsFullDecode, Packet, PacketPlan, Picture, Reader
from packer.video.planes import PixelShape

KeptT = TypeVar("KeptT")
Keep = Callable[[av.VideoFrame, PixelShape, int], KeptT]
"""Returns what to keep of a frame, given its index; called in display order, for frame 0 and all that may be wanted."""
Choose = Callable[[FrameTimes], Sequence[int]]
"""Returns the wanted frames' indices, given when each frame is shown."""

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_H264_TAGS = {(_MP4, "h264"): "avc1", ("matroska,webm", "h264"): "\0\0\0\0"}
_MAX_CONCEALED_SHARE = 0.75
"""A video with a larger share of damaged frames is rejected: an undeclared encryption damages all, a bad spot 0.1."""
_WHOLE_SHARE = 0.9
"""Whole files lack a frame or three of those that they claim; one cut in its middle lacks half."""
_PACKET_BYTES = 1000  # about what a packet takes besides its data
_HELD_BYTES = 64 * 2**20  # 60 s of 1080p; the packets of a longer video are read twice instead of being held


@dataclass
class Decoded(Generic[KeptT]):
    """What one decode of a video gave."""

    decode_path: Literal["full", "needed"]
    """full: every frame was decoded; needed: only those that the wanted ones depend on."""
    num_frames_claimed: int
    fps: float
    duration_seconds: float
    num_frames: int = 0
    num_bad_packets: int = 0
    num_concealed_frames: int = 0
    """Frames that the decoder marked as damaged: parts of them are guessed."""
    damage: tuple[str, ...] = ()
    """Codes of `damage_of`; empty for a whole video."""
    times: FrameTimes = NO_TIMES
    kept: dict[int, KeptT] = field(default_factory=dict)
    """By the index of the frame."""


class Counted(NamedTuple):
    """The frames that a container counts in what it shows."""

    num_frames: int
    """0: it does not count them."""
    num_empty: int = 0
    """Those that come to nothing though nothing is missing: empty pieces of an AVI, which leave the frame before on
    screen, and pictures that the edit list of an MP4 leaves out, as of a recording that was trimmed on a phone."""


@dataclass
class _Survey:
    """What is known about a video before it is decoded."""

    clock: Clock
    pictures: list[Picture] = field(default_factory=list)
    """What the packets show; empty if that is not certain."""
    packets: list[Packet] | None = field(default_factory=list)
    """The packets themselves; None if they are too many to be held."""
    num_hidden: int = 0
    """Packets whose frames are not shown: they lie before the part that an edit list of MP4 shows."""

    @property
    def num_packets(self) -> int:
        """How many packets hold a frame."""
        return len(self.clock.packets)

    def needed_times(self) -> FrameTimes:
        """Returns when the frames are shown, by the pictures."""
        positions = [picture.position for picture in self.pictures]
        # Only an AVI, which has no such times, can have more pictures than packets, or fewer.
        times = dict(zip(positions, self.clock.packet_times, strict=False))
        return self.clock.frame_times(list(map(times.get, range(len(positions) - positions.count(None)))))


@dataclass(frozen=True)
class Decoder(Generic[KeptT]):
    """Gets the frames of a video that one or several choices name, in one pass."""

    limits: DecodeLimits
    """Frames and pixels that the video may have."""
    choices: Sequence[Choose]
    """What each of them gives does not depend on the others."""
    keep: Keep[KeptT]
    """Called again, from frame 0 on, if the first decode was not the right one."""
    before_decode: Callable[[int], None] | None = None
    """Called once the packets are counted, with the number of pixels in a frame by the header."""

    def decode(self, file: BinaryIO, may_skip: bool) -> list[Decoded[KeptT] | VideoError]:
        """Returns, for each choice, what the decode gave that holds its frames, or why there is none.

        Choices share a `Decoded`. If `may_skip`, packets that no choice needs are skipped where that is exact.

        Raises:
            VideoError: The video gives no clip, whatever the choice.
        """
        header = read_header(file)
        try:
            with open_container(file) as container:
                index, is_used = choose_stream(container)
                if not is_used:
                    return self._decode(file, container, index, header, may_skip)
            with open_container(file) as container:
                return self._decode(file, container, index, header, may_skip)
        except VideoError as error:
            if header.encrypted and error.reason == "not_a_video":
                raise _encrypted() from error  # FFmpeg without a key does not even open some of them
            raise

    def _decode(
        self, file: BinaryIO, container: InputContainer, index: int, header: Header, may_skip: bool
    ) -> list[Decoded[KeptT] | VideoError]:
        stream = video_stream(container, index, self.limits)
        if header.encrypted & {track_key(container, stream), EVERY_TRACK}:
            raise _encrypted()
        survey = _survey(container, stream, self.limits, may_skip)
        if not survey.num_packets:
            raise _no_frame()
        if self.before_decode is not None:
            self.before_decode(stream.codec_context.width * stream.codec_context.height)
        cropper = Cropper(header.crops.get(track_key(container, stream)))
        needed, succeeded = self._needed(file, container, stream, survey, cropper)
        outcomes: list[Decoded[KeptT] | VideoError] = [needed] * len(self.choices)
        left = [number for number in range(len(self.choices)) if number not in succeeded]
        counted = _counted(container, stream, survey)
        ends_early = survey.clock.ends_early(container, stream)
        if succeeded:
            _complete(needed, survey.clock, header, counted, ends_early)
        if left:
            full: Decoded[KeptT] | VideoError
            try:
                full = self._full(file, index, survey, cropper, [self.choices[number] for number in left])
                _complete(full, survey.clock, header, counted, ends_early)
            except VideoError as error:
                if not succeeded:
                    raise
                full = error
            for number in left:
                outcomes[number] = full
        return outcomes

    def _needed(
        self, file: BinaryIO, container: InputContainer, stream: VideoStream, survey: _Survey, cropper: Cropper
    ) -> tuple[Decoded[KeptT], set[int]]:
        """Decodes the needed packets; returns the numbers of the choices that this was right for, too."""
        decoded: Decoded[KeptT] = _metadata("needed", container, stream)
        if not survey.pictures:
            return decoded, set()
        decoded.times = survey.needed_times()
        decoded.num_frames = len(decoded.times.ticks)

        unused = [stream] if survey.packets is not None else []

        @contextmanager
        def packets() -> Iterator[Iterable[Packet]]:
            if survey.packets is not None:
                yield survey.packets
                return
            with open_container(file) as again:
                again_stream = video_stream(again, stream.index, self.limits)
                unused[:] = [again_stream]
                yield _packets(again.demux(again_stream), again_stream)

        @contextmanager
        def fresh_stream() -> Iterator[VideoStream]:
            if unused:
                yield unused.pop()
                return
            place = file.tell()  # another container may be reading the file
            with open_container(file) as another:
                another_stream = video_stream(another, stream.index, self.limits)
                file.seek(place)
                yield another_stream

        def use(frame: av.VideoFrame, stream: VideoStream, index: int) -> None:
            check_pixels(frame.width, frame.height, self.limits)
            decoded.kept[index] = self.keep(cropper(frame), stream, index)

        wanted = [tuple({0, *choose(decoded.times)}) for choose in self.choices]
        return decoded, decode_needed(PacketPlan(survey.pictures), wanted, packets, fresh_stream, use)

    def _full(
        self, file: BinaryIO, index: int, survey: _Survey, cropper: Cropper, choices: Sequence[Choose]
    ) -> Decoded[KeptT]:
        # Real files have as many frames as packets, or one fewer (DivX packed bitstreams). The frames of both guesses
        # are kept, all others are dropped at once; only other frames than these cost a second decode.
        expected = [survey.clock.expected_times(max(1, survey.num_packets - fewer)) for fewer in (0, 1)]
        guessed = {0}.union(*(choose(times) for times in expected for choose in choices))
        decoded = self._all(file, index, guessed, survey.clock, cropper)
        if not decoded.num_frames:
            raise _no_frame()
        chosen = {0}.union(*(choose(decoded.times) for choose in choices))
        return decoded if decoded.kept.keys() >= chosen else self._all(file, index, chosen, survey.clock, cropper)

    def _all(self, file: BinaryIO, index: int, wanted: set[int], clock: Clock, cropper: Cropper) -> Decoded[KeptT]:
        own_times: list[int | None] = []
        with open_container(file) as container:
            stream = video_stream(container, index, self.limits)
            decoded: Decoded[KeptT] = _metadata("full", container, stream)
            for frame in _all_frames(container, stream, decoded):
                check_pixels(frame.width, frame.height, self.limits)
                if decoded.num_frames in wanted:
                    decoded.kept[decoded.num_frames] = self.keep(cropper(frame), stream, decoded.num_frames)
                own_times.append(frame.pts)
                decoded.num_frames += 1
                decoded.num_concealed_frames += frame.is_corrupt
                check_num_frames(decoded.num_frames, self.limits)
            if is_picture(container, decoded.num_frames):
                raise VideoError("not_a_video", "the file is a picture")
        decoded.times = clock.frame_times(own_times)
        return decoded


def _no_frame() -> VideoError:
    return VideoError("undecodable", "not one frame of the video can be decoded")


def _encrypted() -> VideoError:
    return VideoError("encrypted", "the video is encrypted: decrypt it first")


def _counted(container: InputContainer, stream: VideoStream, survey: _Survey) -> Counted:
    num_frames = stream.frames
    if container.format.name == _MP4:  # its index lacks what lies outside the edit list, but for the pictures before it
        num_frames = min(num_frames, len(stream.index_entries))
    return Counted(num_frames, survey.num_hidden + max(0, survey.clock.num_due - survey.num_packets))


def _complete(decoded: Decoded[KeptT], clock: Clock, header: Header, counted: Counted, ends_early: bool) -> None:
    """Sets what the whole decode says about the video.

    Raises:
        VideoError: Too much of the video is damaged.
    """
    clock.correct(decoded)
    decoded.damage = damage_of(decoded, header, counted, ends_early)
    if decoded.num_concealed_frames > _MAX_CONCEALED_SHARE * decoded.num_frames:
        raise VideoError(
            "damaged",
            f"{decoded.num_concealed_frames} of the video's {decoded.num_frames} frames are damaged: it was cut, "
            "overwritten or encrypted",
        )


def damage_of(decoded: Decoded[KeptT], header: Header, counted: Counted, ends_early: bool) -> tuple[str, ...]:
    """Returns what is wrong with a video that was decoded, as stable codes.

    Args:
        decoded: The video.
        header: What its container says.
        counted: The frames that the container counts.
        ends_early: Its last frame lies far before the end that the container states.
    """
    num_come = decoded.num_frames + counted.num_empty
    has_all = num_come >= counted.num_frames > 0  # then the file lacks its index or padding alone
    found = {
        "bad_packets": decoded.num_bad_packets > 0,
        "concealed_frames": decoded.num_concealed_frames > 0,
        "missing_frames": num_come < _WHOLE_SHARE * counted.num_frames,
        "cut_off": (header.is_cut_off and not has_all) or ends_early,
        "goes_on_in_another_track": header.has_successive_tracks,
    }
    return tuple(code for code, is_found in found.items() if is_found)


def _survey(container: InputContainer, stream: VideoStream, limits: DecodeLimits, may_skip: bool) -> _Survey:
    survey = _Survey(
        Clock(stream.time_base, container.format.name, start_seconds(container, stream), stream.average_rate)
    )
    times = survey.clock.packets

    def counted() -> Iterator[Packet]:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                if not times and packet.has_sidedata("encryption_info"):
                    raise _encrypted()
                times.append((packet.pts, packet.dts, packet.duration))
                if len(times) > limits.max_frames:
                    check_num_frames(len(times), limits)
            elif packet.size:
                survey.num_hidden += 1
            yield packet

    raw = counted()
    try:
        try:
            if may_skip:
                _read_pictures(survey, container, stream, raw)
        except NeedsFullDecode:
            survey.packets = None
        for _ in raw:
            pass
    except av.error.MemoryError:
        raise
    except av.FFmpegError:
        survey.pictures = []  # a full decode meets the same damage, and counts it
    return survey


def _read_pictures(survey: _Survey, container: InputContainer, stream: VideoStream, raw: Iterable[Packet]) -> None:
    reader = _reader(container, stream)
    num_bytes = 0
    for packet in _packets(raw, stream):
        if packet.is_discard or packet.is_corrupt or any(True for _ in packet.iter_sidedata()):
            raise NeedsFullDecode("a packet is damaged, or not to be shown, or changes the stream")
        reader.read(packet)
        num_bytes += packet.size + _PACKET_BYTES
        if num_bytes > _HELD_BYTES:
            survey.packets = None
        elif survey.packets is not None:
            survey.packets.append(packet)
    survey.pictures = reader.pictures()


def _reader(container: InputContainer, stream: VideoStream) -> Reader:
    context = stream.codec_context
    kind = container.format.name, context.name
    if kind in _H264_TAGS and context.codec_tag == _H264_TAGS[kind]:
        return h264.H264Reader(bytes(context.extradata or b""))
    if kind == ("avi", "mpeg4"):
        return mpeg4.Mpeg4Reader(bytes(context.extradata or b""))
    raise NeedsFullDecode("this kind of video was not proved against a full decode")


def _packets(raw: Iterable[Packet], stream: VideoStream) -> Iterator[Packet]:
    packets = (packet for packet in raw if packet.size)
    return mpeg4.unpacked(packets, stream) if stream.codec_context.name == "mpeg4" else packets


def _all_frames(container: InputContainer, stream: VideoStream, decoded: Decoded[KeptT]) -> Iterator[av.VideoFrame]:
    packets = container.demux(stream)
    ended = False
    while not ended:
        try:
            packet = next((packet for packet in packets if packet.size), None)
            ended = packet is None
            yield from stream.decode(packet)
        except av.error.EOFError:
            return
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            # Skip the damage, as the ffmpeg program does: one bad packet does not cost the video.
            decoded.num_bad_packets += 1


def _metadata(decode_path: Literal["full", "needed"], container: InputContainer, stream: VideoStream) -> Decoded[KeptT]:
    return Decoded(decode_path, stream.frames, float(stream.average_rate or 0), _duration_seconds(container, stream))


def _duration_seconds(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0
