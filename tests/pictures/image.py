"""Picture files small enough for a front page: PNGs with a palette, animated WebP, and a drawn mouse pointer."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

NUM_COLOURS = 256
SHARPER = 4  # shapes are drawn this much larger and shrunk, which smooths their edges
OPACITY = 215  # of what is dragged, of 255
POINTER = ((0, 0), (0, 26), (6, 20.5), (10.3, 30), (14.3, 28.2), (10.2, 19), (18, 19))
"""Outline of an arrow in pixels from its tip."""


def save_png(png: bytes, path: Path, max_width_px: int | None = None) -> None:
    """Writes a picture as a PNG with a palette, which is a third of the size; a wider one is shrunk."""
    with Image.open(io.BytesIO(png)) as image:
        if max_width_px:
            image.thumbnail((max_width_px, image.height), Image.Resampling.LANCZOS)
        # Without dithering: it would put noise on plain areas, and noise is large.
        image.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def save_animation(frames: Sequence[Image.Image], milliseconds: Sequence[int], path: Path) -> None:
    """Writes frames as a WebP that plays for ever; each is shown for its time.

    Without loss: text stays sharp, and what stands still costs next to nothing.
    """
    first, *others = frames
    first.save(path, save_all=True, append_images=others, duration=list(milliseconds), loop=0, lossless=True, method=6)


def with_pointer(frame: Image.Image, x: float, y: float, dragged: Image.Image | None) -> Image.Image:
    """Returns a frame with a mouse pointer whose tip is at (x, y) pixels, and the thumbnail of a file dragged by it."""
    shown = frame.copy()
    if dragged is not None:
        shown.paste(dragged, (round(x) + 14, round(y) + 16), Image.new("L", dragged.size, OPACITY))
    layer = Image.new("RGBA", (frame.width * SHARPER, frame.height * SHARPER))
    outline = [((x + dx) * SHARPER, (y + dy) * SHARPER) for dx, dy in POINTER]
    ImageDraw.Draw(layer).polygon(outline, "black", "white", width=2 * SHARPER)
    layer = layer.resize(frame.size, Image.Resampling.BOX)
    shown.paste(layer, mask=layer)
    return shown


def thumbnail(picture: Image.Image, side_px: int = 72) -> Image.Image:
    """Returns a picture as the small square that a file manager drags along."""
    square = picture.convert("RGB").resize((side_px, side_px))
    ImageDraw.Draw(square).rectangle((0, 0, side_px - 1, side_px - 1), outline="white", width=2)
    return square
