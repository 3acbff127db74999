"""Videos of every colour matrix are packed, and those that are read with another one are marked."""

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import Clip, read_clip
from tests.support.programs import system_program
from tests.support.videos import write_video

BT709, BT2020 = 1, 9


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("matrices")
    bars = np.repeat(np.array([(200, 60, 30), (40, 180, 70), (30, 50, 210)], np.uint8), 32, axis=0)[None]
    pictures = [np.ascontiguousarray(np.repeat(bars, 64, axis=0))] * 4
    quiet = {"x265-params": "log-level=none"}
    return {
        "h264": write_video(folder / "h264.mp4", pictures),
        "hevc": write_video(folder / "hevc.mp4", pictures, codec="libx265", options=quiet),
    }


def clip_of(path: Path, folder: Path, matrix: int, primaries: int = 2) -> Clip:
    """Packs a copy of a video whose header states another matrix."""
    target = folder / f"{path.stem}_{matrix}_{primaries}.mp4"
    filters = f"{path.stem}_metadata=matrix_coefficients={matrix}:colour_primaries={primaries}"
    command = [system_program("ffmpeg"), "-v", "error", "-i", path, "-c", "copy", "-bsf:v", filters, target]
    subprocess.run(command, check=True)
    with av.open(str(target)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_primaries) == (matrix, primaries)
    return read_clip(target, ClipConfig(num_frames=2), DecodeLimits())


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize(
    ("matrix", "primaries", "read_as", "is_approximate"),
    [
        *((matrix, 2, BT709, True) for matrix in (8, 11, 12, 13, 14, 15, 16, 17)),
        (10, 2, BT2020, True),  # its weights, but not its curve
        (12, 1, BT709, False),  # follows from the primaries alone
        (12, 9, BT2020, False),
        (13, 9, BT2020, True),
        (BT709, 1, BT709, False),
        (BT2020, 9, BT2020, False),
    ],
)
def test_every_matrix_is_packed(
    tmp_path: Path, source: dict[str, Path], codec: str, matrix: int, primaries: int, read_as: int, is_approximate: bool
) -> None:
    clip = clip_of(source[codec], tmp_path, matrix, primaries)
    assert clip.is_colour_approximate == is_approximate
    assert clip.jpegs == clip_of(source[codec], tmp_path, read_as, 5).jpegs


def test_bt709_and_bt2020_differ(tmp_path: Path, source: dict[str, Path]) -> None:
    assert clip_of(source["h264"], tmp_path, BT709).jpegs != clip_of(source["h264"], tmp_path, BT2020).jpegs
