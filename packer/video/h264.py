"""Reads from H.264 headers which frame each packet holds.

Accepts only streams that leave no doubt: whole progressive frames, one per packet; one parameter set for the whole
stream; an IDR picture first; no missing frame (no gap in frame_num); a display order on which the pictures' own order
(POC) and the container's timestamps agree; and a stated max_num_reorder_frames. If that number is missing, FFmpeg
guesses it, and loses frames until the guess is right.

Source: ITU-T H.264 (08/2021), 7.3.2.1 (SPS), 7.3.3 (slice header), 8.2.1 (POC), E.1.1 (VUI).
"""

from bisect import bisect
from itertools import pairwise
from typing import NamedTuple

from packer.video.packets import Bits, NeedsFullDecode, Packet, Picture

_HEADER_BYTES = 32  # of a slice; the fields up to the POC take less
_SLICE, _IDR, _SEI, _SPS, _PPS, _DELIMITER, _FILLER = 1, 5, 6, 7, 8, 9, 12
_HIGH_PROFILES = {100, 110, 122, 244, 44}
_EXTENDED_ASPECT = 255
_MAX_COUNTER_BITS = 16


class _Sps(NamedTuple):
    frame_num_bits: int
    poc_lsb_bits: int
    """0 if display order is decoding order."""
    num_reorder_frames: int


class _Slice(NamedTuple):
    number: int
    """The packet's, from 0."""
    is_idr: bool
    is_reference: bool
    frame_num: int
    poc: int
    pts: int


class H264Reader:
    """Reads the packets of an H.264 stream in MP4's form (lengths before the units, avcC extradata)."""

    def __init__(self, extradata: bytes) -> None:
        """Takes the stream's extradata.

        Raises:
            NeedsFullDecode: The stream may hold other than whole progressive frames.
        """
        self._length_bytes, self._parameter_sets = _read_avcc(extradata)
        self._sps = _read_sps(next(unit for unit in self._parameter_sets if unit[0] & 31 == _SPS))
        for unit in self._parameter_sets:
            if unit[0] & 31 == _PPS:
                _check_pps(unit)
        self._slices: list[_Slice] = []
        self._poc_before = (0, 0)  # most and least significant part of the last reference picture's POC

    def read(self, packet: Packet) -> None:
        """Takes the next packet in decoding order.

        Raises:
            NeedsFullDecode: The packet may show other than one whole frame.
        """
        first = None
        data = memoryview(packet)
        start, length_bytes = 0, self._length_bytes
        while start < len(data):
            begin = start + length_bytes
            start = begin + int.from_bytes(data[start:begin], "big")
            if not begin < start <= len(data):
                raise NeedsFullDecode("a packet is not made of whole units")
            kind = data[begin] & 31
            if kind in (_SLICE, _IDR):
                if begin + 1 < start and data[begin + 1] & 128:  # first_mb_in_slice is 0
                    if first is not None:
                        raise NeedsFullDecode("a packet holds two pictures")
                    first = bytes(data[begin : min(start, begin + _HEADER_BYTES)])
            elif kind in (_SPS, _PPS):
                if bytes(data[begin:start]) not in self._parameter_sets:
                    raise NeedsFullDecode("a packet changes the parameters of the stream")
            elif kind not in (_SEI, _DELIMITER, _FILLER):
                raise NeedsFullDecode(f"a packet holds a unit of type {kind}")
        if first is None or packet.pts is None:
            raise NeedsFullDecode("a packet has no picture or no timestamp")
        self._slices.append(self._read_slice(first, packet.pts))

    def _read_slice(self, unit: bytes, pts: int) -> _Slice:
        is_idr, is_reference = unit[0] & 31 == _IDR, bool(unit[0] & 96)
        bits = Bits(_without_escapes(unit[1:]))
        bits.skip_golombs(3)  # first_mb_in_slice, slice_type, pic_parameter_set_id
        frame_num = bits.take(self._sps.frame_num_bits)
        if is_idr:
            bits.skip_golombs(1)  # idr_pic_id
        number = len(self._slices)
        poc = self._poc(bits.take(self._sps.poc_lsb_bits), is_idr, is_reference) if self._sps.poc_lsb_bits else number
        return _Slice(number, is_idr, is_reference, frame_num, poc, pts)

    def _poc(self, lsb: int, is_idr: bool, is_reference: bool) -> int:
        msb, lsb_before = (0, 0) if is_idr else self._poc_before
        period = 1 << self._sps.poc_lsb_bits
        if lsb_before - lsb >= period // 2:
            msb += period
        elif lsb - lsb_before > period // 2:
            msb -= period
        if is_reference:
            self._poc_before = msb, lsb
        return msb + lsb

    def pictures(self) -> list[Picture]:
        """Returns what the packets show, in decoding order.

        Raises:
            NeedsFullDecode: The display order is not certain, or a frame is missing.
        """
        self._check_frame_nums()
        starts = [slice_.number for slice_ in self._slices if slice_.is_idr]
        if not starts:
            raise NeedsFullDecode("there is no picture")
        shown = []
        for start, end in zip(starts, [*starts[1:], len(self._slices)], strict=True):
            period = self._slices[start:end]
            in_order = sorted(period, key=lambda slice_: slice_.poc)
            self._check_reordering(period, in_order)
            shown += in_order
        if any(before.pts >= after.pts for before, after in pairwise(shown)):
            raise NeedsFullDecode("the timestamps and the pictures' own order disagree")
        position_of = {slice_.number: position for position, slice_ in enumerate(shown)}
        return [Picture(position_of[slice_.number], slice_.is_idr, slice_.is_reference) for slice_ in self._slices]

    def _check_frame_nums(self) -> None:
        period = 1 << self._sps.frame_num_bits
        expected = None
        for slice_ in self._slices:
            if slice_.frame_num != (0 if slice_.is_idr else expected):
                raise NeedsFullDecode("a frame is missing, or the stream does not begin with an IDR picture")
            if slice_.is_reference:
                expected = (slice_.frame_num + 1) % period

    def _check_reordering(self, period: list[_Slice], in_order: list[_Slice]) -> None:
        seen: list[int] = []
        for slice_ in period:
            place = bisect(seen, slice_.poc)
            if len(seen) - place > self._sps.num_reorder_frames:
                raise NeedsFullDecode("frames are reordered further than the stream says")
            seen.insert(place, slice_.poc)
        if any(before.poc == after.poc for before, after in pairwise(in_order)):
            raise NeedsFullDecode("two pictures have one place in the order")


