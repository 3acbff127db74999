"""Videos are packed as a player shows them: turned, mirrored, or both."""

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from configs.pack import ClipConfig, DecodeLimits
from packer.video.clip import Clip, read_clip
from packer.video.jpeg import decode_frames
from tests.support.programs import system_program
from tests.support.videos import write_video

COLOURS = {"W": (240, 240, 240), "K": (10, 10, 10), "R": (220, 30, 30), "B": (30, 30, 220)}
MATRICES = {
    "identity": (1, 0, 0, 1),
    "turn_90": (0, 1, -1, 0),
    "turn_180": (-1, 0, 0, -1),
    "turn_270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside_down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed_across": (0, -1, -1, 0),
}
"""a, b, c, d of a track's matrix: the pixel (x, y) is shown at (a x + c y, b x + d y)."""
SEI = {  # rotation in degrees, counter-clockwise, after the flips
    "sei_90": "rotate=90",
    "sei_180": "rotate=180",
    "sei_270": "rotate=270",
    "sei_mirrored": "flip=horizontal",
    "sei_upside_down": "flip=vertical",
    "sei_mirrored_90": "rotate=90:flip=horizontal",
    "sei_upside_down_90": "rotate=90:flip=vertical",
}


def four_corners() -> NDArray[np.uint8]:
    picture = np.zeros((64, 96, 3), np.uint8)
    for letter, place in zip("WKRB", np.ndindex(2, 2), strict=True):
        picture[place[0] * 32 :, place[1] * 48 :][:32, :48] = COLOURS[letter]
    return picture


def with_matrix(path: Path, values: tuple[int, int, int, int]) -> Path:
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") - 4
    a, b, c, d = (value * 65536 for value in values)
    width, height = struct.unpack_from(">II", data, start + 84)
    moved = (width if a < 0 or c < 0 else 0, height if b < 0 or d < 0 else 0)
    struct.pack_into(">9i", data, start + 48, a, b, 0, c, d, 0, *moved, 1 << 30)
    path.write_bytes(data)
    return path


def with_sei(path: Path, target: Path, orientation: str) -> Path:
    command = [system_program("ffmpeg"), "-v", "error", "-i", str(path), "-c", "copy"]
    subprocess.run([*command, "-bsf:v", f"h264_metadata=display_orientation=insert:{orientation}", target], check=True)
    return target


def corners(picture: NDArray[np.uint8]) -> str:
    """The colours top left, top right, bottom left and bottom right."""
    height_px, width_px = picture.shape[:2]
    found = [picture[row * height_px // 4, column * width_px // 4].astype(int) for row in (1, 3) for column in (1, 3)]
    return "".join(min(COLOURS, key=lambda name: np.abs(colour - COLOURS[name]).sum()) for colour in found)


def check_as_shown(path: Path) -> Clip:
    """Compares the packed frames with the first one as the ffmpeg program shows it."""
    shown = path.with_suffix(".png")
    subprocess.run([system_program("ffmpeg"), "-v", "error", "-i", path, "-frames:v", "1", shown], check=True)
    wanted = np.asarray(Image.open(shown).convert("RGB"))
    clip = read_clip(path, ClipConfig(num_frames=4, short_side_px=0), DecodeLimits())
    frames = decode_frames(clip.jpegs)
    assert frames.shape[1:] == wanted.shape
    assert {corners(frame) for frame in frames} == {corners(wanted)}
    assert np.abs(frames[0].astype(int) - wanted).mean() < 6
    return clip


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("extension", ["mp4", "mov"])
def test_a_tracks_matrix(tmp_path: Path, name: str, extension: str) -> None:
    path = write_video(tmp_path / f"video.{extension}", [four_corners()] * 6, options={"qp": "10"})
    clip = check_as_shown(with_matrix(path, MATRICES[name]))
    assert clip.decode_road == "needed"
    assert clip == read_clip(path.read_bytes(), ClipConfig(num_frames=4, short_side_px=0), DecodeLimits())


def test_eight_matrices_give_eight_pictures(tmp_path: Path) -> None:
    seen = set()
    for name, values in MATRICES.items():
        path = with_matrix(write_video(tmp_path / f"{name}.mp4", [four_corners()] * 2), values)
        seen.add(corners(decode_frames(read_clip(path, ClipConfig(num_frames=1), DecodeLimits()).jpegs)[0]))
    assert len(seen) == 8


@pytest.mark.parametrize("orientation", SEI.values(), ids=SEI)
@pytest.mark.parametrize("extension", ["mp4", "ts"])
def test_an_sei_of_the_first_frame(tmp_path: Path, orientation: str, extension: str) -> None:
    source = write_video(tmp_path / "source.mp4", [four_corners()] * 6, options={"qp": "10"})
    check_as_shown(with_sei(source, tmp_path / f"video.{extension}", orientation))
