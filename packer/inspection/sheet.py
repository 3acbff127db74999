"""Draws a contact sheet of a complete pack: a row of clips per class."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from packer.inspection.classes import shown_classes
from packer.progress import Progress
from packer.shards.manifest import read_manifest, read_samples
from packer.shards.sample import read_members
from packer.storage.files import read_range
from packer.storage.location import Location

_TILE_WIDTH_PX, _TILE_HEIGHT_PX = 96, 72
_FRAMES_PER_CLIP = 3
_GAP_PX = 6
_TITLE_PX = 18
_BESIDE_FRAME = (225, 225, 225)
"""Light grey: black would look like a part of the picture."""
_COLUMNS = (
    *("key", "shard", "offset", "num_bytes", "class_index"),
    *("duration_seconds", "start_seconds", "end_seconds", "num_segment_frames"),
)


def draw_sheet(folder: Location, num_clips: int, show_all: bool = False) -> Image.Image:
    """Returns a contact sheet: per class a row of clips, each by its first, middle and last frame.

    A clip of a segment says which part of its video it shows.

    Args:
        folder: A complete pack.
        num_clips: Most clips of a class; they are spread evenly over its samples.
        show_all: Draw every class; otherwise those of `shown_classes`.

    Raises:
        ManifestError: There is no complete pack.
        ValueError: A sample is damaged.
    """
    manifest = read_manifest(folder)
    first, last = shown_classes(manifest, show_all)
    names = [*first, *last]
    table = read_samples(folder, None, _COLUMNS)
    order = np.argsort(table["class_index"].to_numpy(), kind="stable")
    starts = np.searchsorted(table["class_index"].to_numpy()[order], np.arange(len(manifest.class_names) + 1))
    width_px = _GAP_PX + num_clips * (_FRAMES_PER_CLIP * _TILE_WIDTH_PX + _GAP_PX)
    row_px = _TITLE_PX + _TILE_HEIGHT_PX + _GAP_PX
    num_hidden = len(manifest.class_names) - len(names)
    sheet = Image.new("RGB", (width_px, len(names) * row_px + _GAP_PX + _TITLE_PX * bool(num_hidden)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TITLE_PX - 5)
    top = _GAP_PX
    with Progress(len(names), "class", "sheet") as progress:
        for number, name in enumerate(names):
            if num_hidden and number == len(first):
                draw.text((_GAP_PX, top), f"... and {num_hidden} more classes (--all)", "black", font)
                top += _TITLE_PX
            index = manifest.class_names.index(name)
            samples = order[starts[index] : starts[index + 1]]
            draw.text((_GAP_PX, top), f"{name}: {len(samples)}", "black", font)
            _draw_clips(sheet, top + _TITLE_PX, folder, _spread(table, samples, num_clips))
            top += row_px
            progress.update()
    return sheet


def _spread(table: pa.Table, samples: np.ndarray, num_clips: int) -> list[dict[str, Any]]:
    num_picked = min(num_clips, len(samples))
    places = [samples[place * len(samples) // num_picked] for place in range(num_picked)]
    picked: list[dict[str, Any]] = table.take(places).to_pylist() if places else []
    return picked


def _draw_clips(sheet: Image.Image, top: int, folder: Location, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        left = _GAP_PX + place * (_FRAMES_PER_CLIP * _TILE_WIDTH_PX + _GAP_PX)
        for number, tile in enumerate(_tiles(folder, row)):
            sheet.paste(tile, (left + number * _TILE_WIDTH_PX, top))
        if row.get("num_segment_frames"):
            _draw_note(sheet, left, top + _TILE_HEIGHT_PX, _time_range(row))


def _draw_note(sheet: Image.Image, left: int, bottom: int, text: str) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    box = draw.textbbox((left + 2, bottom - 2), text, font, anchor="lb")
    draw.rectangle((left, box[1] - 2, box[2] + 2, bottom - 1), "black")
    draw.text((left + 2, bottom - 2), text, "white", font, anchor="lb")


def _time_range(row: dict[str, Any]) -> str:
    end = row["end_seconds"] if row["end_seconds"] is not None else row["duration_seconds"]
    return f"{_clock(row['start_seconds'] or 0.0)} - {_clock(end)}"


def _clock(seconds: float) -> str:
    """Returns a time as players show it, to a tenth: `0:12.5`, `1:02:03.0`."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}:{minutes:02d}' if hours else minutes}:{tenths // 10:02d}.{tenths % 10}"


def _tiles(folder: Location, row: dict[str, Any]) -> list[Image.Image]:
    try:
        stored = read_members(read_range(folder / row["shard"], row["offset"], row["num_bytes"]))
    except ValueError as error:
        raise ValueError(f"{folder / row['shard']} is damaged: the place of {row['key']} {error}") from error
    if stored.key != row["key"]:
        raise ValueError(f"{folder / row['shard']} is damaged: the place of {row['key']} holds {stored.key}")
    jpegs = stored.jpegs
    last = len(jpegs) - 1
    tiles = []
    for number in (0, last // 2, last):
        tile = Image.new("RGB", (_TILE_WIDTH_PX, _TILE_HEIGHT_PX), _BESIDE_FRAME)
        with Image.open(io.BytesIO(jpegs[number])) as frame:
            frame.thumbnail((_TILE_WIDTH_PX, _TILE_HEIGHT_PX))
            tile.paste(frame, ((_TILE_WIDTH_PX - frame.width) // 2, (_TILE_HEIGHT_PX - frame.height) // 2))
        tiles.append(tile)
    return tiles
