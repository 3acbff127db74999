"""What a container's header says and PyAV does not hand on: encryption, cropping, and where the file should end.

Reads a few boxes of MP4 (ISO/IEC 14496-12), elements of Matroska (RFC 9559), packets of MPEG-TS (ISO/IEC 13818-1) and
objects of ASF. Nothing here decides whether a file is a video: what cannot be read is taken as not stated.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from packer.video.endings import is_cut_off

_MAX_ITEMS = 1000
"""Most boxes or elements that are read on one level."""
_MAX_INDEX_BYTES = 2**24
_TS_PACKET_BYTES = 188
_TS_END_BYTES = 2**20
"""What is read at each end of a transport stream: 1 ms, where a whole one of 10 MB takes 20 ms."""
_NUM_PIDS, _SYNC, _EXTENDED_ID = 2**13, 0x47, 0xFD


class Crop(NamedTuple):
    """How many pixels a container cuts off each side of the decoded frame."""

    left: int
    top: int
    right: int
    bottom: int


EVERY_TRACK = -1


@dataclass
class Header:
    """What a container's header says."""

    encrypted: set[int] = field(default_factory=set)
    """The encrypted tracks, by `track_key`; `EVERY_TRACK` stands for all."""
    crops: dict[int, Crop] = field(default_factory=dict)
    """By `track_key`."""
    is_cut_off: bool = False
    """The file is shorter than its header says."""
    has_successive_tracks: bool = False
    """One video track begins after another has ended, as if two recordings had been joined."""


def track_key(container: InputContainer, stream: VideoStream) -> int:
    """Returns the number by which `Header` knows a stream: Matroska's by its place among the video tracks.

    MP4 and MPEG-TS know it by track_ID and PID, which are the stream's id.
    """
    if container.format.name == "matroska,webm":
        return [other.index for other in container.streams.video].index(stream.index)
    return stream.id


def read_header(file: BinaryIO) -> Header:
    """Returns what the header says of a file that is positioned anywhere; nothing of a format that is not known."""
    header = Header(is_cut_off=is_cut_off(file))
    file.seek(0)
    head = file.read(4 * _TS_PACKET_BYTES)
    if head[4:8] in (b"ftyp", b"moov", b"styp", b"free", b"wide", b"mdat", b"skip"):
        _read_mp4(file, header)
    elif head.startswith(b"\x1a\x45\xdf\xa3"):
        _read_matroska(file, header)
    elif head.startswith(_ASF_HEADER):
        _read_asf(file, header)
    else:
        for offset in (0, 4):  # 4: M2TS, whose packets begin with a time
            if head[offset :: _TS_PACKET_BYTES + offset][:3] == b"GGG":
                _read_ts(file, header, _TS_PACKET_BYTES + offset, offset)
    return header


class _Box(NamedTuple):
    kind: bytes
    start: int
    """Where its content starts in the file."""
    end: int


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[_Box]:
    for _ in range(_MAX_ITEMS):
        if start + 8 > end:
            return
        file.seek(start)
        head = file.read(16)
        size, begin = int.from_bytes(head[:4], "big"), start + 8
        if size == 1:
            size, begin = int.from_bytes(head[8:16], "big"), start + 16
        stop = min(end, start + size) if size else end
        if len(head) < 8 or stop < begin:
            return
        yield _Box(head[4:8], begin, stop)
        start = stop


def _inside(file: BinaryIO, box: _Box, *path: bytes) -> Iterator[_Box]:
    """Yields the boxes at a path of kinds below a box."""
    for inner in _boxes(file, box.start, box.end):
        if inner.kind == path[0]:
            if path[1:]:
                yield from _inside(file, inner, *path[1:])
            else:
                yield inner


_VISUAL_ENTRY_BYTES = 78  # of a visual sample entry before its own boxes
_ENCRYPTED_ENTRIES = (b"encv", b"drmi")


def _read_mp4(file: BinaryIO, header: Header) -> None:
    everything = _Box(b"", 0, file.seek(0, io.SEEK_END))
    for index in _inside(file, everything, b"moov"):
        file.seek(index.start)
        # In memory: many small reads of a file would take 0.3 ms per video, 1 % of packing a short one.
        moov = file.read(min(index.end - index.start, _MAX_INDEX_BYTES))
        if any(kind in moov for kind in (*_ENCRYPTED_ENTRIES, b"clap")):  # in few files; looking takes no time
            _read_moov(io.BytesIO(moov), _Box(b"moov", 0, len(moov)), header)


