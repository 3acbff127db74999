"""Segments of a video: the frames of a full decode that lie in them, whatever else is decoded in the same pass."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from functools import cache
from math import floor
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from configs.pack import ClipConfig, DecodeLimits
from packer.decoders.clip_stream import read_clips
from packer.decoders.pool import DecodePool
from packer.decoders.process import ProcessDecoder
from packer.video.catalog import Video
from packer.video.clip import Clip, read_clip
from packer.video.container import VideoError
from packer.video.jpeg import encode
from packer.video.planes import Resizer
from packer.video.segment import Segment
from packer.video.segments import read_segments
from tests.support.nodes import ray_nodes
from tests.support.videos import full_decode, moving_pictures, number_picture, write_numbered_video, write_video

ROOT = Path(__file__).parents[2]
LIMITS = DecodeLimits()
CLIP = ClipConfig(num_frames=5, short_side_px=64)
NUM_FRAMES = 150
VFR_MS = [*range(0, 2000, 40), *range(2000, 4000, 100), *range(5000, 30_000, 1000)]


def seconds(start: str | float, end: str | float | None = None) -> Segment:
    return Segment(Fraction(str(start)), None if end is None else Fraction(str(end)))


def frames(start: int, end: int | None = None) -> Segment:
    return Segment(Fraction(start), None if end is None else Fraction(end), "frames")


def write_vfr(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "20"})
        stream.height = stream.width = 96
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms, picture in zip(VFR_MS, moving_pictures(len(VFR_MS)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sized(path: Path) -> Path:
    """Writes a video that is small for 60 frames and then large, as raw H.264."""
    parts = []
    for number, (height_px, width_px) in enumerate([(36, 64), (72, 128)]):
        pictures = [number_picture(60 * number + i, height_px, width_px) for i in range(60)]
        parts.append(write_video(path.with_name(f"{number}.h264"), pictures, options={"g": "15"}).read_bytes())
    path.write_bytes(b"".join(parts))
    return path


@cache
def pictures() -> list[np.ndarray]:
    return moving_pictures(NUM_FRAMES)


X264 = {"g": "30", "bf": "3"}
OPEN = {**X264, "x264-params": "open-gop=1:b-pyramid=normal"}
KINDS: dict[str, Callable[[Path], Path]] = {
    "h264.mp4": lambda path: write_video(path, pictures(), options=X264),
    "open_groups.mp4": lambda path: write_video(path, pictures(), options=OPEN),
    "h264.mkv": lambda path: write_video(path, pictures(), fps=30, options=X264),
    "mpeg4.avi": lambda path: write_video(path, pictures(), codec="mpeg4", options={"g": "12"}),
    "h264.ts": lambda path: write_video(path, pictures(), options=X264),
    "vp9.webm": lambda path: write_video(path, pictures(), codec="libvpx-vp9", options={"cpu-used": "8", "g": "40"}),
    "hevc.mkv": lambda path: write_video(path, pictures(), codec="libx265", options={"x265-params": "log-level=none"}),
    "mjpeg.mov": lambda path: write_video(path, pictures(), codec="mjpeg", pixel_format="yuvj420p"),
    "vfr.mp4": write_vfr,
}
NEEDED = {"h264.mp4", "open_groups.mp4", "h264.mkv", "mpeg4.avi", "vfr.mp4"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("segments")
    return cache(lambda name: KINDS[name](folder / name))


def times_of(path: Path) -> list[Fraction]:
    """Returns when each frame is shown by PyAV alone, from the start of the file."""
    shown = list(full_decode(path))
    if path.suffix == ".avi":
        return [Fraction(number, 25) for number in range(len(shown))]
    with av.open(str(path)) as container:
        start = Fraction(container.start_time, av.time_base)
    return [frame.pts * frame.time_base - start for frame in shown]


def picked(inside: Sequence[int], num_frames: int) -> tuple[int, ...]:
    """Computes the rule anew: the nearest of equally spaced places, a half rounded up."""
    step = Fraction(len(inside) - 1, num_frames - 1)
    return tuple(inside[floor(number * step + Fraction(1, 2))] for number in range(num_frames))


def expected_jpegs(path: Path, clip: ClipConfig) -> Callable[[tuple[int, ...]], tuple[bytes, ...]]:
    """Returns what gives the JPEGs of frames that PyAV alone decoded."""
    with av.open(str(path)) as container:
        stream = SimpleNamespace(sample_aspect_ratio=container.streams.video[0].sample_aspect_ratio)
    resizer = Resizer(clip.short_side_px)
    jpegs = [
        encode(resizer(frame, stream, number), clip.jpeg_quality) for number, frame in enumerate(full_decode(path))
    ]
    return lambda indices: tuple(jpegs[index] for index in indices)


def random_segments(num_segments: int, length_seconds: float, seed: int) -> list[Segment]:
    """Returns segments of all lengths: overlapping, of one frame, from the first frame on, past the end, open, bad."""
    chosen = random.Random(seed)
    end_ms = round(1000 * length_seconds)
    result = [seconds(0), seconds(0, "0.001"), seconds(length_seconds - 0.2, length_seconds + 9), seconds("2/3", 2)]
    result += [frames(0, 1), frames(20, 21), frames(7, 99), frames(70), frames(10**6), seconds(length_seconds + 1)]
    for number in range(num_segments):
        start_ms = chosen.randrange(end_ms)
        length_ms = chosen.choice([40, 200, 1000, 4000])
        result.append(seconds(start_ms / 1000, None if number % 9 == 0 else (start_ms + length_ms) / 1000))
    return result


def outcomes(source: Path | str, segments: Sequence[Segment], clip: ClipConfig = CLIP) -> list[Clip | tuple[str, str]]:
    found = list(read_segments(source, segments, clip, LIMITS))
    return [(found_.reason, str(found_)) if isinstance(found_, VideoError) else found_ for found_ in found]


def assert_independent(source: Path | str, segments: Sequence[Segment], clip: ClipConfig = CLIP) -> None:
    """Checks that each segment gives the same alone, in any subset and in any order."""
    together = dict(zip(segments, outcomes(source, segments, clip), strict=True))
    chosen = random.Random(3)
    for subset in [*([segment] for segment in segments), *(chosen.sample(segments, 12) for _ in range(4))]:
        assert outcomes(source, subset, clip) == [together[segment] for segment in subset]


@pytest.mark.parametrize("name", KINDS)
def test_segments_hold_the_frames_of_a_full_decode(videos: Callable[[str], Path], name: str) -> None:
    path = videos(name)
    times, jpegs_of = times_of(path), expected_jpegs(path, CLIP)
    segments = random_segments(50, float(times[-1]), seed=1)
    for segment, outcome in zip(segments, outcomes(path, segments), strict=True):
        if segment.unit == "frames":
            inside = list(range(len(times)))[int(segment.start) : None if segment.end is None else int(segment.end)]
        else:
            end = times[-1] + 1 if segment.end is None else segment.end
            inside = [index for index, time in enumerate(times) if segment.start <= time < end]
        if not inside:
            assert not isinstance(outcome, Clip)
            assert outcome[0] == "bad_segment"
            continue
        assert isinstance(outcome, Clip)
        indices = picked(inside, CLIP.num_frames)
        assert (outcome.frame_indices, outcome.num_segment_frames) == (indices, len(inside))
        assert outcome.jpegs == jpegs_of(indices)
        assert outcome.frame_times_seconds == pytest.approx([float(times[index]) for index in indices])
        assert outcome.num_frames == len(times)
        assert outcome.decode_road == ("needed" if name in NEEDED else "full")
        assert outcome.sampled_by == "index"


@pytest.mark.parametrize("name", ["open_groups.mp4", "mpeg4.avi", "h264.ts"])
def test_a_segment_does_not_depend_on_the_others(videos: Callable[[str], Path], name: str) -> None:
    path = videos(name)
    assert_independent(path, random_segments(15, NUM_FRAMES / 25, seed=2))
    assert_independent(path, random_segments(15, NUM_FRAMES / 25, seed=2), ClipConfig(num_frames=3, sampling="time"))


def test_a_segment_of_all_frames_is_the_whole_video(videos: Callable[[str], Path]) -> None:
    for name in ("h264.mp4", "vfr.mp4", "h264.ts"):
        for clip in (CLIP, CLIP.model_copy(update={"sampling": "time"})):
            whole = read_clip(videos(name), clip, LIMITS)
            for segment in (seconds(0), frames(0)):
                (part,) = outcomes(videos(name), [segment], clip)
                assert isinstance(part, Clip)
                assert (part.jpegs, part.frame_indices) == (whole.jpegs, whole.frame_indices)
                assert (part.num_frames, part.fps, part.sampled_by) == (whole.num_frames, whole.fps, whole.sampled_by)
                assert (part.start_seconds, part.end_seconds) == (0.0, None)
            assert whole.frame_times_seconds == ()


def test_bounds_are_those_of_the_label(videos: Callable[[str], Path]) -> None:
    by_seconds, by_frames, last = outcomes(videos("h264.mkv"), [seconds("0.5", 2), frames(30, 60), frames(140, 999)])
    assert isinstance(by_seconds, Clip)
    assert isinstance(by_frames, Clip)
    assert isinstance(last, Clip)
    assert (by_seconds.start_seconds, by_seconds.end_seconds) == (0.5, 2.0)
    assert (by_frames.start_seconds, by_frames.end_seconds) == pytest.approx((1.0, 2.0))
    assert (last.start_seconds, last.end_seconds) == pytest.approx((140 / 30, 5.0), abs=0.002)
    assert last.num_segment_frames == 10


@pytest.mark.parametrize(
    ("segment", "sentence"),
    [
        (seconds(3, 3), "the segment is empty: it ends where it begins (3 to 3 seconds); the video has 150 frames, "),
        (seconds(3, 2), "the segment ends before it begins (3 to 2 seconds); the video has 150 frames, "),
        (frames(-1, 9), "the segment begins at -1 frames, before the video; the video has 150 frames, "),
        (seconds(60, 64), "the segment (60 to 64 seconds) holds no frame; the video has 150 frames, 6.000 seconds"),
        (frames(150), "the segment (150 to the end frames) holds no frame; the video has 150 frames"),
        (seconds("1.001", "1.002"), "the segment (1.001 to 1.002 seconds) holds no frame"),
    ],
)
def test_bad_segments(videos: Callable[[str], Path], segment: Segment, sentence: str) -> None:
    bad, good = outcomes(videos("h264.mp4"), [segment, seconds(1, 2)])
    assert not isinstance(bad, Clip)
    assert bad[0] == "bad_segment"
    assert bad[1].startswith(sentence)
    assert isinstance(good, Clip)


def test_what_is_wrong_with_the_video_is_the_outcome_of_every_segment(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(bytes(3000))
    found = outcomes(tmp_path / "no.mp4", [seconds(0, 1), seconds(3, 3)])
    assert [reason for reason, _ in found] == ["not_a_video"] * 2


def test_frames_without_times_count_at_the_mean_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", moving_pictures(60), options={"bf": "0"})
    (clip,) = outcomes(path, [seconds(1, 2)])
    assert isinstance(clip, Clip)
    assert clip.sampled_by == "rate"
    assert clip.frame_indices == picked(range(25, 50), 5)
    assert clip.frame_times_seconds[0] == 1.0


def write_folder(folder: Path, numbers: Sequence[int]) -> Path:
    folder.mkdir()
    for number in numbers:
        Image.fromarray(number_picture(number)).save(folder / f"img_{number:05d}.png")
    return folder


def test_segments_of_a_frame_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames", range(1, 41))
    clip, single, by_seconds = outcomes(f"{folder}/", [frames(10, 30), frames(39, 80), seconds(1, 2)])
    assert isinstance(clip, Clip)
    assert isinstance(single, Clip)
    assert (clip.frame_indices, clip.num_segment_frames) == (picked(range(10, 30), 5), 20)
    assert (clip.frame_times_seconds, clip.start_seconds, clip.end_seconds) == ((), None, None)
    assert single.frame_indices == (39,) * 5
    assert by_seconds == (
        "bad_segment",
        "the segment is in seconds, but the video has neither times nor a rate: give it in frames",
    )
    full = read_clip(f"{folder}/", ClipConfig(num_frames=40, short_side_px=64), LIMITS)
    assert clip.jpegs == tuple(full.jpegs[index] for index in clip.frame_indices)


def test_a_damaged_picture_costs_only_the_segments_that_need_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames", range(60))
    (folder / "img_00024.png").write_bytes(b"\x89PNG no more")
    segments = [frames(start, start + 9) for start in range(0, 60, 4)]
    clips = outcomes(f"{folder}/", segments)
    paths = [clip.decode_road for clip in clips if isinstance(clip, Clip)]
    assert 0 < paths.count("full") < paths.count("needed")
    assert_independent(f"{folder}/", segments)


def test_the_size_of_a_clip_is_that_of_its_own_frames(tmp_path: Path) -> None:
    path = write_sized(tmp_path / "sized.h264")
    segments = [frames(start, start + 20) for start in range(0, 100, 8)]
    clips = outcomes(path, segments)
    sizes = [(clip.height_px, clip.width_px) for clip in clips if isinstance(clip, Clip)]
    assert sizes[0] == (36, 64)
    assert sizes[-1] == (64, 114)
    assert_independent(path, segments)
    only_large = read_clip(path.with_name("1.h264"), CLIP, LIMITS)
    (part,) = outcomes(path, [frames(60)])
    assert isinstance(part, Clip)
    assert part.jpegs == only_large.jpegs


def damaged(path: Path, target: Path, is_victim: Callable[["av.Packet"], bool], seed: int) -> Path:
    """Overwrites the middle of one of the packets that qualify."""
    chosen = random.Random(seed)
    with av.open(str(path)) as container:
        victims = [packet for packet in container.demux(video=0) if packet.size > 200 and is_victim(packet)]
    victim = chosen.choice(victims[len(victims) // 4 : -len(victims) // 4])
    data = bytearray(path.read_bytes())
    begin = victim.pos + victim.size // 3
    data[begin : begin + 60] = chosen.randbytes(60)
    target.write_bytes(data)
    return target


def is_reference(packet: "av.Packet") -> bool:
    """Tells whether a packet of H.264 in MP4's form holds a picture that others are predicted from."""
    data, start = bytes(packet), 0
    while data[start + 4] & 31 not in (1, 5):
        start += 4 + int.from_bytes(data[start : start + 4], "big")
    return bool(data[start + 4] & 96)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("name", "is_victim"),
    [
        ("h264.mp4", is_reference),
        ("h264.mp4", lambda packet: not is_reference(packet)),
        ("open_groups.mp4", is_reference),
        ("open_groups.mp4", lambda packet: not is_reference(packet)),
        ("mpeg4.avi", lambda packet: True),
    ],
    ids=["reference", "other", "open reference", "open other", "mpeg4"],
)
def test_damage_costs_only_the_segments_that_need_it(
    videos: Callable[[str], Path], tmp_path: Path, name: str, seed: int, is_victim: Callable[["av.Packet"], bool]
) -> None:
    path = damaged(videos(name), tmp_path / name, is_victim, seed)
    chosen = random.Random(seed)
    segments = [frames(start, start + chosen.choice([1, 5, 20])) for start in chosen.sample(range(NUM_FRAMES), 24)]
    assert_independent(path, segments)
    full = outcomes(path, segments, CLIP.model_copy(update={"decode": "full"}))
    for clip, expected in zip(outcomes(path, segments), full, strict=True):
        assert isinstance(clip, Clip)
        assert isinstance(expected, Clip)
        assert clip.jpegs == expected.jpegs
        assert clip.damage == (() if clip.decode_road == "needed" else expected.damage)


