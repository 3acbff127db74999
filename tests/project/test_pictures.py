"""The pictures of the documentation: small, sharp enough, and in the formats that browsers show."""

from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
STILLS = ("page.png", "sheet.png", "explain.png", "mlflow-curves.png", "mlflow-confusion.png")
MAX_STILL_BYTES, MAX_MOVING_BYTES = 300_000, 2_000_000


def test_no_other_file_lies_beside_them() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*STILLS, "drop.webp"}


@pytest.mark.parametrize("name", STILLS)
def test_a_still_is_small_and_readable(name: str) -> None:
    assert (FOLDER / name).stat().st_size < MAX_STILL_BYTES
    with Image.open(FOLDER / name) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        assert 800 <= image.width <= 1200
        assert len(image.getcolors()) > 16  # no blank page
        assert not image.text  # no name of a program or a machine


def test_the_moving_picture_shows_a_drop_and_its_answer() -> None:
    path = FOLDER / "drop.webp"
    assert path.stat().st_size < MAX_MOVING_BYTES
    with Image.open(path) as image:
        assert image.format == "WEBP"
        assert image.info["loop"] == 0
        assert 600 <= image.width <= 1200
        frames = [_frame(image, number) for number in range(image.n_frames)]
    assert len(set(frames)) > 20


def _frame(image: Image.Image, number: int) -> bytes:
    image.seek(number)
    return image.convert("RGB").tobytes()
