"""Makes small video files whose classes are motions that no single frame tells apart; `make demo` learns them.

A shape moves from a random place over a torus: if it leaves on one side, it enters on the other. The place is uniform,
and a uniform place on a torus plus any path is uniform again, so each frame has the same distribution in every class.
The classes come in pairs, of which one is the other played backwards: frames without their order tell only the pair.
The look of the shape and the background do not depend on the class.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import CliPositionalArg

from configs.home import resolve
from configs.load import fail, parse
from configs.section import Section, UsageError
from packer.progress import Progress

Codec = Literal["h264", "mpeg4"]
FRAMES_PER_SECOND = 25
ENCODER_OPTIONS: dict[Codec, dict[str, str]] = {
    # Fine enough that no trail behind the shape shows its direction in a single frame. No B-frames: with them, x264's
    # assembler wrote other bytes for 13 of 32 videos when they were encoded again in the same process.
    "h264": {"preset": "veryfast", "crf": "18", "bf": "0"},
    "mpeg4": {"qscale": "2"},
}


class SyntheticConfig(Section):
    """The options of `python -m packer.synthetic`."""

    target: CliPositionalArg[str] = Field(description="folder for one folder of videos per class; it is created")
    videos_per_class: int = Field(70, ge=1)
    """Videos of each class."""
    side_px: int = Field(96, ge=32, le=1024, multiple_of=2)
    """Width and height of the videos."""
    codec: Codec = "h264"
    """Codec of the mp4 files."""
    seed: int = Field(0, ge=0)
    """Seed of everything random; a video depends only on the seed, its class and its number."""


@dataclass(frozen=True)
class Scene:
    """What a video shows besides its class; lengths are in units of the picture's side."""

    start: NDArray[np.float64]
    """(2,) float64: x, y of the shape at time 0."""
    extent: float
    """How far the shape moves: along a line in sides, round a circle in turns."""
    phase: float
    """Where on its circle the shape starts, in turns."""
    radius: float
    """Half the shape's size."""
    is_round: bool
    """Whether the shape is a disc; otherwise it is a square."""
    colour: NDArray[np.uint8]
    """(3,) uint8 RGB of the shape."""
    background: NDArray[np.uint8]
    """(6, 6, 3) uint8 RGB, scaled up to the picture."""
    num_frames: int
    """Frames of the video."""


Path2D = Callable[[NDArray[np.float64], Scene], tuple[NDArray[np.float64], NDArray[np.float64]]]


def line(x: int, y: int) -> Path2D:
    """Returns the path of a shape that keeps moving along (x, y)."""
    length = np.hypot(x, y)
    return lambda time, scene: (time * scene.extent * x / length, time * scene.extent * y / length)


def circle(direction: int) -> Path2D:
    """Returns the path of a shape that goes round once or more; 1: clockwise on the screen, -1: counterclockwise."""

    def path(time: NDArray[np.float64], scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        angle = 2 * np.pi * (scene.phase + direction * time * scene.extent)
        return 0.25 * np.cos(angle), 0.25 * np.sin(angle)

    return path


MOTIONS: dict[str, Path2D] = {
    "clockwise": circle(1),
    "counterclockwise": circle(-1),
    "down": line(0, 1),
    "up": line(0, -1),
    "left": line(-1, 0),
    "right": line(1, 0),
    "down_right": line(1, 1),
    "up_left": line(-1, -1),
}
"""Class names and paths, in pairs of which one is the other played backwards."""


def draw_scene(random: np.random.Generator) -> Scene:
    """Returns a random scene, which does not depend on the class."""
    return Scene(
        start=random.uniform(0, 1, 2),
        extent=random.uniform(1.0, 1.8),
        phase=random.uniform(0, 1),
        radius=random.uniform(0.09, 0.15),
        is_round=bool(random.integers(2)),
        colour=random.integers(160, 256, 3).astype(np.uint8),
        background=random.integers(20, 120, (6, 6, 3)).astype(np.uint8),
        num_frames=int(random.integers(32, 49)),
    )


def positions(class_name: str, scene: Scene) -> NDArray[np.float64]:
    """Returns the places of the shape's middle as (num_frames, 2) x, y in [0, 1)."""
    time = np.linspace(0, 1, scene.num_frames)
    return (scene.start + np.stack(MOTIONS[class_name](time, scene), axis=1)) % 1.0


def render(class_name: str, scene: Scene, side_px: int) -> NDArray[np.uint8]:
    """Returns the video's frames as (num_frames, side_px, side_px, 3) uint8 RGB in [0, 255]."""
    grid = np.arange(side_px) * len(scene.background) // side_px
    frames = np.repeat(scene.background[np.ix_(grid, grid)][None], scene.num_frames, axis=0)
    pixels = (np.arange(side_px) + 0.5) / side_px
    for frame, place in zip(frames, positions(class_name, scene), strict=True):
        # Distances on the torus: a shape that leaves on one side enters on the other.
        across, down = (np.abs((pixels - centre + 0.5) % 1.0 - 0.5) for centre in place)
        if scene.is_round:
            inside = across**2 + down[:, None] ** 2 < scene.radius**2
        else:
            inside = np.maximum(across, down[:, None]) < scene.radius * 0.9
        frame[inside] = scene.colour
    return frames


def write_video(path: Path, frames: NDArray[np.uint8], codec: Codec) -> None:
    """Writes frames, (N, H, W, 3) uint8 RGB, as an mp4 file."""
    with av.open(path, "w", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=FRAMES_PER_SECOND, options=ENCODER_OPTIONS[codec])
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_videos(config: SyntheticConfig) -> int:
    """Writes the videos as `<target>/<class>/<class>_<number>.mp4` and returns how many there are."""
    target = resolve(config.target)
    jobs = [(class_index, number) for class_index in range(len(MOTIONS)) for number in range(config.videos_per_class)]
    class_names = list(MOTIONS)
    for class_name in class_names:
        (target / class_name).mkdir(parents=True, exist_ok=True)
    with Progress(len(jobs), "video", "draw") as progress:
        for class_index, number in jobs:
            class_name = class_names[class_index]
            scene = draw_scene(np.random.default_rng([config.seed, class_index, number]))
            frames = render(class_name, scene, config.side_px)
            write_video(target / class_name / f"{class_name}_{number:04d}.mp4", frames, config.codec)
            progress.update()
    return len(jobs)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m packer.synthetic` and returns its exit code."""
    prog = "python -m packer.synthetic"
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        config = parse(
            SyntheticConfig,
            sys.argv[1:] if argv is None else argv,
            prog=prog,
            description="Makes small video files of eight motions; no single frame tells the motions apart.",
            env_prefix="CLIPSTREAM_SYNTHETIC_",
        )
        num_videos = make_videos(config)
    except (UsageError, OSError) as error:
        return fail(prog, error)
    print(f"{num_videos} videos of {len(MOTIONS)} classes in {resolve(config.target)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
