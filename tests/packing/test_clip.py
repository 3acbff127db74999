"""Which frames a clip holds, and what becomes of files that give none."""

import math
import random
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import pick_frames, read_clip
from packer.video.container import VideoError
from packer.video.jpeg import decode_frames
from packer.video.planes import stored_size
from packer.video.sampling import frame_indices
from tests.support.programs import system_program
from tests.support.videos import number_picture, read_number, write_numbered_video, write_video

LIMITS = DecodeLimits()


@pytest.mark.parametrize(
    ("available", "wanted", "indices"),
    [
        (10, 4, (0, 3, 6, 9)),
        (10, 1, (4,)),
        (3, 5, (0, 1, 1, 2, 2)),
        (1, 3, (0, 0, 0)),
        (10, 16, (0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7, 7, 8, 8, 9)),
        (100_000, 2, (0, 99_999)),
    ],
)
def test_frame_indices_examples(available: int, wanted: int, indices: tuple[int, ...]) -> None:
    assert frame_indices(available, wanted) == indices


def test_frame_indices_are_the_nearest_to_equal_spacing() -> None:
    for available in range(1, 120):
        for wanted in range(2, 40):
            indices = frame_indices(available, wanted)
            exact = [Fraction(i * (available - 1), wanted - 1) for i in range(wanted)]
            assert indices == tuple(math.floor(place + Fraction(1, 2)) for place in exact)


@pytest.mark.parametrize(("available", "wanted"), [(0, 16), (16, 0)])
def test_frame_indices_refuses(available: int, wanted: int) -> None:
    with pytest.raises(ValueError, match=f"num_frames_available \\({available}\\) and num_frames \\({wanted}\\)"):
        frame_indices(available, wanted)


@pytest.mark.parametrize(
    ("size", "aspect", "short_side", "stored"),
    [
        ((240, 320), Fraction(1), 128, (128, 170)),
        ((576, 720), Fraction(16, 15), 0, (540, 720)),
        ((576, 720), Fraction(16, 15), 128, (128, 170)),
        ((480, 720), Fraction(8, 9), 0, (480, 640)),
        ((100, 64), Fraction(1), 128, (100, 64)),
        ((63, 65), Fraction(1), 0, (62, 64)),
        ((1, 1), Fraction(1), 128, (1, 1)),
        ((2, 4000), Fraction(1), 128, (2, 4000)),
        ((2000, 3), Fraction(1), 128, (2000, 2)),
    ],
)
def test_stored_size(size: tuple[int, int], aspect: Fraction, short_side: int, stored: tuple[int, int]) -> None:
    assert stored_size(*size, aspect, short_side) == stored


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b_frames.mp4", "libx264", {"bf": "3", "g": "12"}),
        ("b_frames.mkv", "libx264", {"bf": "3", "g": "12"}),
        ("b_frames.ts", "libx264", {"bf": "3", "g": "12"}),
        ("raw.h264", "libx264", {"bf": "2"}),
        ("b_frames.avi", "mpeg4", {"bf": "2", "g": "12"}),
        ("intra.mkv", "ffv1", {}),
        ("mpeg2.mpg", "mpeg2video", {"bf": "2"}),
        ("vp9.webm", "libvpx-vp9", {"deadline": "realtime"}),
    ],
)
@pytest.mark.parametrize("num_frames", [1, 5, 61])
def test_clip_holds_the_frames_of_the_rule(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], num_frames: int
) -> None:
    path = write_numbered_video(tmp_path / name, num_frames, codec=codec, options=options)
    clip = read_clip(path, ClipConfig(), LIMITS)
    assert clip.num_frames == num_frames
    assert clip.frame_indices == frame_indices(num_frames, 16)
    assert tuple(read_number(frame) for frame in decode_frames(clip.jpegs)) == clip.frame_indices


def test_path_and_bytes_give_the_same_clip(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "video.mp4", 30, height_px=200, width_px=300)
    clip = read_clip(path, ClipConfig(), LIMITS)
    assert clip == read_clip(path.read_bytes(), ClipConfig(), LIMITS) == read_clip(str(path), ClipConfig(), LIMITS)
    assert (clip.height_px, clip.width_px) == (128, 192)
    assert (clip.source_height_px, clip.source_width_px) == (200, 300)
    assert (clip.fps, clip.duration_seconds) == (25.0, 1.2)


