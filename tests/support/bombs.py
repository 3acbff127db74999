"""Small files that would cost much to decode, or claim to: made by real muxers, then patched, or byte by byte.

`python -m tests.support.bombs` prints what refusing each costs.
"""

import io
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import av
import psutil

from configs.pack import ClipConfig
from configs.serve import UploadLimits
from packer.decoders.pool import DecodePool
from packer.video.container import VideoError
from tests.support.processes import decoders


def box(kind: bytes, *parts: bytes) -> bytes:
    """Returns a box of MP4."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def png(width_px: int, height_px: int) -> bytes:
    """Returns a black grey picture: a thousandth of its size as pixels."""
    packer, data = zlib.compressobj(9), b""
    for _ in range(height_px):
        data += packer.compress(bytes(width_px + 1))
    data += packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def muxed(packets: Iterable[bytes], codec: str, width_px: int, height_px: int, kind: str = "mov") -> bytes:
    """Returns a video of these packets, all key frames, whose header states this size whatever the packets hold."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = width_px, height_px
        stream.pix_fmt = {"png": "gray", "rawvideo": "rgb24"}.get(codec, "yuv420p")
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return file.getvalue()


def encoded(num_frames: int, width_px: int, height_px: int, kind: str = "mp4") -> bytes:
    """Returns a black H.264 video of that many frames, of which ten are really encoded and then repeated."""
    source, target = io.BytesIO(), io.BytesIO()
    with av.open(source, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        for number in range(min(10, num_frames)):
            frame = av.VideoFrame(width_px, height_px, "yuv420p")
            for plane, value in zip(frame.planes, (16, 128, 128), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source.seek(0)
    with av.open(source) as container, av.open(target, "w", format=kind) as output:
        packets = [(bytes(p), p.is_keyframe) for p in container.demux(video=0) if p.size]
        stream = output.add_stream_from_template(container.streams.video[0])
        for number in range(num_frames):
            data, is_key = packets[number % len(packets)]
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = is_key
            output.mux(packet)
    return target.getvalue()


def many_samples(num_samples: int, num_bytes: int = 16 * 16 * 3) -> bytes:
    """Returns an MP4 of one kilobyte whose tables state that many frames of so many bytes each."""
    # Without the edit list, which tells how long the video really is.
    video = bytearray(muxed([bytes(16 * 16 * 3)], "rawvideo", 16, 16).replace(b"edts", b"free"))

    def patch(kind: bytes, offset: int, stated: int, number: int) -> None:
        at = video.index(kind) + offset
        assert video[at : at + 4] == struct.pack(">I", stated)
        video[at : at + 4] = struct.pack(">I", number)

    patch(b"stsz", 8, 16 * 16 * 3, num_bytes)
    patch(b"stsz", 12, 1, num_samples)
    patch(b"stts", 12, 1, num_samples)
    patch(b"stsc", 16, 1, num_samples)
    return bytes(video)


def compressed_header(num_bytes: int) -> bytes:
    """Returns a QuickTime file whose header is compressed, a thousandfold."""
    packer = zlib.compressobj(9)
    data = packer.compress(box(b"moov", box(b"free", bytes(num_bytes)))) + packer.flush()
    header = box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", struct.pack(">I", num_bytes + 16), data))
    return box(b"ftyp", b"qt  ", bytes(4), b"qt  ") + box(b"moov", header)


def many_tracks(num_tracks: int) -> bytes:
    """Returns an MP4 that has its one track that many times."""
    video = encoded(2, 64, 64)
    start = video.index(b"trak") - 4
    (size,) = struct.unpack(">I", video[start : start + 4])
    tracks = video[start : start + size] * num_tracks
    moov = video.index(b"moov") - 4
    (moov_size,) = struct.unpack(">I", video[moov : moov + 4])
    return (
        video[:moov]
        + struct.pack(">I", moov_size + len(tracks) - size)
        + video[moov + 4 : start]
        + tracks
        + video[start + size :]
    )


def in_header(box: bytes) -> bytes:
    """Returns an MP4 with one more box in its header."""
    video = encoded(2, 64, 64)
    moov = video.index(b"moov") - 4
    (size,) = struct.unpack(">I", video[moov : moov + 4])
    return (
        video[:moov] + struct.pack(">I", size + len(box)) + video[moov + 4 : moov + size] + box + video[moov + size :]
    )


def edits(num_edits: int) -> bytes:
    """Returns an MP4 that shows its first millisecond that many times."""
    video = encoded(10, 64, 64).replace(b"edts", b"free")
    edit_list = box(b"elst", struct.pack(">II", 0, num_edits), struct.pack(">IiI", 1, 0, 1 << 16) * num_edits)
    edit = box(b"edts", edit_list)
    moov, trak = video.index(b"moov") - 4, video.index(b"trak") - 4
    moov_size, trak_size = (struct.unpack(">I", video[at : at + 4])[0] for at in (moov, trak))
    return b"".join(
        (
            video[:moov],
            struct.pack(">I", moov_size + len(edit)),
            video[moov + 4 : trak],
            struct.pack(">I", trak_size + len(edit)),
            video[trak + 4 : trak + trak_size],
            edit,
            video[trak + trak_size :],
        )
    )


def nested(depth: int) -> bytes:
    """Returns a box in a box in a box."""
    size = 8 * depth
    return in_header(b"".join(struct.pack(">I4s", size - 8 * i, b"udta") for i in range(depth)))


def metadata(num_entries: int) -> bytes:
    """Returns an MP4 with that many entries of metadata."""
    keys = [f"{number:08x}".encode() for number in range(num_entries)]
    key_boxes = box(b"keys", struct.pack(">II", 0, num_entries), *(box(b"mdta", key) for key in keys))
    values = [
        box(struct.pack(">I", number + 1), box(b"data", struct.pack(">II", 1, 0), b"x"))
        for number in range(num_entries)
    ]
    handler = box(b"hdlr", bytes(8), b"mdta", bytes(13))
    return in_header(box(b"meta", handler, key_boxes, box(b"ilst", *values)))


def ebml(kind: str, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes.fromhex(kind) + struct.pack(">Q", 1 << 56 | len(body)) + body


def matroska(*parts: bytes) -> bytes:
    """Returns a Matroska file with these parts in its segment."""
    header = ebml("1A45DFA3", ebml("4282", b"matroska"), ebml("4287", b"\x04"), ebml("4285", b"\x02"))
    return header + ebml("18538067", *parts)


def matroska_track(*extra: bytes) -> bytes:
    video = ebml("E0", ebml("B0", b"\x40"), ebml("BA", b"\x40"))
    return ebml(
        "AE", ebml("D7", b"\x01"), ebml("73C5", b"\x01"), ebml("83", b"\x01"), ebml("86", b"V_FFV1"), video, *extra
    )


def compressed_packets(num_packets: int, num_bytes: int) -> bytes:
    """Returns a Matroska file whose packets are compressed by zlib, a thousandfold."""
    encoding = ebml("6D80", ebml("6240", ebml("5033", b"\x00"), ebml("5034", ebml("4254", b"\x00"))))
    data = zlib.compress(bytes(num_bytes), 9)
    blocks = [ebml("A3", b"\x81", struct.pack(">h", number % 30000), b"\x80", data) for number in range(num_packets)]
    return matroska(ebml("1654AE6B", matroska_track(encoding)), ebml("1F43B675", ebml("E7", b"\x00"), *blocks))


def chapters(num_chapters: int) -> bytes:
    atoms = [
        ebml(
            "B6",
            ebml("73C4", struct.pack(">I", number + 1)),
            ebml("91", struct.pack(">Q", number)),
            ebml("80", ebml("85", b"x")),
        )
        for number in range(num_chapters)
    ]
    return matroska(ebml("1654AE6B", matroska_track()), ebml("1043A770", ebml("45B9", *atoms)))


def tags(num_tags: int) -> bytes:
    entries = [ebml("67C8", ebml("45A3", f"{number:08x}".encode()), ebml("4487", b"x")) for number in range(num_tags)]
    return matroska(ebml("1654AE6B", matroska_track()), ebml("1254C367", ebml("7373", *entries)))


BOMBS: dict[str, Callable[[], bytes]] = {
    "8k x 8k picture": lambda: encoded(1, 8192, 8192),
    "16k x 16k picture": lambda: muxed([png(16_000, 16_000)], "png", 64, 64).replace(
        struct.pack(">HH", 64, 64), struct.pack(">HH", 16_000, 16_000)
    ),
    "8k x 8k pictures, 64 x 64 in the header": lambda: muxed([png(8192, 8192)] * 3, "png", 64, 64),
    "16k x 16k pictures, 64 x 64 in the header": lambda: muxed([png(16_000, 16_000)] * 3, "png", 64, 64, "avi"),
    "64 x 64, then 8k x 8k": lambda: encoded(3000, 64, 64, "mpegts") + encoded(1, 8192, 8192, "mpegts"),
    "one hour at 25 per second": lambda: encoded(90_000, 64, 64),
    "10^6 frames in 1 MB": lambda: many_samples(1_000_000, 1) + bytes(1_000_000),
    "4 * 10^7 frames claimed in 1 kB": lambda: many_samples(40_000_000),
    "4 * 10^9 frames claimed in 1 kB": lambda: many_samples(4_000_000_000),
    "compressed header, 400 MB": lambda: compressed_header(400_000_000),
    "compressed packets, 10 GB": lambda: compressed_packets(1000, 9_900_000),
    "30,000 tracks": lambda: many_tracks(30_000),
    "100,000 tracks, Matroska": lambda: matroska(ebml("1654AE6B", *[matroska_track()] * 100_000)),
    "100,000 boxes in each other": lambda: nested(100_000),
    "100,000 entries of metadata": lambda: metadata(100_000),
    "200,000 tags": lambda: tags(200_000),
    "200,000 chapters": lambda: chapters(200_000),
    "4,000,000 empty boxes": lambda: in_header(box(b"free") * 4_000_000),
    "200,000 edits": lambda: edits(200_000),
    "5,000,000 empty blocks": lambda: matroska(
        ebml("1654AE6B", matroska_track()), ebml("1F43B675", ebml("E7", b"\0"), b"\xa3\x84\x81\0\0\x80" * 5_000_000)
    ),
    "6,000,000 delimiters of frames": lambda: encoded(5, 64, 64, "h264") + b"\0\0\1\x09\x10" * 6_000_000,
    "60 MB of codec parameters": lambda: matroska(ebml("1654AE6B", matroska_track(ebml("63A2", bytes(60_000_000))))),
    "a box of 4 GB": lambda: box(b"ftyp", b"isom", bytes(4)) + struct.pack(">I4s", 2**32 - 1, b"moov") + bytes(99),
    "a box of 2^62 bytes": lambda: (
        box(b"ftyp", b"isom", bytes(4)) + struct.pack(">I4sQ", 1, b"moov", 2**62) + bytes(99)
    ),
}


@dataclass(frozen=True)
class Cost:
    """What became of a bomb, and what it took."""

    reason: str
    seconds: float
    grown_bytes: int
    """By which the decoder process grew at most, above what it held when it waited for the video."""


def cost(video: bytes) -> Cost:
    """Returns what refusing a video costs a decoder process under the server's own limits."""
    with DecodePool(1, UploadLimits()) as pool:
        with suppress(VideoError):
            pool.submit(b"warm up", ClipConfig()).result()
        (decoder,) = decoders(psutil.Process().children())
        peaks = [decoder.memory_info().rss]
        start = time.monotonic()
        future = pool.submit(video, ClipConfig())
        while not future.done():
            with suppress(psutil.Error):
                peaks.append(decoder.memory_info().rss)
            time.sleep(0.002)
        error = future.exception()
        reason = error.reason if isinstance(error, VideoError) else "decoded" if error is None else repr(error)
        return Cost(reason, time.monotonic() - start, max(peaks) - peaks[0])


def main() -> None:
    print("| bomb | bytes | answer | seconds | MB |\n|---|---|---|---|---|")
    for name, make in BOMBS.items():
        video = make()
        paid = cost(video)
        print(
            f"| {name} | {len(video):,} | {paid.reason} | {paid.seconds:.2f} | {paid.grown_bytes / 1e6:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
