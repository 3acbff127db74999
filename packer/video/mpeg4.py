"""Reads from MPEG-4 part 2 headers which frame each packet holds (DivX and XviD in AVI: HMDB51, UCF101).

AVI's timestamps are in decoding order, so the display order comes from the kinds of the pictures (VOPs): an I or P is
shown once the next I or P has been decoded, a B at once. DivX's "packed" streams have two VOPs in one packet and an
empty packet later; FFmpeg's own filter separates them first. Refused: interlaced and non-rectangular video, headers
that change, B-VOPs that lack a reference or whose times contradict the order (FFmpeg drops those).

Source: ISO/IEC 14496-2, 6.2.3 (VOL), 6.2.4 (GOV), 6.2.5 (VOP); order of output: FFmpeg's h263dec.c, mpeg4videodec.c.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from av.bitstream import BitStreamFilterContext
from av.video.stream import VideoStream

from packer.video.packets import Bits, NeedsFullDecode, Packet, Picture

_START = b"\0\0\1"
_VOP, _USER_DATA, _GOV, _SEQUENCE, _OBJECT = 0xB6, 0xB2, 0xB3, 0xB0, 0xB5
_I, _B = 0, 2
_DIVX_FILLER = b"\x7f"
_SIMPLE_KINDS = {1, 17}
_EXTENDED_ASPECT = 15
_MAX_EMPTY_BYTES = 19  # as in FFmpeg: a longer packet is no filler
_PACKED = re.compile(rb"DivX\d+(?:b|Build)\d+p")
_VOP_HEADER_BYTES = 16


def unpacked(packets: Iterable[Packet], stream: VideoStream) -> Iterator[Packet]:
    """Yields the packets with one VOP in each.

    Raises:
        NeedsFullDecode: FFmpeg's decoder might not separate them as its filter does.
    """
    bit_filter = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
    is_packed = bool(_PACKED.search(stream.codec_context.extradata or b""))
    has_second = False
    for packet in packets:
        data = bytes(packet)
        num_vops = data.count(_START + bytes([_VOP]))
        if num_vops > 1 and (num_vops > 2 or has_second or not is_packed):
            raise NeedsFullDecode("a packet holds several pictures and is not packed as DivX does it")
        if num_vops == 0 and has_second:
            raise NeedsFullDecode("a packed picture has no packet to take its place")
        has_second = num_vops == 2 or (has_second and len(data) > _MAX_EMPTY_BYTES)
        yield from bit_filter.filter(packet)


class _Header(NamedTuple):
    """The headers before the VOPs."""

    resolution: int
    """Ticks per second."""
    low_delay: bool
    layer: str
    """Everything else that decoding depends on."""
    user_data: tuple[bytes, ...]


class _Vop(NamedTuple):
    kind: int | None
    """None if nothing is coded."""
    has_time: bool


class Mpeg4Reader:
    """Reads the packets of an MPEG-4 stream, one VOP in each."""

    def __init__(self, extradata: bytes) -> None:
        """Takes the stream's extradata.

        Raises:
            NeedsFullDecode: The header does not say for certain what the video is.
        """
        self._header = _read_header(extradata)[0]
        self._seconds = self._seconds_before = 0
        self._time = self._gap = 0
        self._vops: list[_Vop] = []

    def read(self, packet: Packet) -> None:
        """Takes the next packet in decoding order.

        Raises:
            NeedsFullDecode: The packet may show other than one whole frame.
        """
        data = bytes(packet)
        start = data.find(_START + bytes([_VOP]))
        if start < 0:
            if data != _DIVX_FILLER or not self._vops:
                raise NeedsFullDecode("a packet holds no picture")
            self._vops.append(_Vop(None, False))
            return
        seconds = None
        if start:
            header, seconds = _read_header(data[:start])
            if header and self._vops and header != self._header:
                raise NeedsFullDecode("the headers change")
            self._header = header or self._header
        if seconds is not None:
            self._seconds = seconds
        if self._header is None:
            raise NeedsFullDecode("there is no header")
        kind = self._read_vop(Bits(data[start + 4 : start + 4 + _VOP_HEADER_BYTES]), self._header.resolution)
        self._vops.append(_Vop(kind, seconds is not None))

    def _read_vop(self, bits: Bits, resolution: int) -> int | None:
        kind = bits.take(2)
        num_seconds = 0
        while bits.take(1):
            num_seconds += 1
        is_marked = bits.take(1)
        ticks = bits.take(_num_ticks_bits(resolution))
        if not (is_marked and bits.take(1)):
            raise NeedsFullDecode("a picture's time is damaged")
        self._follow_time(kind, num_seconds, ticks, resolution)
        return kind if bits.take(1) else None

    def _follow_time(self, kind: int, num_seconds: int, ticks: int, resolution: int) -> None:
        if kind != _B:
            self._seconds_before, self._seconds = self._seconds, self._seconds + num_seconds
            time = self._seconds * resolution + ticks
            self._gap, self._time = time - self._time, time
            return
        time = (self._seconds_before + num_seconds) * resolution + ticks
        if not 0 < self._time - time < self._gap:
            raise NeedsFullDecode("a B picture's time is not between those of its references")

    def pictures(self) -> list[Picture]:
        """Returns what the packets show, in decoding order.

        Raises:
            NeedsFullDecode: The display order is not certain.
        """
        kinds = [vop.kind for vop in self._vops]
        if not kinds or kinds[0] != _I:
            raise NeedsFullDecode("the video does not begin with an I picture")
        if _B in kinds and self._header and self._header.low_delay:
            raise NeedsFullDecode("there are B pictures though the header denies it")
        if kinds[-1] is None and self._header and self._header.low_delay:
            raise NeedsFullDecode("the last picture is not coded: FFmpeg may show the one before again")
        shown: list[int] = []
        held = None
        for number, kind in enumerate(kinds):
            if kind == _B:
                if held is None or not shown:
                    raise NeedsFullDecode("a B picture lacks a reference")
                shown.append(number)
            elif kind is not None:
                shown += [] if held is None else [held]
                held = number
        shown += [] if held is None else [held]
        position_of = {number: position for position, number in enumerate(shown)}
        # If groups state their time, an I picture without it would leave the decoder at another second.
        only_timed = any(vop.has_time for vop in self._vops)
        return [
            Picture(position_of.get(number), vop.kind == _I and (vop.has_time or not only_timed), vop.kind != _B)
            for number, vop in enumerate(self._vops)
        ]


def _read_header(data: bytes) -> tuple[_Header | None, int | None]:
    """Returns the video object layer with its user data and a group's time in seconds, each None if missing."""
    before, *sections = data.split(_START)
    if before:
        raise NeedsFullDecode("a header is damaged")
    layer = seconds = None
    user_data = []
    for section in sections:
        code, body = section[0] if section else 0, section[1:]
        if 0x20 <= code <= 0x2F:
            layer = _read_layer(Bits(body))
        elif code == _USER_DATA:
            user_data.append(body.rstrip(b"p\0"))  # FFmpeg's filter blanks the p of "packed" in some of them
        elif code == _GOV:
            bits = Bits(body)
            hours, minutes, _ = bits.take(5), bits.take(6), bits.take(1)
            seconds = 3600 * hours + 60 * minutes + bits.take(6)
        elif code > 0x1F and code not in (_SEQUENCE, _OBJECT):
            raise NeedsFullDecode(f"a header has a section {code:#x}")
    return (_Header(*layer, tuple(user_data)) if layer else None), seconds


