"""One contender of the `clip` bench, in a process of its own: from a file to 16 frames, or to 16 JPEGs.

Runs under the project's Python or the bench's (.venv-bench): python -m tests.bench.frame_step CONTENDER TASKS [CHECK]
TASKS is JSON, a list of [path, indices]: everyone is told the right indices. Prints what the work took, without
start-up; writes the frames of every task, thinned, to CHECK instead if that is given.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Work = Callable[[str, Sequence[int]], Any]
LEAST_SECONDS = 1.0
THIN = 4  # every fourth row and column tell a frame from its neighbours


def to_rgb() -> Callable[[Any], Any]:
    """What turns PyAV's frames into arrays at the least cost: one converter for all, on one thread."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    return lambda frame: reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def ours() -> Work:
    from configs.pack import ClipConfig, DecodeLimits
    from packer.video.clip import pick_frames

    def work(path: str, indices: Sequence[int]) -> Any:
        clip = ClipConfig(num_frames=len(indices))
        convert = to_rgb()
        return pick_frames(path, clip, DecodeLimits(), lambda frame, *_: convert(frame)).frames

    return work


def ours_pick() -> Work:
    from configs.pack import ClipConfig, DecodeLimits
    from packer.video.clip import pick_frames

    return lambda path, indices: pick_frames(path, ClipConfig(), DecodeLimits(), lambda *_: None)


def ours_clip(short_side_px: int, jpeg_quality: int) -> Work:
    from configs.pack import ClipConfig, DecodeLimits
    from packer.video.clip import read_clip

    clip = ClipConfig(short_side_px=short_side_px, jpeg_quality=jpeg_quality)
    return lambda path, indices: read_clip(path, clip, DecodeLimits())


def limit() -> Work:
    """Decoding the needed packets, known beforehand, and nothing else: nothing faster gives the frames."""
    import av

    from configs.pack import DecodeLimits
    from packer.video import decode
    from packer.video.packets import PacketPlan

    known: dict[str, list[list[int]]] = {}

    def learn(container: Any, stream: Any, indices: Sequence[int]) -> list[list[int]]:
        pictures = decode._survey(container, stream, DecodeLimits(), may_skip=True).pictures
        wanted = {0, *indices}
        return [
            [number for number in range(*span) if pictures[number].is_reference or pictures[number].position in wanted]
            for span in PacketPlan(pictures).spans_of(wanted)
        ]

    def work(path: str, indices: Sequence[int]) -> None:
        with av.open(path, metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            if path not in known:
                known[path] = learn(container, stream, indices)
                return
            packets = list(decode._packets(container.demux(stream), stream))
            for span in known[path]:
                stream.codec_context.flush_buffers()
                for number in span:
                    stream.decode(packets[number])
                stream.decode(None)

    return work


def pyav() -> Work:
    import av

    def work(path: str, indices: Sequence[int]) -> list[Any]:
        with av.open(path, metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            wanted = set(indices)
            decoded = enumerate(container.decode(stream))
            convert = to_rgb()
            frames = {index: convert(frame) for index, frame in decoded if index in wanted}
        return [frames[index] for index in indices]

    return work


def opencv() -> Work:
    import cv2

    def work(path: str, indices: Sequence[int]) -> list[Any]:
        capture = cv2.VideoCapture(path)
        frames = {}
        for index in range(max(indices) + 1):
            success, frame = capture.read()
            if success and index in indices:
                frames[index] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        capture.release()
        return [frames.get(index) for index in indices]

    return work


def torchcodec() -> Work:
    sys.path.append(os.environ["TORCH_FROM"])
    from torchcodec.decoders import VideoDecoder

    def work(path: str, indices: Sequence[int]) -> Any:
        decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        return decoder.get_frames_at(list(indices)).data.numpy()

    return work


def decord() -> Work:
    from decord import VideoReader

    return lambda path, indices: VideoReader(path, num_threads=1).get_batch(list(indices)).asnumpy()


def ffmpeg() -> Work:
    def work(path: str, indices: Sequence[int]) -> list[Any]:
        chosen = "+".join(f"eq(n\\,{index})" for index in sorted(set(indices)))
        probe = [
            "ffprobe",
            "-v",
            "error",
            "-select_streams",
            "v:0",
            "-show_entries",
            "stream=width,height",
            "-of",
            "csv=p=0",
        ]
        width, height = map(int, subprocess.check_output([*probe, path], text=True).strip().strip(",").split(",")[:2])
        command = ["ffmpeg", "-v", "error", "-noautorotate", "-threads", "1", "-i", path, "-vf", f"select={chosen}"]
        output = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        pixels = np.frombuffer(subprocess.check_output([*command, *output]), np.uint8)
        frames = dict(zip(sorted(set(indices)), pixels.reshape(-1, height, width, 3), strict=False))
        return [frames.get(index) for index in indices]

    return work


def tutorial(short_side_px: int) -> Work:
    from tests.bench.tutorial_pack import store

    folder = Path(tempfile.mkdtemp(dir=os.environ["WORK_FOLDER"]))
    return lambda path, indices: store(Path(path), folder, short_side_px)


CONTENDERS: dict[str, Callable[[], Work]] = {
    "ours": ours,
    "ours, pick only": ours_pick,
    "ours, defaults": lambda: ours_clip(128, 90),
    "ours, source size": lambda: ours_clip(0, 95),
    "needed packets only": limit,
    "PyAV, full decode": pyav,
    "OpenCV, read all": opencv,
    "torchcodec, exact": torchcodec,
    "eva-decord": decord,
    "ffmpeg program": ffmpeg,
    "tutorial": lambda: tutorial(0),
    "tutorial, same size": lambda: tutorial(128),
}


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    work = CONTENDERS[sys.argv[1]]()
    tasks = json.loads(Path(sys.argv[2]).read_text())
    if len(sys.argv) > 3:
        thinned = {}
        for number, (path, indices) in enumerate(tasks):
            try:
                frames = [frame for frame in work(path, indices) if frame is not None]
            except Exception as error:  # a peer that fails on a video has no right frames of it
                print(f"{sys.argv[1]}: {Path(path).name}: {error}", file=sys.stderr)
                frames = []
            if len(frames) == len(indices):
                thinned[str(number)] = np.stack([np.asarray(frame)[::THIN, ::THIN] for frame in frames])
        np.savez(sys.argv[3], **thinned)
        return
    learners = tasks if sys.argv[1] == "needed packets only" else tasks[:1]
    for path, indices in learners:
        work(path, indices)
    cpu, wall = cpu_seconds(), time.perf_counter()
    num_videos = 0
    while time.perf_counter() - wall < LEAST_SECONDS:
        for path, indices in tasks:
            work(path, indices)
        num_videos += len(tasks)
    print(json.dumps([time.perf_counter() - wall, cpu_seconds() - cpu, num_videos]))


if __name__ == "__main__":
    main()
