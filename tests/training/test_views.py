"""Views of a clip: what is cut, what is resized, and that all frames of a clip are treated alike."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import from_numpy
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_saturation, resize

from configs.train import AugmentConfig, ViewConfig
from trainer.schedule.rows import Row
from trainer.views import eval_view as eval_views
from trainer.views import train_view as train_views
from trainer.views.eval_view import EvalView
from trainer.views.train_view import GREY

FramesTHWC = NDArray[np.uint8]
ROWS = [Row(epoch, index, 1.0) for epoch in range(3) for index in range(8)]
CROP = ViewConfig(short_side_px=24, size_px=16)
LIGHT = {"brightness": adjust_brightness, "contrast": adjust_contrast, "saturation": adjust_saturation}
SQUASH = ViewConfig(short_side_px=24, size_px=16, mode="squash")


def eval_view(frames: FramesTHWC, view: ViewConfig) -> FramesTHWC:
    return eval_views.eval_view(from_numpy(frames), view).numpy()


@dataclass(frozen=True)
class TrainView:
    """`TrainView` of NumPy's arrays."""

    view: ViewConfig
    augment: AugmentConfig
    seed: int

    def __call__(self, frames: FramesTHWC, row: Row) -> FramesTHWC:
        return train_views.TrainView(self.view, self.augment, self.seed)(from_numpy(frames), row).numpy()


def noise(height: int, width: int, num_frames: int = 3) -> FramesTHWC:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def coordinates(height: int, width: int) -> FramesTHWC:
    """Frames whose pixel at (y, x) is (y, x, frame)."""
    frames = np.empty((3, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(height)[None, :, None]
    frames[..., 1] = np.arange(width)
    frames[..., 2] = np.arange(3)[:, None, None]
    return frames


def resized(frames: FramesTHWC, height: int, width: int) -> FramesTHWC:
    """Torchvision's antialiased resize of plain planes."""
    planes = from_numpy(frames.transpose(0, 3, 1, 2).copy())
    return resize(planes, [height, width], antialias=True).numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 40), (40, 24), (25, 24), (24, 31)])
def test_eval_view_is_the_centre_square(height: int, width: int) -> None:
    frames = noise(height, width)
    top, left = (height - 16) // 2, (width - 16) // 2
    view = eval_view(frames, CROP)
    assert np.array_equal(view, frames[:, top : top + 16, left : left + 16])
    assert np.shares_memory(view, frames)


@pytest.mark.parametrize(
    ("height", "width", "to"),
    [
        (48, 64, (24, 32)),
        (64, 48, (32, 24)),
        (12, 20, (24, 40)),  # a small stored frame is enlarged
        (10, 10, (24, 24)),
        (240, 321, (24, 32)),
        (1, 1, (24, 24)),
    ],
)
def test_eval_view_brings_other_frames_to_the_short_side(height: int, width: int, to: tuple[int, int]) -> None:
    frames = noise(height, width)
    view = eval_view(frames, CROP)
    assert view.shape == (3, 16, 16, 3)
    top, left = (to[0] - 16) // 2, (to[1] - 16) // 2
    assert np.abs(view.astype(int) - resized(frames, *to)[:, top : top + 16, left : left + 16]).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24), (8, 8), (16, 16)])
def test_squash_keeps_the_whole_frame(height: int, width: int) -> None:
    frames = noise(height, width)
    assert np.abs(eval_view(frames, SQUASH).astype(int) - resized(frames, 16, 16)).max() <= 1
    assert EvalView(SQUASH)(from_numpy(frames), ROWS[0]).numpy().tobytes() == eval_view(frames, SQUASH).tobytes()


def test_random_crops_reach_every_place_and_are_alike_in_all_frames() -> None:
    frames = coordinates(24, 30)
    corners = set()
    for index in range(600):
        view = TrainView(CROP, AugmentConfig(), seed=0)(frames, Row(0, index, 1.0))
        top, left = int(view[0, 0, 0, 0]), int(view[0, 0, 0, 1])
        assert np.array_equal(view, frames[:, top : top + 16, left : left + 16])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(24 - 16 + 1))
    assert {left for _, left in corners} == set(range(30 - 16 + 1))


@pytest.mark.parametrize("view", [CROP, SQUASH])
@pytest.mark.parametrize("min_scale", [1.0, 0.3])
def test_flip_mirrors_half_of_the_clips_and_all_their_frames(view: ViewConfig, min_scale: float) -> None:
    frames = coordinates(24, 30)
    num_mirrored = 0
    for index in range(200):
        row = Row(0, index, 1.0)
        plain = TrainView(view, AugmentConfig(min_scale=min_scale), seed=0)(frames, row)
        flipped = TrainView(view, AugmentConfig(min_scale=min_scale, horizontal_flip=True), seed=0)(frames, row)
        mirrored = not np.array_equal(flipped, plain)
        assert np.array_equal(flipped, plain[:, :, ::-1] if mirrored else plain)
        num_mirrored += mirrored
    assert 70 < num_mirrored < 130


@pytest.mark.parametrize(
    ("view", "height", "width", "most"), [(CROP, 24, 30, 24 * 24), (CROP, 60, 50, 50 * 50), (SQUASH, 24, 30, 24 * 30)]
)
def test_min_scale_bounds_the_area_that_is_seen(view: ViewConfig, height: int, width: int, most: int) -> None:
    shares = []
    for row in (Row(0, index, 1.0) for index in range(300)):
        seen = TrainView(view, AugmentConfig(min_scale=0.25), seed=0)(coordinates(height, width), row)
        assert seen.shape == (3, 16, 16, 3)
        assert all(np.array_equal(seen[0, ..., :2], frame[..., :2]) for frame in seen)
        # Pixel centres at both ends are one output pixel less than the part apart.
        sides = [np.ptp(seen[0, ..., axis].astype(int)) * 16 / 15 for axis in (0, 1)]
        shares.append(sides[0] * sides[1] / most)
    assert 0.15 < min(shares) < 0.4
    assert 0.8 < max(shares) < 1.2