def test_some_segments_of_a_damaged_video_are_decoded_in_full(videos: Callable[[str], Path], tmp_path: Path) -> None:
    path = damaged(videos("mpeg4.avi"), tmp_path / "a.avi", lambda _: True, 0)
    clips = outcomes(path, [frames(start, start + 5) for start in range(0, NUM_FRAMES, 5)])
    paths = [clip.decode_road for clip in clips if isinstance(clip, Clip)]
    assert 0 < paths.count("full") <= 3
    assert len(paths) == NUM_FRAMES // 5


def test_damage_without_a_needed_path(videos: Callable[[str], Path], tmp_path: Path) -> None:
    whole = videos("vp9.webm")
    path = damaged(whole, tmp_path / "vp9.webm", lambda _: True, 1)
    assert_independent(path, random_segments(12, NUM_FRAMES / 25, seed=5))


@pytest.fixture
def long_video(tmp_path: Path) -> Path:
    """2,500 frames, of which no two are alike; 22 MB of JPEGs at quality 100."""
    return write_video(tmp_path / "long.mp4", moving_pictures(2500), options={"g": "50", "preset": "ultrafast"})


def test_memory_does_not_grow_with_the_segments(long_video: Path) -> None:
    clip = ClipConfig(num_frames=16, short_side_px=0, jpeg_quality=100)
    segments = [frames(start, start + 200) for start in range(2000)]
    peaks = []
    for part in (segments[:20], segments):
        others = set(psutil.Process().children())
        with DecodePool(1, LIMITS) as pool:
            (process,) = set(psutil.Process().children()) - others
            before = psutil.Process().memory_info().rss
            clips = pool.submit_segments(str(long_video), part, clip).result()
            grown = psutil.Process().memory_info().rss - before
            status = Path(f"/proc/{process.pid}/status").read_text()
            peaks.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
            num_bytes = sum(sum(map(len, outcome.jpegs)) for outcome in clips if isinstance(outcome, Clip))
    assert num_bytes > 200 * 2**20
    assert peaks[1] - peaks[0] < 60 * 2**20
    assert grown < 60 * 2**20


