"""Draws what explain and review found, as PNG pages: evidence over frames, and clips side by side.

Only drawing is done here. Colours: orange speaks for a class, blue for the one that it is compared with; both are told
apart by people who confuse red and green.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from packer.video.sampling import frame_indices

TILE_PX = 168
"""Side of a frame: the usual 112 px enlarged by 1.5."""
COLUMNS = 8
FRAMES_EXPLAINED = 16
"""Most frames of a clip that are drawn with their evidence: two rows."""
STRIP_FRAMES = 4
"""Frames of a clip that is only shown; two such strips fill a row."""
STRIPS_PER_PAGE = 16
"""So a page is at most 2,000 px high, which a browser shows unshrunk."""
FOR, AGAINST = (230, 97, 1), (30, 120, 220)
"""RGB of what speaks for the class, and of what speaks for the other one."""
_INK, _PALE, _AXIS = "#1f2328", "#57606a", "#afb8c1"
_MARGIN_PX, _GAP_PX = 16, 6
_BAR_PX = 56
_CELL_PX = TILE_PX + _GAP_PX
_WIDTH_PX = 2 * _MARGIN_PX + COLUMNS * _CELL_PX - _GAP_PX
_TITLE_POINTS, _TEXT_POINTS, _NOTE_POINTS = 24, 18, 16
_TITLE_PX, _NOTE_PX = 24, 24
"""Heights of the two lines above a strip."""
_STRONGEST = 0.75
"""Opacity of the strongest evidence: the frame stays visible below it."""


@dataclass(frozen=True)
class Strip:
    """A clip that is shown with two lines of text."""

    title: str
    note: str
    frames: NDArray[np.uint8]
    """`(T, S, S, 3) uint8 RGB`."""


@dataclass(frozen=True)
class Evidence:
    """What of a clip spoke for which of two classes."""

    frames: NDArray[np.uint8]
    """`(T, S, S, 3) uint8 RGB`."""
    maps: NDArray[np.float32]
    """`(T, S, S)`; above 0: for the class, below: for the other one."""
    shares: NDArray[np.float32]
    """`(T,)` each frame's share of all evidence, -1 to 1."""
    class_name: str
    other_name: str


def draw_explanation(title: str, notes: Sequence[str], evidence: Evidence, neighbours: Sequence[Strip]) -> bytes:
    """Returns a page about one clip: its frames, where and when the evidence lies, and the train clips nearest to it.

    Args:
        title: First line.
        notes: Lines below it.
        evidence: What is drawn over the frames.
        neighbours: The nearest train clips; may be empty.
    """
    parts = [_heading(title, notes), _legend(evidence), *_evidence_rows(evidence)]
    if neighbours:
        head = "Nearest train clips: those that the model itself finds most alike (1: the same direction of features)"
        parts += [_text_line(head, _TEXT_POINTS), *_strip_rows(neighbours)]
    return _page(parts)


def draw_strips(title: str, notes: Sequence[str], strips: Sequence[Strip]) -> list[bytes]:
    """Returns pages that show clips with their texts, `STRIPS_PER_PAGE` on each; the first has the heading."""
    pages = []
    for start in range(0, len(strips), STRIPS_PER_PAGE):
        head = [_heading(title, notes)] if not start else [_text_line(f"{title}, continued", _TEXT_POINTS)]
        pages.append(_page([*head, *_strip_rows(strips[start : start + STRIPS_PER_PAGE])]))
    return pages


def _heading(title: str, notes: Sequence[str]) -> Image.Image:
    lines = [_text_line(title, _TITLE_POINTS), *(_text_line(note, _TEXT_POINTS) for note in notes)]
    return _stack([*lines, Image.new("RGB", (_WIDTH_PX, _GAP_PX), "white")])


