"""Recordings in the containers of surveillance recorders, written here after the readers in FFmpeg's libavformat."""

import struct
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import read_clip
from packer.video.container import VideoError
from packer.video.jpeg import decode_frames
from tests.support.videos import number_picture, read_number, write_numbered_video

NUM_FRAMES, SIDE_PX = 60, 64


def packets(path: Path) -> list[tuple[bytes, bool]]:
    """Returns the data of a video's packets, and whether each is a key frame."""
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def h264(tmp_path: Path) -> list[tuple[bytes, bool]]:
    options = {"bf": "0", "g": "20"}
    return packets(write_numbered_video(tmp_path / "plain.h264", NUM_FRAMES, options=options))


def dhav(tmp_path: Path) -> bytes:
    """Dahua: each frame between DHAV and dhav, with its second (date) and millisecond, 5 frames a second."""
    frames = []
    for number, (data, is_key) in enumerate(h264(tmp_path)):
        date = (25 << 26) | (3 << 22) | (1 << 17) | (12 << 12) | number // 5
        more = struct.pack("<BBBBHH", 0x82, 0, 0, 0, SIDE_PX, SIDE_PX) + bytes((0x81, 0, 2, 5))
        num_bytes = 24 + len(more) + len(data) + 8
        head = struct.pack("<BBBBIII", 0xFD if is_key else 0xFC, 0, 1, 0, number, num_bytes, date)
        head += struct.pack("<HBB", number % 5 * 200, len(more), 0)
        frames.append(b"DHAV" + head + more + data + b"dhav" + struct.pack("<I", num_bytes))
    return b"".join(frames)


def dhav_with_preface(tmp_path: Path) -> bytes:
    return b"DAHUA".ljust(0x400, b"\0") + dhav(tmp_path)


def hxvs(tmp_path: Path) -> bytes:
    frames = [
        b"HXVF" + struct.pack("<III", len(data), number * 200, is_key) + data
        for number, (data, is_key) in enumerate(h264(tmp_path))
    ]
    return b"HXVS" + struct.pack("<III", SIDE_PX, SIDE_PX, 0) + b"".join(frames)


def luodat(tmp_path: Path) -> bytes:
    frames = []
    for number, (data, is_key) in enumerate(h264(tmp_path)):
        head = struct.pack("<IIII", 1, SIDE_PX, SIDE_PX, 5) + bytes(16) + struct.pack("<IIII", is_key, 0, 0, 0)
        frames.append(b"liu " + head + struct.pack("<QI", number, len(data)) + b" uil".rjust(64, b"\0") + data)
    return b"luo ".ljust(0x1FFC, b"\0") + b" oul" + b"".join(frames) + b"liu ".ljust(132, b"\0")


def ifv(tmp_path: Path) -> bytes:
    """A table of 28 bytes a frame, then the frames."""
    frames = h264(tmp_path)
    head = bytes.fromhex("11d2d3abbaa9cf118ee600c00c20536544").ljust(0x34, b"\0") + bytes(4 + 0x24)
    head += struct.pack("<HH", SIDE_PX, SIDE_PX) + bytes(8) + b"H264" + bytes(0x2C) + struct.pack("<I", 0) + b"PCMU"
    head = (head + bytes(0x44) + struct.pack("<II", len(frames), 0)).ljust(0xF8, b"\0")
    place, table = 0xF8 + 28 * len(frames), []
    for number, (data, _) in enumerate(frames):
        table.append(struct.pack("<II8xI8x", place, len(data), number * 200))
        place += len(data)
    return head + b"".join(table) + b"".join(data for data, _ in frames)


def mpjpeg(tmp_path: Path) -> bytes:
    frames = packets(write_numbered_video(tmp_path / "p.mov", NUM_FRAMES, codec="mjpeg", pixel_format="yuvj420p"))
    head = "--camera\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    return b"".join(head.format(len(data)).encode() + data + b"\r\n" for data, _ in frames)


def program_stream(tmp_path: Path) -> bytes:
    """Hikvision: a program stream behind 40 bytes of its own."""
    stream = write_numbered_video(tmp_path / "plain.mpg", NUM_FRAMES, codec="mpeg2video", options={"b": "3000000"})
    return b"IMKH".ljust(40, b"\1") + stream.read_bytes()


@pytest.mark.parametrize("record", [dhav, dhav_with_preface, hxvs, luodat, ifv, mpjpeg, program_stream])
def test_recordings_are_videos(tmp_path: Path, record: Callable[[Path], bytes]) -> None:
    data = record(tmp_path)
    (tmp_path / "recording.bin").write_bytes(data)
    for source in (data, tmp_path / "recording.bin"):
        clip = read_clip(source, ClipConfig(), DecodeLimits())
        assert (clip.num_frames, clip.damage) == (NUM_FRAMES, ())
        assert tuple(read_number(frame) for frame in decode_frames(clip.jpegs)) == clip.frame_indices


def test_a_dhav_recording_has_its_own_rate(tmp_path: Path) -> None:
    clip = read_clip(dhav(tmp_path), ClipConfig(sampling="time"), DecodeLimits())
    assert (clip.fps, clip.sampled_by) == (5, "time")


@pytest.mark.parametrize("head", [b"DHAV\xfd", b"DAHUA", b"HXVS", b"luo "])
def test_the_head_of_a_recording_is_none(head: bytes) -> None:
    for data in (head, head + number_picture(3).tobytes()):
        with pytest.raises(VideoError):
            read_clip(data, ClipConfig(), DecodeLimits())
