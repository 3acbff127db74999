"""Rows: from a file to 16 frames or JPEGs, in memory, start-up left out; and whether each peer's frames are right.

A peer's frame is right if no neighbour of the asked one is nearer to it, in a full decode by PyAV, by more than
`CLEARLY` levels: another library may round colours differently.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import av
import numpy as np

from packer.video.sampling import frame_indices
from tests.bench.frame_step import THIN
from tests.bench.measure import Contender, Cost, Row, interleave
from tests.bench.videos import H264_720P, H264_1080P, HMDB51, SURVEILLANCE, make_clip_sets

ROOT = Path(__file__).parent.parent.parent
PEER_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
OURS = ["ours", "ours, pick only", "ours, defaults", "ours, source size", "needed packets only"]
PEERS = ["PyAV, full decode", "OpenCV, read all", "torchcodec, exact", "eva-decord", "ffmpeg program"]
NUM_FRAMES = 16
NUM_NEIGHBOURS = 4
CLEARLY = 0.25
GOALS = {
    HMDB51: {"defaults": 2.4, "source": 1.8, "pick": 0.9},
    SURVEILLANCE: {"defaults": 2.9, "pick": 0.86},
    H264_720P: {"defaults": 2.0, "pick": 0.86},
    H264_1080P: {"defaults": 2.8, "pick": 0.86},
}


def rows(num_rounds: int, folder: Path) -> list[Row]:
    result = []
    for name, videos in make_clip_sets(folder / "videos").items():
        result += _rows_of_set(name, videos, num_rounds, folder)
    return result


def _rows_of_set(name: str, videos: list[Path], num_rounds: int, folder: Path) -> list[Row]:
    tasks = folder / "tasks.json"
    counted = [(video, _num_frames(video)) for video in videos]
    tasks.write_text(json.dumps([(str(video), frame_indices(count, NUM_FRAMES)) for video, count in counted]))
    peers = [peer for peer in PEERS if peer != "ffmpeg program" or shutil.which("ffmpeg")]
    right = {peer: _num_right(peer, tasks, folder) for peer in ["ours", *peers]}
    names = [*OURS, *peers, "tutorial", "tutorial, same size"]
    costs = interleave({contender: _contender(contender, tasks, folder) for contender in names}, num_rounds)
    total = NUM_FRAMES * len(videos)

    def row(what: str, work: str, mine: str, peer: str, goal: float | None = None) -> Row:
        return Row(f"{what}, {name}", work, "video", costs[mine], peer, costs[peer], goal)

    goals = GOALS.get(name, {})
    own = "unlike work, each one's own defaults: ours short side 128, quality 90; the tutorial's source size, 95"
    same = "same work: 16 JPEGs; ours in memory, the tutorial's as files"
    result = [
        row("clip, own defaults", own, "ours, defaults", "tutorial", goals.get("defaults")),
        row(
            "clip, source size",
            f"{same}; quality 95, OpenCV's own threads",
            "ours, source size",
            "tutorial",
            goals.get("source"),
        ),
        row("clip, short side 128", f"{same}; quality 90, one thread", "ours, defaults", "tutorial, same size"),
        row(
            "pick",
            "against the least that can be done: opening, and decoding the needed packets, known beforehand",
            "ours, pick only",
            "needed packets only",
            goals.get("pick"),
        ),
    ]
    for peer in peers:
        work = f"same work: {NUM_FRAMES} RGB frames of source size at given indices, one decoder thread; frames right: "
        work += f"ours {right['ours']} of {total}, {peer} {right[peer]}"
        result.append(row("frames", work, "ours", peer))
    return result


def _contender(name: str, tasks: Path, folder: Path) -> Contender:
    return lambda: Cost(*json.loads(_run(name, tasks, folder)))


def _run(name: str, tasks: Path, folder: Path, *more: str) -> str:
    python = sys.executable if name in {*OURS, "PyAV, full decode"} else PEER_PYTHON
    environment = {**os.environ, "TORCH_FROM": sysconfig.get_path("purelib"), "WORK_FOLDER": str(folder)}
    if name != "tutorial":
        environment["OPENCV_FFMPEG_THREADS"] = "1"
    command = [str(python), "-m", "tests.bench.frame_step", name, str(tasks), *more]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def _num_right(peer: str, tasks: Path, folder: Path) -> int:
    _run(peer, tasks, folder, str(folder / "check.npz"))
    checks = np.load(folder / "check.npz")
    num_right = 0
    for number, (path, indices) in enumerate(json.loads(tasks.read_text())):
        if str(number) in checks:
            num_right += _num_right_of_video(path, indices, checks[str(number)])
    return num_right


def _num_right_of_video(path: str, indices: list[int], frames: np.ndarray) -> int:
    distances: list[dict[int, float]] = [{} for _ in indices]
    with av.open(path, metadata_errors="ignore") as container:
        for index, frame in enumerate(container.decode(video=0)):
            near = [place for place, asked in enumerate(indices) if abs(asked - index) <= NUM_NEIGHBOURS]
            if near:
                pixels = frame.to_ndarray(format="rgb24")[::THIN, ::THIN].astype(int)
                for place in near:
                    distances[place][index] = float(np.abs(pixels - frames[place]).mean())
    return sum(
        distance[asked] <= min(distance.values()) + CLEARLY for asked, distance in zip(indices, distances, strict=True)
    )


def _num_frames(video: Path) -> int:
    with av.open(str(video), metadata_errors="ignore") as container:
        return sum(1 for _ in container.decode(video=0))