def videos_of(path: Path, segments: Sequence[Segment | None]) -> Iterator[Video]:
    for segment in segments:
        yield Video(str(path), path.name + (segment.fragment if segment else ""), "class", 1, segment)


def test_clips_come_in_order_and_one_file_is_one_task(videos: Callable[[str], Path], tmp_path: Path) -> None:
    no_video = tmp_path / "no.mp4"
    no_video.write_bytes(bytes(2000))
    first, second = videos("h264.mp4"), videos("h264.ts")
    parts = [seconds(1, 2), seconds(2, 3), frames(500)]
    asked = [
        *videos_of(first, [*parts, None]),
        *videos_of(no_video, parts),
        *videos_of(second, [None, *parts]),
        *videos_of(first, parts[:1]),
    ]
    with DecodePool(2, LIMITS) as pool:
        found = list(read_clips(pool, asked, CLIP, window=3))
    expected: list[Clip | tuple[str, str]] = [
        *outcomes(first, parts),
        read_clip(first, CLIP, LIMITS),
        *outcomes(no_video, parts),
        read_clip(second, CLIP, LIMITS),
        *outcomes(second, parts),
        *outcomes(first, parts[:1]),
    ]
    assert [(one.reason, str(one)) if isinstance(one, VideoError) else one for one in found] == expected


