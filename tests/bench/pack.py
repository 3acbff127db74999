"""Rows: `python -m packer` against the tutorial's way of storing frames, whole commands, one worker each."""

import shutil
import sys
from pathlib import Path

from tests.bench.measure import Contender, Cost, Row, interleave, run_measured
from tests.bench.videos import make_sets

ROOT = Path(__file__).parent.parent.parent
PEER_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
SHORT_SIDE_PX = 128


def rows(num_rounds: int, folder: Path) -> list[Row]:
    result = []
    for label, videos in make_sets(folder / "videos", num_per_class=25).items():
        num_videos = sum(1 for _ in videos.glob("*/*"))
        result += _rows_of_set(label, videos, num_videos, num_rounds, folder)
    return result


def _rows_of_set(label: str, videos: Path, num_videos: int, num_rounds: int, folder: Path) -> list[Row]:
    costs = interleave(
        {
            "ours": _packer(videos, folder / "shards", num_videos),
            "tutorial, same size": _tutorial(videos, folder / "frames", num_videos, [str(SHORT_SIDE_PX)], threads="1"),
            "tutorial": _tutorial(videos, folder / "frames", num_videos, [], threads=""),
        },
        num_rounds,
    )
    same = (
        f"same work: {num_videos} {label}, 16 frames at short side {SHORT_SIDE_PX}, JPEG quality 90, one decoder "
        "thread; ours also hashes, indexes and writes tars, the tutorial's writes a file per frame"
    )
    own = f"each one's own defaults: {num_videos} {label}; the tutorial keeps the video's size, at JPEG quality 95"
    return [
        Row(f"pack, same size, {label}", same, "video", costs["ours"], "tutorial", costs["tutorial, same size"]),
        Row(f"pack, own defaults, {label}", own, "video", costs["ours"], "tutorial", costs["tutorial"]),
    ]


def _packer(videos: Path, target: Path, num_videos: int) -> Contender:
    command = [
        sys.executable,
        "-m",
        "packer",
        videos,
        target,
        "--workers",
        "1",
        "--clip.short-side-px",
        str(SHORT_SIDE_PX),
    ]
    return lambda: _afresh(target, command, num_videos)


def _tutorial(videos: Path, target: Path, num_videos: int, options: list[str], threads: str) -> Contender:
    command = [PEER_PYTHON, ROOT / "tests" / "bench" / "tutorial_pack.py", videos, target, *options]
    return lambda: _afresh(target, command, num_videos, {"OPENCV_FFMPEG_THREADS": threads} if threads else None)


def _afresh(
    target: Path, command: list[str | Path], num_videos: int, environment: dict[str, str] | None = None
) -> Cost:
    shutil.rmtree(target, ignore_errors=True)
    return run_measured(command, num_videos, environment)
