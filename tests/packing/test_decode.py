"""Both decode paths give the same frames, and the shorter one is taken if and only if it was proved."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from configs.pack import ClipConfig, DecodeLimits
from packer.video import decode
from packer.video.clip import pick_frames, read_clip
from packer.video.container import VideoError
from packer.video.packets import Bits, NeedsFullDecode, PacketPlan, Picture
from packer.video.sampling import frame_indices
from tests.support.videos import full_decode, moving_pictures, write_video

LIMITS = DecodeLimits()


def luma(frame: av.VideoFrame, *_: object) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    num_bytes = frame.width * -(-frame.format.components[0].bits // 8)
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, :num_bytes].copy()


def check_exact(path: Path, num_wanted: int = 16) -> str:
    """Compares the picked frames with PyAV's own full decode; returns the decode path that was taken."""
    picked = pick_frames(path, ClipConfig(num_frames=num_wanted), LIMITS, luma)
    by_index = dict(zip(picked.frame_indices, picked.frames, strict=True))
    num_frames = 0
    for index, frame in enumerate(full_decode(path)):
        assert index not in by_index or np.array_equal(by_index[index], luma(frame)), f"{path.name} frame {index}"
        num_frames += 1
    assert picked.video.num_frames == num_frames, path.name
    assert picked.frame_indices == frame_indices(num_frames, num_wanted)
    return picked.video.decode_path


def remux(path: Path, target: Path, change: Callable[[int, av.Packet], None], **options: str) -> Path:
    """Copies the packets of a video, each changed, given its number, into another container."""
    with av.open(str(path)) as source, av.open(str(target), "w", options=options) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            change(number, packet)
            packet.stream = stream
            copy.mux(packet)
    return target


def unchanged(number: int, packet: av.Packet) -> None:
    pass


def x264(parameters: str) -> dict[str, Any]:
    return {"codec": "libx264", "options": {"x264-params": parameters}}


NEEDED: dict[str, dict[str, Any]] = {
    "b_frames.mp4": x264("bframes=3:keyint=12:b-adapt=0"),
    "b_frames.mkv": x264("bframes=3:keyint=12:b-adapt=0"),
    "pyramid.mov": x264("bframes=7:b-adapt=0:b-pyramid=normal:keyint=40"),
    "open_gop.mp4": x264("bframes=3:open-gop=1:keyint=10:b-adapt=0"),
    "one_gop.mkv": x264("bframes=16:b-adapt=0:keyint=infinite"),
    "intra_refresh.mp4": x264("intra-refresh=1:keyint=10:bframes=0"),
    "no_b_frames.mp4": x264("bframes=0:keyint=12"),
    "all_intra.mp4": x264("keyint=1"),
    "slices.mkv": x264("slices=3:bframes=2:aud=1:keyint=12"),
    "rate_control.mp4": x264("nal-hrd=cbr:filler=1:vbv-maxrate=300:vbv-bufsize=300:bitrate=300:bframes=2:keyint=12"),
    "scaling_matrices.mp4": x264("cqm=jvt:keyint=12"),
    "ten_bit.mp4": {**x264("bframes=3:keyint=12"), "pixel_format": "yuv420p10le"},
    "colours.mkv": {**x264("bframes=3:keyint=12"), "pixel_format": "yuv444p"},
    "plain.avi": {"codec": "mpeg4", "options": {"g": "9"}},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "9"}},
    "quarter_pixel.avi": {"codec": "mpeg4", "options": {"bf": "1", "flags": "+qpel+mv4"}},
}
FULL: dict[str, dict[str, Any]] = {
    "h264.avi": x264("bframes=3:keyint=12:b-adapt=0"),
    "h264.ts": x264("bframes=3:keyint=12:b-adapt=0"),
    "raw.h264": x264("bframes=3:keyint=12:b-adapt=0"),
    "interlaced.mp4": x264("tff=1:bframes=2:keyint=12"),
    "fake_interlaced.mkv": x264("fake-interlaced=1:keyint=12"),
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}},
    "hidden_frames.webm": {
        "codec": "libvpx-vp9",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k", "cpu-used": "5"},
    },
    "interlaced.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "flags": "+ildct+ilme"}},
    "interlaced.avi": {"codec": "mpeg4", "options": {"bf": "1", "flags": "+ildct+ilme"}},
    "mpeg4.mkv": {"codec": "mpeg4", "options": {"bf": "2"}},
}


@pytest.mark.parametrize("name", [*NEEDED, *FULL])
def test_frames_equal_a_full_decode(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, moving_pictures(60), **(NEEDED | FULL)[name])
    for num_wanted in (1, 2, 5, 16, 80):
        assert check_exact(path, num_wanted) == ("needed" if name in NEEDED else "full")


@pytest.fixture
def b_frames(tmp_path: Path) -> Path:
    return write_video(tmp_path / "source.mp4", moving_pictures(60), **NEEDED["b_frames.mp4"])


def test_fragments_and_uneven_times_need_no_full_decode(tmp_path: Path, b_frames: Path) -> None:
    fragments = remux(b_frames, tmp_path / "fragments.mp4", unchanged, movflags="frag_keyframe+empty_moov")
    assert check_exact(fragments) == "needed"

    def stretch(number: int, packet: av.Packet) -> None:
        assert packet.pts is not None
        packet.pts += packet.pts**2 // 512

    assert check_exact(remux(b_frames, tmp_path / "uneven.mkv", stretch)) == "needed"


