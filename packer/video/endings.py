"""Tells whether a file ends before its own header says, as half a download does.

Reads just the few numbers that state a size: of the boxes of MP4 (ISO/IEC 14496-12), the lists of AVI, the data of ASF
and RealMedia, the partitions of MXF (SMPTE ST 377-1) and the metadata of FLV. A number that is missing, or that a
recorder left open, states nothing. `headers.py` does the same for Matroska, whose header it reads anyway.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

_MAX_PARTS = 1000
_MAX_INDEX_BYTES = 2**24
_OPEN_SIZES = (0, 2**32 - 1)
"""Written first and never replaced, if the recorder could not go back or was switched off."""
_AVI, _RM, _FLV = b"RIFF", b".RMF", b"FLV\1"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_MXF = bytes.fromhex("060e2b34020501010d0102010102")  # a header partition, in any state
_RM_TOLERANCE_BYTES = 64
"""FFmpeg's own files state 10 bytes more than they have."""
_FLV_SIZE = b"\0\x08filesize\0"
_FLV_HEAD_BYTES = 2**16
_FLV_WHOLE_SHARE = 0.9
"""Tools that copy an FLV keep the metadata of a file that was slightly larger."""


class Part(NamedTuple):
    """A piece of a file that states its own size."""

    kind: bytes
    start: int
    """Where its content starts in the file."""
    end: int
    """Where it ends by its header; the end of the file if that is not stated."""


def is_cut_off(file: BinaryIO) -> bool:
    """Tells whether a file is shorter than its header says; it may be positioned anywhere, and have any format."""
    file_end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(64)
    if head[4:8] in (b"ftyp", b"moov", b"styp", b"free", b"wide", b"mdat", b"skip"):
        return _is_cut_mp4(file, file_end)
    if head.startswith(_AVI) and head[8:12] == b"AVI ":
        return _is_cut(_chunks(file, 12, file_end, "<", is_padded=True), b"movi", file_end)
    if head.startswith(_RM):
        return _is_cut(_chunks(file, 0, file_end, ">", is_padded=False), b"DATA", file_end + _RM_TOLERANCE_BYTES)
    if head.startswith(_ASF):
        return _is_cut_asf(file, file_end)
    if head.startswith(_MXF):
        return _is_cut_mxf(head, file_end)
    return head.startswith(_FLV) and _is_cut_flv(file, file_end)


def _is_cut(parts: Iterator[Part], kind: bytes, file_end: int) -> bool:
    return next((part.end > file_end for part in parts if part.kind == kind), False)


def _boxes(file: BinaryIO, file_end: int) -> Iterator[Part]:
    start = 0
    for _ in range(_MAX_PARTS):
        if start + 8 > file_end:  # a file system refuses to go to a place that is far behind a file
            return
        file.seek(start)
        head = file.read(16)
        size, num_head_bytes = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, num_head_bytes = int.from_bytes(head[8:], "big"), 16
        end = start + size if size else file_end
        if end < start + num_head_bytes:
            return
        yield Part(head[4:8], start + num_head_bytes, end)
        start = end


def _is_cut_mp4(file: BinaryIO, file_end: int) -> bool:
    for box in _boxes(file, file_end):
        if box.kind in (b"mdat", b"moof") and box.end > file_end:
            return True
        if box.kind == b"sidx":
            file.seek(box.start)
            index = file.read(min(box.end - box.start, _MAX_INDEX_BYTES))
            if box.end + _num_indexed_bytes(index) > file_end:
                return True
    return False


def _num_indexed_bytes(index: bytes) -> int:
    """Returns how far behind a segment index the last fragment that it names ends (ISO/IEC 14496-12, 8.16.3)."""
    offset_at, list_at = (20, 28) if index[:1] == b"\1" else (16, 20)
    entries = index[list_at + 4 :][: 12 * int.from_bytes(index[list_at + 2 : list_at + 4], "big")]
    sizes = np.frombuffer(entries[: len(entries) // 12 * 12], ">u4")[::3] & 0x7FFFFFFF
    return int.from_bytes(index[offset_at:list_at], "big") + int(sizes.sum())


def _chunks(file: BinaryIO, start: int, file_end: int, order: str, *, is_padded: bool) -> Iterator[Part]:
    """Yields the chunks of AVI, whose sizes leave their heads out and are padded, or of RealMedia."""
    for _ in range(_MAX_PARTS):
        if start + 12 > file_end:
            return
        file.seek(start)
        head = file.read(12)
        kind, size = struct.unpack(f"{order}4sI", head[:8])
        is_open = size in _OPEN_SIZES
        end = file_end if is_open else start + size + (8 + size % 2 if is_padded else 0)
        yield Part(head[8:] if kind == b"LIST" else kind, start + 8, end)
        if is_open or end <= start:
            return
        start = end


def _is_cut_asf(file: BinaryIO, file_end: int) -> bool:
    file.seek(16)
    start = int.from_bytes(file.read(8), "little")
    if start >= file_end:
        return False
    file.seek(start)
    head = file.read(24)
    return head.startswith(_ASF_DATA) and start + int.from_bytes(head[16:], "little") > file_end


def _is_cut_mxf(head: bytes, file_end: int) -> bool:
    """Tells whether the last partition lies behind the end of the file (SMPTE ST 377-1, 7.1)."""
    length = int.from_bytes(head[16:17], "big")
    footer_at = 16 + 1 + (length & 0x7F if length & 0x80 else 0) + 24
    return int.from_bytes(head[footer_at : footer_at + 8], "big") >= file_end


def _is_cut_flv(file: BinaryIO, file_end: int) -> bool:
    file.seek(0)
    head = file.read(_FLV_HEAD_BYTES)
    place = head.find(_FLV_SIZE)
    if place < 0 or len(head) < place + len(_FLV_SIZE) + 8:
        return False
    (num_bytes,) = struct.unpack_from(">d", head, place + len(_FLV_SIZE))
    return bool(file_end < _FLV_WHOLE_SHARE * num_bytes)
