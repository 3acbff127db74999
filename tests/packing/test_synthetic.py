"""The demo's videos: real files, the same for the same seed, and no single frame shows the class."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest

from packer.synthetic import ENCODER_OPTIONS, MOTIONS, Scene, draw_scene, main, positions, render


def decode(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def scenes(count: int) -> list[Scene]:
    return [draw_scene(np.random.default_rng([7, number])) for number in range(count)]


def videos(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): decode(path).astype(int) for path in sorted(folder.rglob("*.mp4"))}


@pytest.mark.parametrize("codec", sorted(ENCODER_OPTIONS))
def test_files_decode_and_show_the_shape_where_it_is(tmp_path: Path, codec: str) -> None:
    arguments = [str(tmp_path / "data"), "--videos-per-class", "1", "--seed", "3", "--codec", codec]
    assert main(arguments) == 0
    for class_index, class_name in enumerate(MOTIONS):
        scene = draw_scene(np.random.default_rng([3, class_index, 0]))
        frames = decode(tmp_path / "data" / class_name / f"{class_name}_0000.mp4")
        assert frames.shape == (scene.num_frames, 96, 96, 3)
        middle_px = (positions(class_name, scene) * 96).astype(int) % 96
        seen = frames[np.arange(len(frames)), middle_px[:, 1], middle_px[:, 0]].astype(int)
        assert np.abs(seen.mean(axis=1) - scene.colour.mean()).max() < 25


def test_same_seed_same_videos_and_another_seed_other_videos(tmp_path: Path) -> None:
    """Pictures, not bytes: x264's assembler was seen to write other bytes for the same pictures."""
    for folder, seed, per_class in [("a", "0", "1"), ("more", "0", "2"), ("other", "1", "1")]:
        assert main([str(tmp_path / folder), "--videos-per-class", per_class, "--seed", seed]) == 0
    first, more, other = (videos(tmp_path / folder) for folder in ("a", "more", "other"))
    assert len(first) == len(MOTIONS)
    assert first.keys() < more.keys()
    for name, frames in first.items():
        assert frames.shape == more[name].shape
        assert np.abs(frames - more[name]).mean() < 1
        length = min(len(frames), len(other[name]))
        assert np.abs(frames[:length] - other[name][:length]).mean() > 10


@pytest.mark.parametrize("class_name", MOTIONS)
def test_moving_the_start_moves_every_position_alike(class_name: str) -> None:
    """Hence a uniform start makes the position in every frame uniform, whatever the class."""
    shift = np.array([0.3, 0.9])
    for scene in scenes(20):
        moved = replace(scene, start=scene.start + shift)
        difference = positions(class_name, moved) - positions(class_name, scene) - shift
        np.testing.assert_allclose(np.abs(difference - np.round(difference)), 0, atol=1e-9)


@pytest.mark.parametrize("moment", [0, 0.5, 1])
def test_every_class_has_the_same_positions_at_every_moment(moment: float) -> None:
    """Counts in a 3 x 3 grid over 900 scenes: chi-squared with 8 degrees of freedom stays below its 99.99 % point."""
    for class_name in MOTIONS:
        places = np.array([positions(class_name, scene)[int(moment * (scene.num_frames - 1))] for scene in scenes(900)])
        counts = np.histogram2d(*places.T, bins=3, range=[[0, 1], [0, 1]])[0]
        assert ((counts - 100) ** 2 / 100).sum() < 31.8, class_name


def test_mean_picture_is_the_same_for_every_class() -> None:
    """Means over 200 clips' middle frames; a difference of 14 levels is 4.5 standard errors of the grid's cells."""
    means = {}
    for class_name in MOTIONS:
        pictures = [render(class_name, scene, 32)[scene.num_frames // 2] for scene in scenes(200)]
        means[class_name] = np.mean(pictures, axis=0).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3, 4))
    for one, other in combinations(MOTIONS, 2):
        assert np.abs(means[one] - means[other]).max() < 14


@pytest.mark.parametrize("class_name", MOTIONS)
def test_motions_differ_in_time(class_name: str) -> None:
    scene = scenes(1)[0]
    for other in set(MOTIONS) - {class_name}:
        assert np.abs(positions(class_name, scene) - positions(other, scene)).max() > 0.05


def test_classes_come_in_pairs_that_are_each_other_played_backwards() -> None:
    names = list(MOTIONS)
    for scene in scenes(5):
        for one, other in zip(names[::2], names[1::2], strict=True):
            backwards = positions(one, scene)[::-1]
            # The same path from another start and phase, both of which are uniform.
            start = scene.start + positions(one, scene)[-1] - positions(one, scene)[0]
            phase = (scene.phase + scene.extent) % 1.0
            again = positions(other, replace(scene, start=start if "clock" not in one else scene.start, phase=phase))
            difference = backwards - again
            np.testing.assert_allclose(np.abs(difference - np.round(difference)), 0, atol=1e-9)


def test_wrong_option_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--side-px", "33"]) == 2
    assert capsys.readouterr().err == (
        "python -m packer.synthetic: --side-px: Input should be a multiple of 2 (got '33')\n"
    )
