"""Damaged, cut and encrypted videos are told apart from whole ones, on both decode paths."""

import random
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import pyarrow.parquet as pq
import pytest

from configs.pack import ClipConfig, DecodeLimits
from packer.__main__ import main
from packer.shards.sample import SampleRow
from packer.video.clip import Clip, read_clip
from packer.video.container import VideoError
from tests.support.programs import system_program
from tests.support.videos import (
    moving_pictures,
    number_picture,
    write_classes,
    write_numbered_video,
    write_video,
)

KEY = ["-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "00" * 15 + "01", "-encryption_kid", "00" * 15 + "02"]
AUTO, FULL = ClipConfig(), ClipConfig(decode="full")


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([system_program("ffmpeg"), "-v", "error", "-y", *map(str, arguments)], check=True)


def clip_of(source: Path | bytes, clip: ClipConfig = AUTO) -> Clip:
    return read_clip(source, clip, DecodeLimits())


def reason_of(source: Path | bytes) -> str:
    with pytest.raises(VideoError) as caught:
        clip_of(source)
    return caught.value.reason


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("whole.mp4", "libx264"),
        ("whole.mkv", "libx264"),
        ("whole.webm", "libvpx-vp9"),
        ("whole.ts", "mpeg2video"),
        ("whole.avi", "mpeg4"),
        ("whole.flv", "flv"),
        ("whole.mov", "mjpeg"),
        ("lossless.mkv", "ffv1"),
    ],
)
def test_whole_videos_are_not_damaged(tmp_path: Path, name: str, codec: str) -> None:
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_numbered_video(tmp_path / name, 40, codec=codec, pixel_format=pixel_format)
    for config in (AUTO, FULL):
        clip = clip_of(path, config)
        assert (clip.num_frames, clip.num_bad_packets, clip.num_concealed_frames, clip.damage) == (40, 0, 0, ())
        assert clip.fps == pytest.approx(25)


