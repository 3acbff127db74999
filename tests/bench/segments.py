"""Rows: 100 segments of 4 s of an hour of video, as clips of 16 JPEGs in memory, start-up of Python left out."""

import random
import subprocess
from fractions import Fraction
from pathlib import Path

import av

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import Clip
from packer.video.segment import Segment
from packer.video.segments import read_segments
from tests.bench.measure import Cost, Row, run_measured, stopwatch
from tests.bench.videos import make_hours

NUM_SEGMENTS = 100
SEGMENT_SECONDS = 4
FPS = 25
GOALS = {"decoding the file whole": 10, "ffmpeg program": 2}


def rows(num_rounds: int, folder: Path) -> list[Row]:
    return [row for name, hour in make_hours(folder).items() for row in _rows_of(name, hour, num_rounds, folder)]


def _rows_of(name: str, hour: Path, num_rounds: int, folder: Path) -> list[Row]:
    chosen = random.Random(0)
    starts = [Fraction(chosen.randrange(3590 * FPS), FPS) for _ in range(NUM_SEGMENTS)]
    segments = [Segment(start, start + SEGMENT_SECONDS) for start in starts]
    clips = list(read_segments(hour, segments, ClipConfig(), DecodeLimits()))
    commands = [
        _command(hour, start, clip) for start, clip in zip(starts, clips, strict=True) if isinstance(clip, Clip)
    ]
    num_same = sum(
        _times_by_ffmpeg(command) == clip.frame_times_seconds
        for command, clip in zip(commands, clips, strict=True)
        if isinstance(clip, Clip)
    )
    contenders = {
        "ours": lambda: _ours(hour, segments),
        "decoding the file whole": lambda: _whole(hour),
        "ffmpeg program": lambda: _by_ffmpeg(commands, folder),
    }
    costs: dict[str, list[Cost]] = {contender: [] for contender in contenders}
    for _ in range(num_rounds):
        for contender, run in contenders.items():
            costs[contender].append(run())
    work = {
        "decoding the file whole": "unlike work: the file is decoded by PyAV on one thread, and its frames are dropped",
        "ffmpeg program": "same work: 16 JPEGs, short side 128, by 100 calls with -ss before -i, on one thread; "
        f"the same frames in {num_same} of {NUM_SEGMENTS} segments",
    }
    return [
        Row(f"segments, {name}", work[peer], "segment", costs["ours"], peer, costs[peer], goal)
        for peer, goal in GOALS.items()
    ]


def _ours(hour: Path, segments: list[Segment]) -> Cost:
    with stopwatch(NUM_SEGMENTS) as cost:
        for _ in read_segments(hour, segments, ClipConfig(), DecodeLimits()):
            pass
    return cost[0]


def _whole(hour: Path) -> Cost:
    with stopwatch(NUM_SEGMENTS) as cost, av.open(str(hour)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass
    return cost[0]


def _command(hour: Path, start: Fraction, clip: Clip) -> list[str]:
    """Returns the call that makes a segment's frames; after the seek, ffmpeg counts frames from the segment's first."""
    first = clip.frame_indices[0]
    wanted = "+".join(f"eq(n\\,{index - first})" for index in clip.frame_indices)
    reading = ["-threads", "1", "-copyts", "-ss", f"{float(start):.3f}", "-i", str(hour), "-map", "0:v"]
    writing = ["-vf", f"select={wanted},scale=-2:128", "-fps_mode", "passthrough", "-frames:v", "16", "-threads", "1"]
    return ["ffmpeg", "-v", "error", "-y", *reading, *writing]


def _times_by_ffmpeg(command: list[str]) -> tuple[float, ...]:
    options = ["-enc_time_base", "1:1000", "-f", "framecrc", "-"]
    listed = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True).stdout
    return tuple(int(line.split(",")[2]) / 1000 for line in listed.splitlines() if not line.startswith("#"))


def _by_ffmpeg(commands: list[list[str]], folder: Path) -> Cost:
    target = str(folder / "frame%02d.jpg")
    costs = [run_measured([*command, "-c:v", "mjpeg", "-q:v", "3", target], 1, {}) for command in commands]
    return Cost(sum(cost.wall_seconds for cost in costs), sum(cost.cpu_seconds for cost in costs), NUM_SEGMENTS)