def test_without_scale_a_squashed_view_is_the_eval_view() -> None:
    frames = noise(24, 40)
    for row in ROWS:
        assert np.array_equal(TrainView(SQUASH, AugmentConfig(), seed=0)(frames, row), eval_view(frames, SQUASH))


@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12), (8, 8), (1, 3)])
@pytest.mark.parametrize("view", [CROP, SQUASH])
@pytest.mark.parametrize("min_scale", [1.0, 0.01])
def test_small_stored_frames_still_fill_the_view(height: int, width: int, view: ViewConfig, min_scale: float) -> None:
    for row in ROWS:
        seen = TrainView(view, AugmentConfig(min_scale=min_scale), seed=0)(noise(height, width), row)
        assert (seen.shape, seen.dtype) == ((3, 16, 16, 3), np.uint8)


def test_choices_are_keyed_by_seed_epoch_and_sample_alone() -> None:
    frames = noise(24, 60)
    augment = AugmentConfig(horizontal_flip=True, min_scale=0.5)
    views = {(seed, row): TrainView(CROP, augment, seed)(frames, row).tobytes() for seed in (0, 1) for row in ROWS}
    assert len(set(views.values())) > 0.9 * len(views)
    again = {(seed, row): TrainView(CROP, augment, seed)(frames, row).tobytes() for seed, row in reversed(views)}
    assert again == views
    padding = Row(0, 5, 0.0)
    assert TrainView(CROP, augment, 0)(frames, padding).tobytes() == views[0, Row(0, 5, 1.0)]


@pytest.mark.parametrize("what", ["brightness", "contrast", "saturation"])
def test_light_is_as_torchvision_has_it(what: str) -> None:
    """One frame, where torchvision's mean grey of a picture and ours of a clip are the same."""
    frames = noise(24, 16, num_frames=1) // 2 + 40
    factors = []
    for index in range(100):
        row = Row(0, index, 1.0)
        seen = TrainView(CROP, AugmentConfig(**{what: 0.5}), seed=0)(frames, row)
        plain = TrainView(CROP, AugmentConfig(), seed=0)(frames, row)
        # The first three draws are the light's, but for the two of the crop's place before them.
        generator = np.random.Generator(np.random.PCG64([0, row.epoch, row.index]))
        generator.integers(24 - 16 + 1), generator.integers(1)
        draws = [generator.uniform(1 - most, 1 + most) for most in (0.5 * (what == name) for name in LIGHT)]
        factors.append(draws[list(LIGHT).index(what)])
        wanted = LIGHT[what](from_numpy(plain.transpose(0, 3, 1, 2).copy()), factors[-1])
        assert np.abs(seen.astype(int) - wanted.numpy().transpose(0, 2, 3, 1)).max() <= 1
    assert min(factors) < 0.6
    assert max(factors) > 1.4


def test_light_is_alike_in_all_frames() -> None:
    frames = np.repeat(noise(24, 16, num_frames=1), 3, axis=0)
    light = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4)
    views = [TrainView(CROP, light, seed=0)(frames, row) for row in ROWS]
    assert all(np.array_equal(frame, view[0]) for view in views for frame in view)
    assert len({view.tobytes() for view in views}) == len(ROWS)


def test_a_view_larger_than_the_short_side_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"size_px \(32\) must be at most short_side_px \(24\)"):
        ViewConfig(short_side_px=24, size_px=32)


def test_erasing_greys_one_box_of_all_frames() -> None:
    augment = AugmentConfig(erasing=1.0)
    frames = np.full((3, 24, 30, 3), 7, np.uint8)
    areas, covered = [], np.zeros((16, 16), int)
    for index in range(400):
        seen = TrainView(CROP, augment, seed=0)(frames, Row(0, index, 1.0))
        grey = (seen[0] == GREY).all(-1)
        assert (seen == np.where(grey[None, :, :, None], GREY, 7)).all()
        rows, columns = np.nonzero(grey)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert grey.sum() == height * width
        areas.append(height * width / 16**2)
        covered += grey
    assert (frames == 7).all()
    assert 0.01 < min(areas) < 0.05
    assert 0.3 < max(areas) < 0.4
    assert covered.min() > 0


def test_erasing_is_of_a_share_of_the_clips_and_changes_no_other_choice() -> None:
    frames = noise(24, 30)
    num_erased = 0
    for index in range(300):
        row = Row(0, index, 1.0)
        plain = TrainView(CROP, AugmentConfig(horizontal_flip=True, contrast=0.2), seed=0)(frames, row)
        erased = TrainView(CROP, AugmentConfig(horizontal_flip=True, contrast=0.2, erasing=0.25), seed=0)(frames, row)
        num_erased += not np.array_equal(plain, erased)
        assert np.array_equal(plain[erased != GREY], erased[erased != GREY])
    assert 45 < num_erased < 110


def test_what_a_server_takes_of_the_trainer_brings_no_stream_and_no_slow_library() -> None:
    files = ["trainer.views.eval_view", "trainer.views.frames", "trainer.model.contract"]
    code = f"import sys, {', '.join(files)}; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert set(files) <= loaded
    assert not [name for name in loaded if name.startswith(("trainer.stream", "packer.shards"))]
    assert not loaded & {"mlflow", "pandas", "pyarrow", "ray", "torchvision", "webdataset"}