def _legend(evidence: Evidence) -> Image.Image:
    line = Image.new("RGB", (_WIDTH_PX, 36), "white")
    draw, font = ImageDraw.Draw(line), _font(_NOTE_POINTS)
    texts = [
        (FOR, f"speaks for {evidence.class_name}"),
        (AGAINST, f"speaks for {evidence.other_name}"),
        (None, "stronger colour: more weight. Bar below a frame: the frame's share of all weight"),
    ]
    left = _MARGIN_PX
    for colour, text in texts:
        if colour:
            draw.rectangle((left, 8, left + 16, 24), colour)
            left += 20
        shown = _fitted(text, font, (_WIDTH_PX - _MARGIN_PX - left) if colour is None else _WIDTH_PX // 4)
        draw.text((left, 6), shown, _INK, font)
        left += round(font.getlength(shown)) + 28
    return line


def _evidence_rows(evidence: Evidence) -> list[Image.Image]:
    numbers = _explained(evidence.shares)
    # One scale for all frames, so that colours can be compared; a few extreme pixels must not make the rest pale.
    scale = float(np.quantile(np.abs(evidence.maps), 0.995)) or 1.0
    longest = float(np.abs(evidence.shares).max()) or 1.0
    rows = []
    if len(numbers) < len(evidence.frames):
        note = f"{len(numbers)} of {len(evidence.frames)} frames: those of most weight"
        rows.append(_text_line(note, _NOTE_POINTS, _PALE))
    for start in range(0, len(numbers), COLUMNS):
        row = Image.new("RGB", (_WIDTH_PX, 2 * (TILE_PX + _GAP_PX) + _BAR_PX + 40), "white")
        for column, number in enumerate(numbers[start : start + COLUMNS]):
            left = _MARGIN_PX + column * _CELL_PX
            frame = evidence.frames[number]
            row.paste(_tile(frame), (left, 0))
            row.paste(_heat_tile(frame, evidence.maps[number] / scale), (left, TILE_PX + _GAP_PX))
            _draw_bar(row, left, 2 * (TILE_PX + _GAP_PX), number, float(evidence.shares[number]), longest)
        rows.append(row)
    return rows


def _explained(shares: NDArray[np.float32]) -> list[int]:
    """Returns the numbers of the frames that are drawn, in order: of a long clip those of most weight."""
    most_first = np.argsort(-np.abs(shares), kind="stable")[:FRAMES_EXPLAINED]
    return sorted(int(number) for number in most_first)


def _draw_bar(row: Image.Image, left: int, top: int, number: int, share: float, longest: float) -> None:
    draw, font = ImageDraw.Draw(row), _font(_NOTE_POINTS)
    middle = top + _BAR_PX // 2
    height = round(share / longest * (_BAR_PX // 2 - 1))
    inset = TILE_PX // 4
    if height:
        bounds = (left + inset, min(middle, middle - height), left + TILE_PX - inset, max(middle, middle - height))
        draw.rectangle(bounds, FOR if share > 0 else AGAINST)
    draw.line((left, middle, left + TILE_PX, middle), _AXIS)
    text = f"frame {number + 1}: {share:+.0%}" if round(100 * share) else f"frame {number + 1}: 0%"
    draw.text((left + TILE_PX // 2, top + _BAR_PX + 4), text, _INK, font, anchor="ma")


def _heat_tile(frame: NDArray[np.uint8], weights: NDArray[np.float32]) -> Image.Image:
    """Returns a frame in pale grey below the colours of its evidence; `weights` of 1 and -1 have the full colour."""
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(frame)).convert("L"), np.float32)[..., None]
    opacity = np.clip(np.abs(weights), 0, 1)[..., None] * _STRONGEST
    colour = np.where(weights[..., None] > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    return _tile(((1 - opacity) * (64 + 0.75 * grey) + opacity * colour).astype(np.uint8))


def _strip_rows(strips: Sequence[Strip]) -> list[Image.Image]:
    rows = []
    width_px = COLUMNS // 2 * _CELL_PX - 2 * _GAP_PX
    for start in range(0, len(strips), 2):
        row = Image.new("RGB", (_WIDTH_PX, _TITLE_PX + _NOTE_PX + TILE_PX + 3 * _GAP_PX), "white")
        draw = ImageDraw.Draw(row)
        for place, strip in enumerate(strips[start : start + 2]):
            left = _MARGIN_PX + place * COLUMNS // 2 * _CELL_PX
            draw.text((left, 0), _fitted(strip.title, _font(_TEXT_POINTS), width_px), _INK, _font(_TEXT_POINTS))
            draw.text((left, _TITLE_PX), _fitted(strip.note, _font(_NOTE_POINTS), width_px), _PALE, _font(_NOTE_POINTS))
            for column, number in enumerate(_spread(len(strip.frames))):
                row.paste(_tile(strip.frames[number]), (left + column * (TILE_PX + 2), _TITLE_PX + _NOTE_PX))
        rows.append(row)
    return rows


def _spread(num_frames: int) -> list[int]:
    return list(frame_indices(num_frames, STRIP_FRAMES)) if num_frames > STRIP_FRAMES else list(range(num_frames))


def _tile(frame: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    return picture.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)


def _text_line(text: str, points: int, ink: str = _INK) -> Image.Image:
    line = Image.new("RGB", (_WIDTH_PX, round(1.5 * points)), "white")
    font = _font(points)
    ImageDraw.Draw(line).text((_MARGIN_PX, 0), _fitted(text, font, _WIDTH_PX - 2 * _MARGIN_PX), ink, font)
    return line


def _font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(points)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: float) -> str:
    """Returns a text that is at most so wide; of a longer one, the middle is left out: both ends of a path matter."""
    if font.getlength(text) <= width_px:
        return text
    num_kept = len(text) - 1
    while (
        num_kept
        and font.getlength(shown := f"{text[: num_kept // 2]}…{text[-(num_kept - num_kept // 2) :]}") > width_px
    ):
        num_kept -= 1
    return shown


def _stack(parts: Sequence[Image.Image]) -> Image.Image:
    stacked = Image.new("RGB", (_WIDTH_PX, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        stacked.paste(part, (0, top))
        top += part.height
    return stacked


def _page(parts: Sequence[Image.Image]) -> bytes:
    margin = Image.new("RGB", (_WIDTH_PX, _MARGIN_PX), "white")
    file = io.BytesIO()
    _stack([margin, *parts, margin]).save(file, "PNG")
    return file.getvalue()