def test_a_decoder_that_is_left_early_answers_the_next_video_rightly(videos: Callable[[str], Path]) -> None:
    decoder = ProcessDecoder(LIMITS)
    try:
        with closing(decoder.read_segments(str(videos("h264.mp4")), [seconds(1), seconds(2)], CLIP)) as left_early:
            next(left_early)
        assert decoder.read_clip(str(videos("h264.ts")), CLIP) == read_clip(videos("h264.ts"), CLIP, LIMITS)
    finally:
        decoder.close()


def test_a_decoder_that_dies_costs_the_file_that_it_read(videos: Callable[[str], Path], tmp_path: Path) -> None:
    endless = write_numbered_video(tmp_path / "endless.ts", 30, height_px=720, width_px=1280)
    endless.write_bytes(endless.read_bytes() * 450)
    others = set(psutil.Process().children())
    with DecodePool(1, LIMITS) as pool:
        (process,) = set(psutil.Process().children()) - others
        pool.submit_segments(str(videos("h264.mp4")), [seconds(0)], CLIP).result(60)
        doomed = pool.submit_segments(str(endless), [seconds(1, 2)], CLIP)
        while not doomed.running():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(VideoError, match="the decoder crashed"):
            doomed.result(60)
        again = list(pool.submit_segments(str(videos("h264.mp4")), [seconds(1, 2)], CLIP).result(60))
    assert again == outcomes(videos("h264.mp4"), [seconds(1, 2)])


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    endless = write_numbered_video(tmp_path / "endless.ts", 30, height_px=720, width_px=1280)
    endless.write_bytes(endless.read_bytes() * 450)
    segments = [seconds(1, 2), seconds(3, 4)]
    with DecodePool(1, DecodeLimits(timeout_seconds=2)) as pool:
        found = list(read_clips(pool, list(videos_of(endless, segments)), CLIP, window=2))
    assert [outcome.reason for outcome in found if isinstance(outcome, VideoError)] == ["timeout", "timeout"]