def _read_moov(file: BinaryIO, moov: _Box, header: Header) -> None:
    for track in _inside(file, moov, b"trak"):
        track_id = _track_id(file, track)
        for descriptions in _inside(file, track, b"mdia", b"minf", b"stbl", b"stsd"):
            for entry in _boxes(file, descriptions.start + 8, descriptions.end):
                if entry.kind in _ENCRYPTED_ENTRIES:
                    header.encrypted.add(track_id)
                inner = entry._replace(start=entry.start + _VISUAL_ENTRY_BYTES)
                for aperture in _inside(file, inner, b"clap"):
                    crop = _clean_aperture(file, entry, aperture)
                    if crop is not None:
                        header.crops[track_id] = crop


def _track_id(file: BinaryIO, track: _Box) -> int:
    for box in _inside(file, track, b"tkhd"):
        file.seek(box.start)
        data = file.read(24)
        return int.from_bytes(data[20:24] if data[:1] == b"\1" else data[12:16], "big")
    return 0


def _clean_aperture(file: BinaryIO, entry: _Box, aperture: _Box) -> Crop | None:
    """Returns what the aperture cuts off, in whole pixels; None if it makes no sense (ISO/IEC 14496-12, 12.1.4)."""
    file.seek(entry.start + 24)
    sides = np.frombuffer(file.read(4), ">u2")
    file.seek(aperture.start)
    values = np.frombuffer(file.read(32), ">i4").tolist()
    if len(sides) != 2 or len(values) != 8 or not all(values[1::2]):
        return None
    width, height, across, down = (Fraction(*pair) for pair in zip(values[::2], values[1::2], strict=True))
    left, top = (Fraction(int(sides[0])) - width) / 2 + across, (Fraction(int(sides[1])) - height) / 2 + down
    crop = Crop(*(round(side) for side in (left, top, sides[0] - width - left, sides[1] - height - top)))
    return crop if min(crop) >= 0 and max(crop) > 0 and min(width, height) >= 1 else None