def _without_escapes(unit: bytes) -> bytes:
    return unit.replace(b"\0\0\3", b"\0\0")


def _read_avcc(extradata: bytes) -> tuple[int, frozenset[bytes]]:
    if len(extradata) < 7 or extradata[0] != 1 or extradata[5] & 31 != 1:
        raise NeedsFullDecode("the extradata are not of MP4's form, or hold several sequence parameter sets")
    units = []
    start, num_left = 6, 1
    while num_left:
        end = start + 2 + int.from_bytes(extradata[start : start + 2], "big")
        units.append(extradata[start + 2 : end])
        num_left -= 1
        if len(units) == 1 and end < len(extradata):
            num_left = extradata[end]
            end += 1
        if end > len(extradata):
            raise NeedsFullDecode("the extradata are cut off")
        start = end
    if [unit[:1] and unit[0] & 31 for unit in units] != [_SPS] + [_PPS] * (len(units) - 1) or len(units) < 2:
        raise NeedsFullDecode("the extradata hold other than parameter sets")
    return (extradata[4] & 3) + 1, frozenset(units)


def _check_pps(unit: bytes) -> None:
    bits = Bits(_without_escapes(unit[1:]))
    bits.golomb(), bits.golomb(), bits.take(1)  # the ids of the PPS and of its SPS, entropy_coding_mode_flag
    if bits.take(1):
        raise NeedsFullDecode("the fields of a frame have an order of their own")


def _read_sps(unit: bytes) -> _Sps:
    if len(unit) < 4:
        raise NeedsFullDecode("the sequence parameter set is cut off")
    profile = unit[1]
    bits = Bits(_without_escapes(unit[4:]))
    bits.golomb()  # seq_parameter_set_id
    if profile in _HIGH_PROFILES:
        _skip_chroma(bits)
    elif profile not in (66, 77, 88):
        raise NeedsFullDecode(f"the profile is {profile}")
    frame_num_bits = bits.golomb() + 4
    poc_type = bits.golomb()
    if poc_type == 1:
        raise NeedsFullDecode("the order of pictures is of type 1")
    poc_lsb_bits = bits.golomb() + 4 if poc_type == 0 else 0
    bits.golomb()  # max_num_ref_frames
    if bits.take(1):
        raise NeedsFullDecode("frames may be left out")
    bits.golomb(), bits.golomb()  # width and height in macroblocks
    if not bits.take(1):
        raise NeedsFullDecode("pictures may be fields")
    bits.take(1)  # direct_8x8_inference_flag
    if bits.take(1):
        for _ in range(4):
            bits.golomb()  # cropping
    if max(frame_num_bits, poc_lsb_bits) > _MAX_COUNTER_BITS:
        raise NeedsFullDecode("the sequence parameter set is damaged")
    return _Sps(frame_num_bits, poc_lsb_bits, _num_reorder_frames(bits) if bits.take(1) else 0)


def _skip_chroma(bits: Bits) -> None:
    if bits.golomb() == 3 and bits.take(1):
        raise NeedsFullDecode("the colour planes are coded apart")
    bits.golomb(), bits.golomb(), bits.take(1)  # bit depths, qpprime_y_zero_transform_bypass_flag
    if bits.take(1):
        raise NeedsFullDecode("there are scaling matrices")


def _num_reorder_frames(bits: Bits) -> int:
    if bits.take(1) and bits.take(8) == _EXTENDED_ASPECT:
        bits.take(32)
    if bits.take(1):
        bits.take(1)  # overscan
    if bits.take(1):
        bits.take(4)  # video_format, video_full_range_flag
        if bits.take(1):
            bits.take(24)  # colour
    if bits.take(1):
        bits.golomb(), bits.golomb()  # chroma location
    if bits.take(1):
        bits.take(65)  # timing
    num_hrds = 0
    for _ in ("NAL", "VCL"):
        if bits.take(1):
            _skip_hrd(bits)
            num_hrds += 1
    if num_hrds:
        bits.take(1)  # low_delay_hrd_flag
    bits.take(1)  # pic_struct_present_flag
    if not bits.take(1):
        return 0
    bits.take(1)
    for _ in range(4):
        bits.golomb()  # limits of bytes, bits and motion vectors
    return bits.golomb()


def _skip_hrd(bits: Bits) -> None:
    num_schedules = bits.golomb() + 1
    bits.take(8)
    for _ in range(num_schedules):
        bits.golomb(), bits.golomb(), bits.take(1)
    bits.take(20)