def test_doubtful_packets_lead_to_a_full_decode(tmp_path: Path, b_frames: Path) -> None:
    def in_decoding_order(number: int, packet: av.Packet) -> None:
        packet.pts = packet.dts

    first_times: list[int | None] = []

    def twice_the_same_time(number: int, packet: av.Packet) -> None:
        first_times.append(packet.pts)
        if number == 4:
            packet.pts = first_times[1]

    def before_the_start(number: int, packet: av.Packet) -> None:
        assert packet.pts is not None
        assert packet.dts is not None
        packet.pts -= 8 * 512
        packet.dts -= 8 * 512

    for change in (in_decoding_order, twice_the_same_time):
        assert check_exact(remux(b_frames, tmp_path / "changed.mkv", change)) == "full"
    edited = remux(b_frames, tmp_path / "edit_list.mp4", before_the_start)
    assert check_exact(edited) == "full"
    assert sum(1 for _ in full_decode(edited)) < 60


def test_missing_packets_lead_to_a_full_decode(tmp_path: Path) -> None:
    path = write_video(tmp_path / "source.mp4", moving_pictures(60), **NEEDED["no_b_frames.mp4"])
    with av.open(str(path)) as source, av.open(str(tmp_path / "gap.mkv"), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            if number not in (17, 18):
                packet.stream = stream
                copy.mux(packet)
    assert pick_frames(tmp_path / "gap.mkv", ClipConfig(), LIMITS, luma).video.decode_path == "full"


def test_a_last_picture_that_is_not_coded_leads_to_a_full_decode(tmp_path: Path) -> None:
    path = write_video(tmp_path / "still.avi", moving_pictures(20), **NEEDED["plain.avi"])
    data = bytearray(path.read_bytes())
    # The kind of picture, its second and a mark take 4 bits, its tick of 25 and a mark 6 more; then comes vop_coded.
    data[data.rindex(b"\0\0\1\xb6") + 5] &= ~0x20
    path.write_bytes(data)
    assert check_exact(path) == "full"
    assert sum(1 for _ in full_decode(path)) == 20  # the last but one is shown again


def test_a_long_video_is_read_twice(b_frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_HELD_BYTES", 1000)
    assert check_exact(b_frames) == "needed"


def test_the_full_decode_can_be_chosen(b_frames: Path) -> None:
    needed, full = (read_clip(b_frames, ClipConfig(decode=path), LIMITS) for path in ("auto", "full"))
    assert (needed.decode_road, full.decode_road) == ("needed", "full")
    assert needed.jpegs == full.jpegs


@pytest.mark.parametrize(
    ("folder", "share_needed"), [("known/hmdb51", 1), ("known/ucf101", 1), ("wagon", 1), ("zoo", 0.4)]
)
def test_real_frames_equal_a_full_decode(test_data: Path, folder: str, share_needed: float) -> None:
    taken = []
    paths = sorted(path for path in (test_data / folder).rglob("*") if path.is_file())
    for path in paths:
        # Damaged, no video, or a picture: PyAV has no decode to compare with, or we refuse the file.
        with contextlib.suppress(av.FFmpegError, IndexError, VideoError):
            taken.append(check_exact(path))
    assert len(taken) > 0.6 * len(paths)
    assert taken.count("needed") >= share_needed * len(taken)


def picture(position: int | None, kind: str) -> Picture:
    return Picture(position, is_start=kind == "I", is_reference=kind != "B")


OPEN_GROUPS = [picture(*pair) for pair in [(0, "I"), (2, "P"), (1, "B"), (4, "I"), (3, "B"), (6, "P"), (5, "B")]]


@pytest.mark.parametrize(
    ("wanted", "spans"),
    [
        ([0], [(0, 1)]),
        ([0, 6], [(0, 1), (3, 6)]),
        ([0, 4], [(0, 1), (3, 4)]),
        ([0, 3], [(0, 5)]),  # shown before the second I, so predicted from the P before it
        ([0, 3, 4], [(0, 5)]),
        ([5], [(3, 7)]),
    ],
)
def test_spans(wanted: list[int], spans: list[tuple[int, int]]) -> None:
    assert PacketPlan(OPEN_GROUPS).spans_of(wanted) == spans


def test_spans_need_a_start() -> None:
    with pytest.raises(NeedsFullDecode, match="before all frames that decoding can begin with"):
        PacketPlan([picture(1, "I"), picture(0, "B")]).spans_of([0])


def test_bits() -> None:
    bits = Bits(bytes([0b1_010_011_0, 0b0100_0101]))
    assert [bits.golomb(), bits.golomb(), bits.golomb(), bits.golomb()] == [0, 1, 2, 3]
    assert (bits.take(0), bits.take(1), bits.rest()) == (0, 0, "101")
    with pytest.raises(NeedsFullDecode, match="ends early"):
        bits.take(4)
    skipped = Bits(bytes([0b1_010_011_0, 0b0100_0101]))
    skipped.skip_golombs(3)
    assert skipped.rest() == "001000101"
    with pytest.raises(NeedsFullDecode, match="ends early"):
        skipped.skip_golombs(4)
    for read in (Bits(b"\0").golomb, lambda: Bits(b"\0").skip_golombs(1), lambda: Bits(b"\1").skip_golombs(1)):
        with pytest.raises(NeedsFullDecode, match="ends early"):
            read()