@pytest.mark.parametrize(("height_px", "width_px"), [(1, 1), (3, 5), (2, 2000), (99, 101)])
def test_odd_and_tiny_sizes(tmp_path: Path, height_px: int, width_px: int) -> None:
    picture = np.full((height_px, width_px, 3), (200, 60, 30), np.uint8)
    path = write_video(tmp_path / "video.mkv", [picture] * 3, codec="ffv1", pixel_format="bgr0")
    frames = decode_frames(read_clip(path, ClipConfig(num_frames=2), LIMITS).jpegs)
    assert frames.shape == (2, *stored_size(height_px, width_px, Fraction(1), 128), 3)
    assert np.abs(frames.astype(int) - (200, 60, 30)).max() <= 4


def test_pixels_are_squared(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wide.mp4", [number_picture(5)] * 3, pixel_aspect=Fraction(2))
    clip = read_clip(path, ClipConfig(), LIMITS)
    assert (clip.height_px, clip.width_px) == (32, 64)


@pytest.mark.parametrize(
    ("text", "extension"),
    [
        ("ffconcat version 1.0\nfile {video}\n", "avi"),
        ("ffconcat version 1.0\nfile {video}\n", "mp4"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n", "avi"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{video}\n#EXT-X-ENDLIST\n", "m3u8"),
        ("a line of text\n" * 400, "avi"),
        ("", "mp4"),
    ],
)
def test_texts_are_no_videos_and_open_none(tmp_path: Path, text: str, extension: str) -> None:
    video = write_numbered_video(tmp_path / "video.mp4", 5)
    path = tmp_path / f"text.{extension}"
    path.write_text(text.format(video=video))
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError) as caught:
            read_clip(source, ClipConfig(), LIMITS)
        assert caught.value.reason == "not_a_video"
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "webp", "avif"])
def test_pictures_are_no_videos(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.avi"
    Image.fromarray(number_picture(7)).save(path, format=kind)
    with pytest.raises(VideoError) as caught:
        read_clip(path, ClipConfig(), LIMITS)
    assert caught.value.reason == "not_a_video"


def test_animated_gif_is_a_video(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(number_picture(number)) for number in range(9))
    first.save(tmp_path / "animation.gif", save_all=True, append_images=others)
    frames = decode_frames(read_clip(tmp_path / "animation.gif", ClipConfig(num_frames=3), LIMITS).jpegs)
    assert [read_number(frame) for frame in frames] == [0, 4, 8]


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="holds no video stream"):
        read_clip(tmp_path / "sound.mp4", ClipConfig(), LIMITS)


def test_a_video_of_which_nothing_is_shown_is_undecodable(tmp_path: Path) -> None:
    data = write_numbered_video(tmp_path / "video.mp4", 5).read_bytes()
    start = data.index(b"elst") + 16  # when in the video's time the one edit begins; -1: it shows nothing
    empty = data[:start] + b"\xff" * 4 + data[start + 4 :]
    with pytest.raises(VideoError, match="not one frame of the video can be decoded") as raised:
        read_clip(empty, ClipConfig(), LIMITS)
    assert raised.value.reason == "undecodable"


def test_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="the file cannot be read") as caught:
        read_clip(tmp_path / "none.mp4", ClipConfig(), LIMITS)
    assert caught.value.reason == "unreadable"


def test_folder_without_pictures_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="the folder holds no numbered pictures") as caught:
        read_clip(tmp_path, ClipConfig(), LIMITS)
    assert caught.value.reason == "not_a_video"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (DecodeLimits(max_frames=29), r"more than 29 frames \(limits.max_frames\)"),
        (DecodeLimits(max_pixels=64 * 63), r"64 x 64 pixels, more than 4032 \(limits.max_pixels\)"),
    ],
)
def test_limits(tmp_path: Path, limits: DecodeLimits, message: str) -> None:
    path = write_numbered_video(tmp_path / "video.mp4", 30)
    with pytest.raises(VideoError, match=message) as caught:
        read_clip(path, ClipConfig(), limits)
    assert caught.value.reason == "too_large"