ON_A_CLUSTER = """
import sys
from fractions import Fraction
from pathlib import Path
from configs.pack import ClipConfig, DecodeLimits
from packer.decoders.clip_stream import open_pool, read_clips
from packer.video.catalog import Video
from packer.video.container import VideoError
from packer.video.segment import Segment

whole, broken, address = sys.argv[1:]
segments = [Segment(Fraction(start), Fraction(start + 1)) for start in range(8)]
videos = [Video(path, path + one.fragment, "a", 1, one) for path in (whole, broken) for one in segments]
videos.append(Video(whole, whole, "a", 1))
found = []
for cluster in ("", address):
    with open_pool(DecodeLimits(), 1, 2, cluster) as pool:
        clips = read_clips(pool, videos, ClipConfig(num_frames=4), 2)
        found.append([(clip.reason, str(clip)) if isinstance(clip, VideoError) else clip for clip in clips])
assert found[0] == found[1]
print(sum(isinstance(clip, tuple) for clip in found[0]), "of", len(found[0]), "have no clip")
"""


@pytest.mark.integration
def test_a_ray_cluster_gives_the_same_clips(videos: Callable[[str], Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(2000))
    with ray_nodes(1) as nodes:
        arguments = [str(videos("h264.mp4")), str(broken), nodes.environment["RAY_ADDRESS"]]
        command = [sys.executable, "-c", ON_A_CLUSTER, *arguments]
        done = subprocess.run(command, env=nodes.environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "10 of 17 have no clip" in done.stdout