_SEGMENT, _TRACKS, _TRACK, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0x1F43B675
_TRACK_TYPE, _VIDEO, _ENCODINGS, _ENCODING, _ENCRYPTION = 0x83, 0xE0, 0x6D80, 0x6240, 0x5035
_PIXEL_CROPS = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yields id, start of the content and its end (None: not stated) of the elements on one level."""
    end = min(end, file.seek(0, io.SEEK_END))  # a file system refuses to go to a place that is far behind a file
    for _ in range(_MAX_ITEMS):
        if start >= end:
            return
        file.seek(start)
        head = file.read(12)
        if len(head) < 2 or not head[0]:
            return
        id_bytes = 9 - head[0].bit_length()
        size_head = head[id_bytes : id_bytes + 8]
        if id_bytes > 4 or not size_head or not size_head[0]:
            return
        size_bytes = 9 - size_head[0].bit_length()
        size = int.from_bytes(size_head[:size_bytes], "big") & ~(1 << (7 * size_bytes))
        begin = start + id_bytes + size_bytes
        is_stated = size != (1 << (7 * size_bytes)) - 1
        yield int.from_bytes(head[:id_bytes], "big"), begin, begin + size if is_stated else None
        if not is_stated:
            return
        start = begin + size


def _read_matroska(file: BinaryIO, header: Header) -> None:
    file_end = file.seek(0, io.SEEK_END)
    num_videos = 0
    for element, start, end in _elements(file, 0, file_end):
        if element == _SEGMENT:
            header.is_cut_off |= end is not None and end > file_end
            for inner, inner_start, inner_end in _elements(file, start, file_end):
                if inner == _TRACKS and inner_end is not None:
                    for track, track_start, track_end in _elements(file, inner_start, inner_end):
                        if track == _TRACK and track_end is not None:
                            num_videos += _read_matroska_track(file, track_start, track_end, header, num_videos)
                if inner in (_TRACKS, _CLUSTER):
                    return


def _read_matroska_track(file: BinaryIO, start: int, end: int, header: Header, key: int) -> bool:
    """Reads one track and tells whether it is a video; `key` is its number if it is."""
    is_video, is_encrypted, crop = False, False, Crop(0, 0, 0, 0)
    for element, inner_start, inner_end in _elements(file, start, end):
        inner_end = end if inner_end is None else inner_end
        if element == _TRACK_TYPE:
            is_video = _number(file, inner_start, inner_end) == 1
        elif element == _VIDEO:
            for name, side_start, side_end in _elements(file, inner_start, inner_end):
                if name in _PIXEL_CROPS and side_end is not None:
                    crop = crop._replace(**{_PIXEL_CROPS[name]: _number(file, side_start, side_end)})
        elif element == _ENCODINGS:
            for encoding, encoding_start, encoding_end in _elements(file, inner_start, inner_end):
                if encoding == _ENCODING and encoding_end is not None:
                    is_encrypted |= any(
                        kind == _ENCRYPTION for kind, *_ in _elements(file, encoding_start, encoding_end)
                    )
    if is_video and is_encrypted:
        header.encrypted.add(key)
    if is_video and any(crop):
        header.crops[key] = crop
    return is_video


def _number(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    return int.from_bytes(file.read(min(8, max(0, end - start))), "big")


_MAX_PICTURE_BYTES = 2**26
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_PICTURE, _END_OF_PICTURE, _APP2 = 0xD8, 0xD9, 0xE2


def is_motion_jpeg(file: BinaryIO) -> bool:
    """Tells whether a file of JPEGs is a video: another picture follows the first one, and the first names none.

    A photo may hold a second picture too (MPO, Ultra HDR), and says so in its first one (CIPA DC-007).
    """
    file.seek(0)
    data = file.read(_MAX_PICTURE_BYTES)
    place = 2
    while (marker := _JPEG_MARKER.search(data, place)) is not None:
        kind, place = data[marker.end() - 1], marker.end()
        if kind == _END_OF_PICTURE:
            return data[place:].lstrip(b"\0").startswith(bytes((0xFF, _START_OF_PICTURE, 0xFF)))
        if kind == _APP2 and data[place + 2 : place + 6] == b"MPF\0":
            return False
        place += int.from_bytes(data[place : place + 2], "big")
    return False


_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_ENCRYPTION = tuple(
    bytes.fromhex(guid)
    for guid in (
        "fbb3112223bdd211b4b700a0c955fc6e",  # Content Encryption Object
        "14e68a292226174cb935dae07ee9289c",  # Extended Content Encryption Object
        "338505438169e6499b74ad12cb86d58c",  # Advanced Content Encryption Object
    )
)


def _read_asf(file: BinaryIO, header: Header) -> None:
    file_end = file.seek(0, io.SEEK_END)
    file.seek(16)
    start, end = 30, min(file_end, int.from_bytes(file.read(8), "little"))
    for _ in range(_MAX_ITEMS):
        if start >= end:
            return
        file.seek(start)
        head = file.read(24)
        size = int.from_bytes(head[16:], "little")
        if len(head) < 24 or size < 24:
            return
        if head.startswith(_ASF_ENCRYPTION):
            header.encrypted.add(EVERY_TRACK)
        start += size


def _read_ts(file: BinaryIO, header: Header, packet_bytes: int, offset: int) -> None:
    """Looks at the packets of both ends: which are scrambled, and which video tracks are at one end alone."""
    num_packets = np.zeros(_NUM_PIDS, np.int64)
    num_scrambled = np.zeros(_NUM_PIDS, np.int64)
    spans: dict[int, tuple[int, int]] = {}
    position = 0
    chunk_bytes = _TS_END_BYTES // packet_bytes * packet_bytes
    for start in (0, max(chunk_bytes, (file.seek(0, io.SEEK_END) // packet_bytes) * packet_bytes - chunk_bytes)):
        file.seek(start)
        data = file.read(chunk_bytes)
        rows = np.frombuffer(data, np.uint8)[: len(data) // packet_bytes * packet_bytes].reshape(-1, packet_bytes)
        rows = rows[rows[:, offset] == _SYNC][:, offset : offset + _TS_PACKET_BYTES]
        pids = ((rows[:, 1] & 0x1F).astype(np.int64) << 8) | rows[:, 2]
        num_packets += np.bincount(pids, minlength=_NUM_PIDS)
        num_scrambled += np.bincount(pids[rows[:, 3] & 0xC0 > 0], minlength=_NUM_PIDS)
        places = np.flatnonzero(_starts_video(rows))
        for pid in np.unique(pids[places]).tolist():
            of_pid = places[pids[places] == pid] + position
            spans[pid] = spans.get(pid, (int(of_pid[0]), 0))[0], int(of_pid[-1])
        position += len(rows)
    header.encrypted |= set(np.flatnonzero(2 * num_scrambled > num_packets).tolist())
    header.has_successive_tracks = any(before[1] < after[0] for before, after in pairwise(sorted(spans.values())))


def _starts_video(rows: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tells of packets, `(n, 188)`, which begin a frame: a PES header with the id of a video stream."""
    has_adaptation = rows[:, 3] & 0x20 > 0
    start = np.minimum(4 + np.where(has_adaptation, 1 + rows[:, 4].astype(np.int64), 0), _TS_PACKET_BYTES - 4)
    is_start = (rows[:, 1] & 0x40 > 0) & (rows[:, 3] & 0x10 > 0)
    numbers = np.arange(len(rows))
    first, second, third, kind = (rows[numbers, start + place] for place in range(4))
    is_video = (kind & 0xF0 == 0xE0) | (kind == _EXTENDED_ID)
    starts: NDArray[np.bool_] = is_start & (first == 0) & (second == 0) & (third == 1) & is_video
    return starts
