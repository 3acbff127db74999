"""Clips whose class hangs on a clue: a patch of the class's colour, in one corner and in half of the frames.

Background and a drifting square, which every clip has, say nothing of the class. So it is known what a model that tells
the classes must have looked at, and when.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.videos import write_video

NUM_FRAMES, NUM_SHOWN = 8, 4
SIDE_PX, PATCH_PX, DRIFTER_PX = 48, 14, 8
COLOURS = {"green": (60, 220, 60), "red": (230, 60, 60)}
DRIFTER = (90, 90, 200)


def place_of(class_name: str, number: int) -> tuple[slice, slice, slice]:
    """Returns where the clue of a clip is: frames, rows, columns."""
    random = np.random.default_rng([1, list(COLOURS).index(class_name), number])
    first = int(random.integers(NUM_FRAMES - NUM_SHOWN + 1))
    top, left = (int(random.choice([2, SIDE_PX - PATCH_PX - 2])) for _ in range(2))
    return slice(first, first + NUM_SHOWN), slice(top, top + PATCH_PX), slice(left, left + PATCH_PX)


def draw_clip(class_name: str, number: int) -> NDArray[np.uint8]:
    """Returns a clip, `(T, S, S, 3) uint8 RGB`; the number decides everything but the clue's colour."""
    random = np.random.default_rng([2, list(COLOURS).index(class_name), number])
    grid = np.arange(SIDE_PX) * 6 // SIDE_PX
    background = random.integers(20, 120, (6, 6, 3)).astype(np.uint8)[np.ix_(grid, grid)]
    frames = np.repeat(background[None], NUM_FRAMES, axis=0)
    start, step = random.integers(0, SIDE_PX - DRIFTER_PX, 2), random.integers(-3, 4, 2)
    for time, frame in enumerate(frames):
        top, left = (start + time * step).clip(0, SIDE_PX - DRIFTER_PX)
        frame[top : top + DRIFTER_PX, left : left + DRIFTER_PX] = DRIFTER
    frames[place_of(class_name, number)] = COLOURS[class_name]
    return frames


def write_clues(folder: Path, num_per_class: int) -> Path:
    """Writes a data folder of such clips as videos, `<class>/<class>-<number>.mp4`."""
    for class_name in COLOURS:
        (folder / class_name).mkdir(parents=True)
        for number in range(num_per_class):
            write_video(folder / class_name / f"{class_name}-{number}.mp4", [*draw_clip(class_name, number)])
    return folder


def number_of(source: str) -> tuple[str, int]:
    """Returns the class that a clip shows, whatever its label, and its number."""
    class_name, _, number = Path(source).stem.partition("-")
    return class_name, int(number)