@pytest.mark.parametrize(("name", "codec"), [("half.webm", "libvpx-vp9"), ("half.mkv", "libx264"), ("x.mkv", "ffv1")])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_half_a_download_is_cut_off(tmp_path: Path, name: str, codec: str, share: float) -> None:
    whole = write_video(tmp_path / name, moving_pictures(100), codec=codec, options={"g": "10"}).read_bytes()
    clip = clip_of(whole[: int(len(whole) * share)])
    assert clip.num_frames < 100
    assert "cut_off" in clip.damage


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("half.flv", "flv", []),
        ("half.wmv", "wmv2", []),
        ("half.avi", "mpeg4", []),
        ("half.avi", "mjpeg", []),
        ("half.mxf", "mpeg2video", []),
        ("half.rm", "rv20", []),
        ("front.mp4", "libx264", ["-movflags", "faststart"]),
        ("indexed.mp4", "libx264", ["-movflags", "frag_keyframe+empty_moov+dash+global_sidx"]),
    ],
)
def test_every_container_that_states_a_size_says_that_it_is_cut_off(
    tmp_path: Path, name: str, codec: str, options: list[str], share: float
) -> None:
    source = write_video(tmp_path / "source.mkv", moving_pictures(100), codec="ffv1")
    ffmpeg("-i", source, "-c:v", codec, "-pix_fmt", "yuv420p", "-g", "10", "-q:v", "2", *options, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    assert clip_of(whole).damage == ()
    clip = clip_of(whole[: int(len(whole) * share)])
    assert clip.num_frames < 100
    assert "cut_off" in clip.damage


def test_fragments_that_are_missing_whole_are_seen(tmp_path: Path) -> None:
    """No packet is damaged then: only the index of a DASH file, at its front, tells of them."""
    source, target = write_numbered_video(tmp_path / "source.mp4", 100, options={"g": "10"}), tmp_path / "dash.mp4"
    ffmpeg("-i", source, "-c", "copy", "-movflags", "frag_keyframe+empty_moov+dash+global_sidx", target)
    data = target.read_bytes()
    place = 0
    for _ in range(6):
        place = data.index(b"moof", place + 5)
    clip = clip_of(data[: place - 4])
    assert 0 < clip.num_frames < 100
    assert (clip.num_bad_packets, clip.num_concealed_frames, clip.damage) == (0, 0, ("cut_off",))


def test_a_file_that_lacks_nothing_but_its_index_is_whole(tmp_path: Path) -> None:
    whole = write_numbered_video(tmp_path / "whole.avi", 100, codec="mpeg4").read_bytes()
    clip = clip_of(whole[: whole.rindex(b"idx1")])
    assert (clip.num_frames, clip.damage) == (100, ())


@pytest.mark.parametrize("keeps_all", [True, False], ids=["all packets kept", "cut before the key frame"])
def test_a_video_that_was_trimmed_by_its_edit_list_is_whole(tmp_path: Path, keeps_all: bool) -> None:
    """Its index still counts the pictures that are not shown, as after a trim on a phone or by ffmpeg -c copy."""
    source = write_numbered_video(tmp_path / "whole.mp4", 100, options={"g": "40", "bf": "2"})
    if keeps_all:
        data = bytearray(source.read_bytes())
        place = data.index(b"elst") + 12
        with av.open(str(source)) as container:
            ticks_per_frame = 1 / (25 * container.streams.video[0].time_base)
        length, start = (int.from_bytes(data[at : at + 4], "big") for at in (place, place + 4))
        data[place : place + 8] = (length // 4).to_bytes(4, "big") + int(start + 60 * ticks_per_frame).to_bytes(
            4, "big"
        )
    else:
        ffmpeg("-ss", "2.4", "-i", source, "-c", "copy", tmp_path / "trimmed.mp4")
        data = bytearray((tmp_path / "trimmed.mp4").read_bytes())
    clip = clip_of(bytes(data))
    assert clip.num_frames < 0.9 * clip.num_frames_claimed
    assert clip.damage == ()
    half = clip_of(bytes(data).replace(b"elst", b"free"))
    assert half.num_frames == half.num_frames_claimed


def test_joined_recordings_last_as_long_as_their_frames(tmp_path: Path) -> None:
    once = write_numbered_video(tmp_path / "once.ts", 40).read_bytes()
    clip = clip_of(once + once)
    assert (clip.num_frames, clip.fps, clip.duration_seconds) == (80, 25.0, pytest.approx(3.2))


def test_a_box_that_is_too_long_is_no_matter_if_all_frames_are_there(test_data: Path) -> None:
    clip = clip_of(test_data / "zoo/androidx/sample_mdat_too_long.mp4")
    assert (clip.num_frames, clip.num_frames_claimed, clip.damage) == (30, 30, ())


HUGE = 2**63 + 5
"""More than a file system lets a reader go to."""
BEYOND = {
    "mp4": struct.pack(">I8s4x", 16, b"ftypisom") + struct.pack(">I4sQ", 1, b"free", HUGE) + bytes(99),
    "matroska": bytes.fromhex("1a45dfa380 1853806701ffffffffffffff ec01fffffffffffffe") + bytes(99),
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + struct.pack("<Q", HUGE) + bytes(99),
    "asf object": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + struct.pack("<Q6x16xQ", HUGE, HUGE) + bytes(99),
    "mxf": bytes.fromhex("060e2b34020501010d0102010102"),
}


@pytest.mark.parametrize("data", BEYOND.values(), ids=BEYOND)
def test_a_size_that_no_file_has_is_refused_alike_on_disk_and_in_memory(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    assert reason_of(tmp_path / "file") == reason_of(data) == "not_a_video"


def test_a_box_of_such_a_size_behind_a_video_is_no_matter(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "video.mp4", 30)
    whole = clip_of(path)
    path.write_bytes(path.read_bytes() + struct.pack(">I4sQ", 1, b"free", HUGE))
    clip = clip_of(path)
    assert (clip.jpegs, clip.damage) == (whole.jpegs, ())


def test_a_recording_that_ends_early_is_cut_off(tmp_path: Path) -> None:
    """Its size is not stated, as of a stream, and its duration is that of the header."""
    path = write_video(tmp_path / "live.mkv", moving_pictures(100), options={"g": "10"})
    data = bytearray(path.read_bytes())
    size = data.index(bytes.fromhex("18538067")) + 4
    data[size : size + 8] = b"\x01" + b"\xff" * 7
    assert clip_of(bytes(data)).damage == ()
    assert "cut_off" in clip_of(bytes(data[: len(data) // 2])).damage


@pytest.mark.parametrize("options", [[], ["-movflags", "frag_keyframe+empty_moov"]], ids=["plain", "fragments"])
@pytest.mark.parametrize("hidden", [(), (b"senc", b"saiz", b"saio")], ids=["stated by packets", "by the header alone"])
def test_encrypted_mp4(tmp_path: Path, options: list[str], hidden: tuple[bytes, ...]) -> None:
    source, target = write_numbered_video(tmp_path / "clear.mp4", 30), tmp_path / "encrypted.mp4"
    ffmpeg("-i", source, "-c", "copy", *options, *KEY, target)
    data = target.read_bytes()
    for kind in hidden:
        data = data.replace(kind, b"free")
    assert reason_of(data) == "encrypted"


@pytest.mark.parametrize(
    "name",
    ["sample_fragmented_widevine.mp4", "sample_av1c_fragmented_clearkey.mp4", "subsample_encrypted_altref.webm"],
)
def test_genuine_encrypted_videos(test_data: Path, name: str) -> None:
    assert reason_of(test_data / "zoo/androidx" / name) == "encrypted"


def test_scrambled_transport_stream(tmp_path: Path) -> None:
    data = bytearray(write_numbered_video(tmp_path / "clear.ts", 30).read_bytes())
    for start in range(0, len(data), 188):
        if (data[start + 1] & 0x1F) << 8 | data[start + 2] == 0x100:
            data[start + 3] |= 0x80
    assert reason_of(bytes(data)) == "encrypted"


def test_encrypted_asf(tmp_path: Path) -> None:
    data = write_numbered_video(tmp_path / "clear.wmv", 30, codec="wmv2").read_bytes()
    assert clip_of(data).damage == ()
    size, num_objects = int.from_bytes(data[16:24], "little"), int.from_bytes(data[24:28], "little")
    content = (4).to_bytes(4, "little") + b"data"
    inserted = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e") + (24 + len(content)).to_bytes(8, "little") + content
    head = data[:16] + (size + len(inserted)).to_bytes(8, "little") + (num_objects + 1).to_bytes(4, "little")
    assert reason_of(head + data[28:30] + inserted + data[30:]) == "encrypted"


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264.mp4", "libx264", {"g": "100", "bf": "2"}),
        ("h264.ts", "libx264", {"g": "100"}),
        ("mpeg4.avi", "mpeg4", {"g": "100"}),
        ("mpeg2.mpg", "mpeg2video", {"g": "100"}),
    ],
)
def test_frames_that_the_decoder_conceals_are_counted(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    data = bytearray(write_video(tmp_path / name, moving_pictures(100), codec=codec, options=options).read_bytes())
    chance = random.Random(0)
    for _ in range(8):  # a few bytes in the middle of the data, far from any header
        place = chance.randrange(len(data) // 3, len(data) // 2)
        data[place : place + 16] = chance.randbytes(16)
    auto, full = clip_of(bytes(data)), clip_of(bytes(data), FULL)
    assert auto.decode_road == "full"
    assert auto == full
    assert 0 < auto.num_concealed_frames < 75
    assert "concealed_frames" in auto.damage


def test_a_video_of_damaged_frames_is_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.avi", moving_pictures(60), codec="mpeg4", options={"g": "1", "qscale": "2"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for pos, size in places:
        assert pos is not None
        data[pos + 8 + size // 3 : pos + 8 + size // 2] = b"\x55" * (size // 2 - size // 3)
    assert reason_of(bytes(data)) == "damaged"


def test_two_video_pids_one_after_the_other(tmp_path: Path) -> None:
    first, second = (write_numbered_video(tmp_path / f"{name}.mp4", 20) for name in "ab")
    for path, pid in ((first, "0x100"), (second, "0x200")):
        ffmpeg("-i", path, "-c", "copy", "-mpegts_start_pid", pid, path.with_suffix(".ts"))
    joined = first.with_suffix(".ts").read_bytes() + second.with_suffix(".ts").read_bytes()
    clip = clip_of(joined)
    assert clip.num_frames == 20
    assert clip.damage == ("goes_on_in_another_track",)
    twice = first.with_suffix(".ts").read_bytes() * 2
    assert (clip_of(twice).num_frames, clip_of(twice).damage) == (40, ())


def test_rate_and_duration_come_from_the_frames_if_the_header_cannot_be_right(tmp_path: Path) -> None:
    path = tmp_path / "one_a_minute.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "g": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(number_picture(number), format="rgb24")
            frame.pts, frame.time_base = number * 60_000, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 25
    clip = clip_of(path)
    assert clip.fps == pytest.approx(1 / 60)
    assert clip.duration_seconds == pytest.approx(600)
    assert clip.damage == ()


def test_a_pack_tells_of_its_damaged_videos_and_older_packs_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    whole = write_video(data / "a/half.webm", moving_pictures(50), codec="libvpx", options={"g": "5"}).read_bytes()
    (data / "a/half.webm").write_bytes(whole[: len(whole) // 2])
    shards = tmp_path / "shards"
    assert main([str(data), str(shards)]) == 0
    assert "damaged   1 of the packed videos (samples.parquet: damage)" in capsys.readouterr().out
    rows = pq.read_table(shards / "samples.parquet").to_pylist()
    assert {row["source"]: row["damage"] for row in rows if row["damage"]} == {"a/half.webm": ["cut_off"]}
    assert main(["inspect", str(shards)]) == 0
    assert "damaged   1 cut_off" in capsys.readouterr().out

    new = ["num_concealed_frames", "damage", "num_source_sizes", "is_colour_approximate"]
    pq.write_table(pq.read_table(shards / "samples.parquet").drop_columns(new), shards / "samples.parquet")
    assert main(["inspect", str(shards)]) == 0
    assert "damaged   none" in capsys.readouterr().out
    older = {name: value for name, value in rows[0].items() if name not in new}
    assert SampleRow.model_validate(older).damage == ()