def test_damage_costs_frames_and_not_the_video(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "video.avi", 60, codec="mpeg4", options={"g": "5"})
    whole = path.read_bytes()
    cut = read_clip(whole[: len(whole) * 4 // 5], ClipConfig(), LIMITS)
    assert 0 < cut.num_frames < 60
    assert cut.num_frames_claimed == 60
    assert tuple(read_number(frame) for frame in decode_frames(cut.jpegs)) == cut.frame_indices


def test_an_mp4_without_its_end_is_truncated(tmp_path: Path) -> None:
    whole = write_numbered_video(tmp_path / "video.mp4", 30).read_bytes()
    assert whole.index(b"mdat") < whole.index(b"moov")
    for num_bytes in (whole.index(b"mdat") + 100, whole.index(b"moov") - 4, len(whole) - 900, len(whole) - 100):
        with pytest.raises(VideoError, match="ends before its index does") as caught:
            read_clip(whole[:num_bytes], ClipConfig(), LIMITS)
        assert caught.value.reason == "truncated"
    for damaged in (whole.replace(b"mvhd", b"\0\0\0\0").replace(b"trak", b"\0\0\0\0"), b"text" + whole[:100]):
        with pytest.raises(VideoError) as caught:
            read_clip(damaged, ClipConfig(), LIMITS)
        assert caught.value.reason != "truncated"


def test_mutated_videos_raise_nothing_but_video_error(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "ffv1"), ("a.webm", "libvpx-vp9")):
        whole = write_numbered_video(tmp_path / name, 12, codec=codec).read_bytes()
        for seed in range(25):
            chance = random.Random(seed)
            mutated = bytearray(whole)
            for _ in range(1 + seed):
                mutated[chance.randrange(len(mutated))] = chance.randrange(256)
            try:
                clip = read_clip(bytes(mutated), ClipConfig(), DecodeLimits(max_pixels=2**20, max_frames=1000))
            except VideoError as error:
                assert error.reason  # noqa: PT017
            else:
                assert len(clip.jpegs) == 16


def luma(frame: av.VideoFrame, *_: object) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width].copy()


def ffmpeg_pixels(path: Path, *options: str, pixel_format: str) -> NDArray[np.uint8]:
    """All pixels of a video as the ffmpeg program decodes it."""
    command = [system_program("ffmpeg"), "-v", "error", *options, "-i", str(path), "-fps_mode", "passthrough"]
    output = ["-vf", "extractplanes=y"] if pixel_format == "gray" else []
    done = subprocess.run(
        [*command, *output, "-f", "rawvideo", "-pix_fmt", pixel_format, "-"], check=True, capture_output=True
    )
    return np.frombuffer(done.stdout, np.uint8)


@pytest.mark.parametrize(
    "pattern", ["known/hmdb51/*.avi", "known/ucf101/*.avi", "wagon/bridge_up/0*.mp4", "zoo/made/rotate*.mp4"]
)
def test_real_frames_equal_the_ffmpeg_programs(test_data: Path, pattern: str) -> None:
    for path in sorted(test_data.glob(pattern)):
        picked = pick_frames(path, ClipConfig(), LIMITS, luma)
        height_px, width_px = picked.frames[0].shape
        pixels = ffmpeg_pixels(path, "-noautorotate", pixel_format="gray").reshape(-1, height_px, width_px)
        assert len(pixels) == picked.video.num_frames
        differences = np.abs(np.stack(picked.frames).astype(int) - pixels[list(picked.frame_indices)])
        # MPEG-4 part 2 leaves the inverse DCT's rounding open.
        assert differences.max() <= (0 if path.suffix == ".mp4" else 2), path.name


@pytest.mark.parametrize("name", ["rotate90.mp4", "rotate180.mp4"])
def test_rotation_is_applied_as_the_ffmpeg_program_does(test_data: Path, name: str) -> None:
    path = test_data / "zoo/made" / name
    clip = read_clip(path, ClipConfig(num_frames=2, short_side_px=0, jpeg_quality=100), LIMITS)
    frame = decode_frames(clip.jpegs)[0].astype(int)
    turned = ffmpeg_pixels(path, pixel_format="rgb24").reshape(-1, clip.height_px, clip.width_px, 3)[0]
    assert np.abs(frame - turned).mean() < 4
