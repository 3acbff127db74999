"""Contact sheets: PNG pictures that show clips as strips of frames, with two lines of text each.

The caller decides which clips are shown and what is written beside them. Only a training batch's texts are made here.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from packer.video.sampling import frame_indices
from trainer.stream.batch import Batch

FRAMES_SHOWN = 8
"""Most frames of a clip in its strip."""
TRAIN_CLIPS_SHOWN = 8
"""Most clips of a training batch on its sheet."""
MIN_TILE_PX, MAX_TILE_PX = 96, 160
"""Smaller frames are enlarged by a whole factor, larger ones are shrunk; frames between are shown as they are."""
_MARGIN_PX, _GAP_PX = 12, 2
_HEAD_PX, _TITLE_PX, _NOTE_PX = 34, 20, 18
_INK, _PALE = "#1f2328", "#6e7781"


@dataclass(frozen=True)
class Strip:
    """One clip of a sheet."""

    title: str
    note: str
    frames: NDArray[np.uint8]
    """`(T, S, S, 3) uint8 RGB`."""


def draw_sheet(head: str, strips: Sequence[Strip]) -> bytes:
    """Returns a sheet as PNG: for each clip two lines of text and up to `FRAMES_SHOWN` evenly spaced frames."""
    rows = [[_tile(frame) for frame in strip.frames[_shown(len(strip.frames))]] for strip in strips]
    side_px = rows[0][0].width if rows else MIN_TILE_PX
    row_px = _TITLE_PX + _NOTE_PX + side_px + _MARGIN_PX
    width_px = 2 * _MARGIN_PX + FRAMES_SHOWN * (side_px + _GAP_PX)
    sheet = Image.new("RGB", (width_px, _MARGIN_PX + _HEAD_PX + len(rows) * row_px), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN_PX, _MARGIN_PX), head, _INK, ImageFont.load_default(18))
    title_font, note_font = ImageFont.load_default(15), ImageFont.load_default(12)
    text_px = width_px - 2 * _MARGIN_PX
    for number, (strip, tiles) in enumerate(zip(strips, rows, strict=True)):
        top = _MARGIN_PX + _HEAD_PX + number * row_px
        draw.text((_MARGIN_PX, top), strip.title, _INK, title_font)
        draw.text((_MARGIN_PX, top + _TITLE_PX), _shortened(strip.note, note_font, text_px), _PALE, note_font)
        for place, tile in enumerate(tiles):
            sheet.paste(tile, (_MARGIN_PX + place * (side_px + _GAP_PX), top + _TITLE_PX + _NOTE_PX))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def draw_batch(batch: Batch, class_names: Sequence[str], sources: Sequence[str]) -> bytes:
    """Returns a sheet of a batch's first clips as PNG, as the model sees them; `sources` has one entry per clip."""
    return draw_sheet("Training clips as the model sees them", batch_strips(batch, class_names, sources))


def batch_strips(batch: Batch, class_names: Sequence[str], sources: Sequence[str]) -> list[Strip]:
    """Returns a batch's first clips, each with its class and file; a mixed clip with both classes and their shares."""
    real = [place for place, weight in enumerate(batch.weights.tolist()) if weight > 0][:TRAIN_CLIPS_SHOWN]
    clips_BTHWC = batch.clips[real].permute(0, 1, 3, 4, 2).cpu().numpy()
    return [
        Strip(_classes(batch, place, class_names), sources[place], clip)
        for place, clip in zip(real, clips_BTHWC, strict=True)
    ]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    """Returns a text that fits; the end of a path, which names the file, is kept."""
    if font.getlength(text) <= width_px:
        return text
    start = next(start for start in range(len(text)) if font.getlength(f"...{text[start:]}") <= width_px)
    return f"...{text[start:]}"


def _classes(batch: Batch, place: int, class_names: Sequence[str]) -> str:
    own = class_names[int(batch.labels[place])]
    if batch.other_labels is None or batch.shares is None or (share := float(batch.shares[place])) == 1:
        return own
    return f"{own} {share:.0%} + {class_names[int(batch.other_labels[place])]} {1 - share:.0%}"


def _shown(num_frames: int) -> list[int]:
    return list(frame_indices(num_frames, FRAMES_SHOWN)) if num_frames > FRAMES_SHOWN else list(range(num_frames))


def _tile(frame: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    if picture.width > MAX_TILE_PX:
        return picture.resize((MAX_TILE_PX, MAX_TILE_PX), Image.Resampling.LANCZOS)
    factor = -(-MIN_TILE_PX // picture.width)
    return picture.resize((factor * picture.width, factor * picture.width), Image.Resampling.NEAREST)
