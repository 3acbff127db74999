"""A frame that is flagged as interlaced is scaled as one picture, whatever the codec."""

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import read_clip
from packer.video.jpeg import decode_frames
from packer.video.planes import Mender, Orientation, Planes, to_planes
from tests.support.programs import system_program

FLAGGED = {
    "dv.avi": "-c:v dvvideo -s 720x576 -pix_fmt yuv420p",
    "dv_ntsc.dv": "-c:v dvvideo -s 720x480 -r 30000/1001 -pix_fmt yuv411p",
    "mpeg2.mpg": "-c:v mpeg2video -q:v 2 -flags +ildct+ilme",
    "mpeg2_422.ts": "-c:v mpeg2video -q:v 2 -flags +ildct+ilme -pix_fmt yuv422p",
    "mbaff.mkv": "-c:v libx264 -qp 4 -flags +ildct+ilme -x264-params tff=1",
    "mbaff.mp4": "-c:v libx264 -qp 4 -flags +ildct+ilme -x264-params bff=1:bframes=2",
    "lossless.mkv": "-c:v ffv1 -flags +ildct -field_order tt -top 1",
    "mpeg4.avi": "-c:v mpeg4 -q:v 2 -flags +ildct+ilme",
}


def write_flagged(path: Path, options: str, source: str = "testsrc2=s=192x144:r=25") -> Path:
    command = [system_program("ffmpeg"), "-v", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", "6"]
    subprocess.run([*command, "-vf", "setfield=tff", *options.split(), str(path)], check=True)
    return path


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def never_flagged(frame: av.VideoFrame) -> av.VideoFrame:
    """The same pixels in a new frame."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for old, new in zip(frame.planes, copy.planes, strict=True):
        rows = np.frombuffer(old, np.uint8).reshape(old.height, old.line_size)
        np.frombuffer(new, np.uint8).reshape(new.height, new.line_size)[:, : old.width] = rows[:, : old.width]
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    return copy


def scaled(frame: av.VideoFrame) -> Planes:
    return to_planes(frame, VideoReformatter(), frame.height // 2, frame.width // 2, Orientation())


@pytest.mark.parametrize("name", FLAGGED)
def test_scaled_as_the_same_pixels_in_a_frame_that_was_never_flagged(tmp_path: Path, name: str) -> None:
    frames = frames_of(write_flagged(tmp_path / name, FLAGGED[name]))
    mender = Mender()
    assert frames
    for frame in frames:
        assert frame.interlaced_frame
        got, wanted = scaled(mender.mended(frame)), scaled(never_flagged(frame))
        # PyAV cannot copy where the chroma samples lie; FFV1 alone does not state it.
        num_planes = 3 if name == "lossless.mkv" else 1
        assert all(np.array_equal(*pair) for pair in zip(got[:num_planes], wanted, strict=False))
        assert not np.array_equal(scaled(frame)[0], wanted[0])  # swscale alone scales the fields apart


def test_a_frame_that_is_not_flagged_is_left_alone(tmp_path: Path) -> None:
    frames = frames_of(write_flagged(tmp_path / "plain.mp4", "-c:v libx264 -vf setfield=prog"))
    mender = Mender()
    assert all(mender.mended(frame) is frame for frame in frames)


def picture_of_lines() -> NDArray[np.uint8]:
    picture = np.full((144, 192), 16, np.uint8)
    picture[1::2] = 235
    return picture


@pytest.mark.parametrize(("codec", "name"), [("mpeg2video", "lines.mpg"), ("libx264", "lines.mp4")])
def test_lines_of_black_and_white_shrink_to_gray(tmp_path: Path, codec: str, name: str) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        options = {"flags": "+ildct+ilme", "qscale": "1", "qp": "1", "x264-params": "tff=1"}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 144, 192, "yuv420p"
        for number in range(4):
            frame = av.VideoFrame(192, 144, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            np.frombuffer(frame.planes[0], np.uint8).reshape(144, -1)[:, :192] = picture_of_lines()
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert all(frame.interlaced_frame for frame in frames_of(tmp_path / name))
    clip = read_clip(tmp_path / name, ClipConfig(num_frames=4, short_side_px=72), DecodeLimits())
    assert np.abs(decode_frames(clip.jpegs).astype(int) - 128).max() <= 3
