"""Shows what a complete pack holds: counts, sizes, decode paths, and a picture of its clips."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from packer.progress import Progress
from packer.report import class_table
from packer.shards.manifest import read_manifest, read_samples
from packer.shards.sample import read_members
from packer.storage.files import read_range
from packer.storage.location import Location

_NUM_SIZES = 5
_TILE_WIDTH_PX, _TILE_HEIGHT_PX = 96, 72
_FRAMES_PER_CLIP = 3
_GAP_PX = 6
_TITLE_PX = 18


def format_inspection(folder: Location) -> str:
    """Returns what a pack holds, as the user reads it.

    Raises:
        ManifestError: There is no complete pack.
    """
    manifest = read_manifest(folder)
    counts = {name: split.num_per_class for name, split in manifest.splits.items()}
    table = pa.concat_tables([read_samples(folder, name) for name in manifest.splits])
    num_per_class = Counter(table["class_name"].to_pylist())
    num_bytes = [sum(shard.num_bytes for shard in split.shards) for split in manifest.splits.values()]
    num_frames = sorted(table["num_frames"].to_pylist())
    clip = manifest.clip
    lines = [
        *class_table(manifest.class_names, counts, manifest.config.split),
        "",
        f"clips     {clip.num_frames} frames, short side {clip.short_side_px or 'any'} px, JPEG {clip.jpeg_quality}",
        f"balance   the largest class has {max(num_per_class.values()) / min(num_per_class.values()):.1f} times the "
        "videos of the smallest",
        *(
            f"{name:<9} {size:,} bytes in {len(split.shards)} shard{'s' * (len(split.shards) != 1)}, "
            f"{size / max(1, split.num_samples):,.0f} a sample"
            for (name, split), size in zip(manifest.splits.items(), num_bytes, strict=True)
        ),
        f"stored    {_most(table, 'width_px', 'height_px')}",
        f"sources   {_most(table, 'source_width_px', 'source_height_px')}",
        f"frames    {num_frames[0]} to {num_frames[-1]} in a video, median {num_frames[len(num_frames) // 2]}",
        f"decoded   {_counted(_decoded(table['decode_road'].to_pylist()))}",
        f"damaged   {_counted(_damage(table)) or 'none'}",
        f"rejected  {_counted(list(manifest.rejected.items())) or 'none'}",
    ]
    return "\n".join(lines)


def _decoded(decode_roads: Sequence[str]) -> list[tuple[str, int]]:
    meanings = {"full": "in full", "needed": "as far as needed"}
    return [(meanings.get(name, name), count) for name, count in Counter(decode_roads).most_common()]


def _damage(table: pa.Table) -> list[tuple[str, int]]:
    if "damage" not in table.column_names:  # a pack of an earlier version
        return []
    return Counter(code for codes in table["damage"].to_pylist() for code in codes).most_common()


def _most(table: pa.Table, width: str, height: str) -> str:
    sizes = Counter(zip(table[width].to_pylist(), table[height].to_pylist(), strict=True)).most_common()
    more = f", {len(sizes) - _NUM_SIZES} more sizes" * (len(sizes) > _NUM_SIZES)
    return _counted([(f"of {wide} x {high}", count) for (wide, high), count in sizes[:_NUM_SIZES]]) + more


def _counted(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts)


def draw_sheet(folder: Location, num_clips: int) -> Image.Image:
    """Returns a contact sheet: per class a row of clips, each by its first, middle and last frame.

    Args:
        folder: A complete pack.
        num_clips: Most clips of a class; they are spread evenly over its samples.

    Raises:
        ManifestError: There is no complete pack.
        ValueError: A sample is damaged.
    """
    manifest = read_manifest(folder)
    table = pa.concat_tables([read_samples(folder, name) for name in manifest.splits])
    clip_px = _FRAMES_PER_CLIP * _TILE_WIDTH_PX
    width_px = _GAP_PX + num_clips * (clip_px + _GAP_PX)
    height_px = _TITLE_PX + _TILE_HEIGHT_PX + _GAP_PX
    sheet = Image.new("RGB", (width_px, len(manifest.class_names) * height_px + _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TITLE_PX - 5)
    with Progress(len(manifest.class_names), "class", "sheet") as progress:
        for number, name in enumerate(manifest.class_names):
            rows = table.filter(pc.field("class_name") == name)
            top = _GAP_PX + number * height_px
            draw.text((_GAP_PX, top), f"{name}: {rows.num_rows}", "black", font)
            for place, row in enumerate(_spread(rows, num_clips)):
                for tile_number, tile in enumerate(_tiles(folder, row)):
                    left = _GAP_PX + place * (clip_px + _GAP_PX) + tile_number * _TILE_WIDTH_PX
                    sheet.paste(tile, (left, top + _TITLE_PX))
            progress.update()
    return sheet


def _spread(rows: pa.Table, num_clips: int) -> list[dict[str, Any]]:
    num_picked = min(num_clips, rows.num_rows)
    picked: list[dict[str, Any]] = rows.take(
        [place * rows.num_rows // num_picked for place in range(num_picked)]
    ).to_pylist()
    return picked


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
        tile = Image.new("RGB", (_TILE_WIDTH_PX, _TILE_HEIGHT_PX), "black")
        with Image.open(io.BytesIO(jpegs[number])) as frame:
            frame.thumbnail((_TILE_WIDTH_PX, _TILE_HEIGHT_PX))
            tile.paste(frame, ((_TILE_WIDTH_PX - frame.width) // 2, (_TILE_HEIGHT_PX - frame.height) // 2))
        tiles.append(tile)
    return tiles
