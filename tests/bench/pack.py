"""Rows: `python -m packer` against the tutorial's way of storing frames, whole commands, one worker each."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.measure import Contender, Cost, Row, interleave, run_measured
from tests.bench.videos import make_sets

ROOT = Path(__file__).parent.parent.parent
PEER_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
SHORT_SIDE_PX = 128


def rows(num_rounds: int, folder: Path) -> list[Row]:
    result = []
    for label, videos in make_sets(folder / "videos", num_per_class=100).items():
        few = _few_of(videos, folder / f"few-{videos.name}")
        result += _rows_of_set(label, videos, few, num_rounds, folder)
    return result


def _rows_of_set(label: str, videos: Path, few: Path, num_rounds: int, folder: Path) -> list[Row]:
    def contender(command: Sequence[str | Path], *options: str, threads: str = "") -> Contender:
        target = folder / "packed"
        environment = {"OPENCV_FFMPEG_THREADS": threads} if threads else {}
        return lambda: _marginal(
            *(
                _afresh([*command, source, target, *options], target, _count(source), environment)
                for source in (videos, few)
            )
        )

    packer = [sys.executable, "-m", "packer"]
    tutorial = [PEER_PYTHON, ROOT / "tests" / "bench" / "tutorial_pack.py"]
    costs = interleave(
        {
            "ours": contender(packer, "--workers", "1", "--clip.short-side-px", str(SHORT_SIDE_PX)),
            "two workers": contender(packer, "--workers", "2", "--clip.short-side-px", str(SHORT_SIDE_PX)),
            "tutorial, same size": contender(tutorial, str(SHORT_SIDE_PX), threads="1"),
            "tutorial": contender(tutorial),
        },
        num_rounds,
    )
    what = f"{label}; what each further video costs, start-up taken off"
    same = (
        f"same work: {what}; 16 frames at short side {SHORT_SIDE_PX}, JPEG quality 90, one decoder thread; ours also "
        "hashes, indexes and writes tars, the tutorial's writes a file per frame"
    )
    own = f"unlike work, each one's own defaults: {what}; the tutorial's keeps the video's size, at JPEG quality 95"
    return [
        Row(f"pack, same size, {label}", same, "video", costs["ours"], "tutorial", costs["tutorial, same size"]),
        Row(f"pack, own defaults, {label}", own, "video", costs["ours"], "tutorial", costs["tutorial"]),
        Row(
            f"pack, two workers against one, {label}",
            f"same work: {what}; the goal is by the clock, on two idle cores",
            "video", costs["two workers"], "one worker", costs["ours"], goal=1.8,
        ),
    ]  # fmt: skip


def _few_of(videos: Path, target: Path) -> Path:
    """A set of the first videos of each class, as few as can be split: packing it costs the start-up."""
    for class_folder in sorted(videos.iterdir()):
        (target / class_folder.name).mkdir(parents=True)
        for video in sorted(class_folder.iterdir())[:4]:
            (target / class_folder.name / video.name).symlink_to(video.resolve())
    return target


def _count(videos: Path) -> int:
    return sum(1 for _ in videos.glob("*/*"))


def _marginal(many: Cost, few: Cost) -> Cost:
    return Cost(
        many.wall_seconds - few.wall_seconds, many.cpu_seconds - few.cpu_seconds, many.num_units - few.num_units
    )


def _afresh(command: Sequence[str | Path], target: Path, num_videos: int, environment: dict[str, str]) -> Cost:
    shutil.rmtree(target, ignore_errors=True)
    return run_measured(command, num_videos, environment)