def _read_layer(bits: Bits) -> tuple[int, bool, str]:
    bits.take(1)
    is_simple = bits.take(8) in _SIMPLE_KINDS
    version = 1
    if bits.take(1):
        version = bits.take(4)
        bits.take(3)  # priority
    aspect = bits.take(4)
    if aspect == _EXTENDED_ASPECT:
        aspect += bits.take(16)
    low_delay = is_simple
    if bits.take(1):
        bits.take(2)  # chroma format
        low_delay = bool(bits.take(1))
        if bits.take(1):
            bits.take(79)  # the bit rate, which encoders state in some of the headers only
    start = bits.rest()
    if bits.take(2):
        raise NeedsFullDecode("the video is not rectangular")
    bits.take(1)
    resolution = bits.take(16)
    bits.take(1)
    if bits.take(1):
        bits.take(_num_ticks_bits(resolution))  # ticks of a frame
    bits.take(29)  # width and height, with a marker bit before, between and after them
    if bits.take(1):
        raise NeedsFullDecode("the video is interlaced")
    # The stuffing at the end, 0 and then ones, depends on what stood before.
    return resolution, low_delay, f"{version} {aspect} {start.rstrip('1')[:-1]}"


def _num_ticks_bits(resolution: int) -> int:
    return max(1, (resolution - 1).bit_length())
