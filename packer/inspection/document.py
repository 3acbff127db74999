"""Writes a contact sheet's pages as one HTML document that asks for nothing outside itself.

Its policy (CSP) forbids everything but its own style, its own script and pictures that it holds. Names from the pack
are escaped, and set apart (`bdi`) so that the direction of their writing changes nothing around them. Without the
script, links still turn the pages.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from packer.inspection.clips import Cell
from packer.inspection.pages import ClipPage, Page, RejectedPage, Rejections, is_upright
from packer.shards.sample import SampleRow

OPENING = "<!doctype html>\n<!-- contact sheet of clipstream -->\n"
"""Every sheet begins like this; nothing else does."""
_STATIC = Path(__file__).parent / "static"


def document(title: str, navigation: str, sections: Iterable[str]) -> Iterator[str]:
    """Yields the document, piece by piece.

    Args:
        title: What the sheet is about, as text.
        navigation: HTML of `class_links` and `rejected_links`.
        sections: HTML of the pages.
    """
    style, script = ((_STATIC / name).read_text(encoding="utf-8") for name in ("sheet.css", "sheet.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    yield (
        f'{OPENING}<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: contact sheet</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<aside>\n<h1><bdi>{escape(title)}</bdi></h1>\n{navigation}</aside>\n<main>\n"
    )
    yield from sections
    yield f"</main>\n<script>{script}</script>\n</body>\n</html>\n"


def _digest(text: str) -> str:
    """Returns a text's digest as a policy names it. Source: W3C, Content Security Policy Level 3, 2.3.1."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def class_links(class_names: Sequence[str], splits: Sequence[str], cells: Sequence[Cell], num_hidden: int) -> str:
    """Returns a table of classes and splits, in which each number of samples is a link to the first page about them.

    Args:
        class_names: The rows.
        splits: The columns.
        cells: What has pages.
        num_hidden: How many classes of the pack are left out.
    """
    found = {(cell.class_name, cell.split): cell for cell in cells}
    head = "".join(f'<th scope="col">{escape(split)}</th>' for split in splits)
    rows = [
        f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th>'
        + "".join(f"<td>{_cell_link(found.get((name, split)))}</td>" for split in splits)
        + "</tr>\n"
        for name in class_names
    ]
    more = f"<p>The largest and smallest classes; <code>--all</code> shows {num_hidden} more.</p>\n"
    return (
        f'<nav aria-label="Classes and splits">\n<table>\n<thead><tr><th scope="col">Class</th>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>\n</nav>\n{more if num_hidden else ''}"
    )


def _cell_link(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    label = escape(f"{cell.class_name}, {cell.split}: {_counted(cell.num_samples, 'sample')}")
    return f'<a href="#{ClipPage(cell, (), 1, 1).anchor}" aria-label="{label}">{cell.num_samples:,}</a>'


def rejected_links(rejections: Sequence[Rejections] | None) -> str:
    """Returns a table of what was not packed, in which each number is a link to the first page about one reason.

    Args:
        rejections: What was not packed; None if the pack has lost the list.
    """
    if rejections is None:
        return "<p>The list of rejected files is missing.</p>\n"
    if not rejections:
        return "<p>No file was rejected.</p>\n"
    rows = [
        f'<tr><th scope="row">{escape(found.reason)} <small>{found.kind}</small></th>'
        f'<td><a href="#{escape(RejectedPage(found, (), 1, 1).anchor)}">{found.num_rows:,}</a></td></tr>\n'
        for found in rejections
    ]
    return (
        '<nav aria-label="Not packed">\n<table>\n<thead><tr><th scope="col">Not packed</th><td></td></tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>\n</nav>\n"
    )


def page_start(page: Page, before: Page | None, after: Page | None) -> str:
    """Returns the beginning of a page: its title, what it shows, and links to the pages before and after it."""
    title, shown = _clip_heading(page) if isinstance(page, ClipPage) else _rejected_heading(page)
    place = f", page {page.number} of {page.num_pages}" if page.num_pages > 1 else ""
    return (
        f'<section id="{escape(page.anchor)}" tabindex="-1">\n<header>\n<h2>{title}</h2>\n<p>{shown}{place}</p>\n'
        f'<p class="turn">{_turn(before, "Previous")} {_turn(after, "Next")}</p>\n</header>\n'
    )


def page_end() -> str:
    """Returns the end of a page."""
    return "</section>\n"


def _clip_heading(page: ClipPage) -> tuple[str, str]:
    cell = page.cell
    some = f"{len(cell.clips)} of " if len(cell.clips) < cell.num_samples else ""
    title = f"<bdi>{escape(cell.class_name)}</bdi> <small>{escape(cell.split)}</small>"
    return title, f"{some}{_counted(cell.num_samples, 'sample')}"


def _rejected_heading(page: RejectedPage) -> tuple[str, str]:
    found = page.rejections
    some = f"{len(found.rows)} of " if len(found.rows) < found.num_rows else ""
    one, many = ("row of the labels", "rows of the labels") if found.kind == "no file" else ("file", "files")
    title = f"{escape(found.reason)} <small>{found.kind}</small>"
    return title, f"{some}{_counted(found.num_rows, one, many)}; rejected.csv lists them all"


def _turn(page: Page | None, text: str) -> str:
    return f'<a href="#{escape(page.anchor)}">{text}</a>' if page else f"<span>{text}</span>"


def rejected_table(page: RejectedPage) -> str:
    """Returns the rows of a page about rejected files."""
    rows = [
        "<tr>"
        + "".join(f"<td><bdi>{escape(text)}</bdi></td>" for text in (row.source, row.class_name, row.split))
        + f"<td>{escape(row.message)}</td></tr>\n"
        for row in page.rows
    ]
    head = "".join(f'<th scope="col">{text}</th>' for text in ("File", "Class", "Split", "Why"))
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n"


def clip_article(clip: SampleRow, frames: Iterable[tuple[int, bytes]]) -> str:
    """Returns a clip: its file, what is known about it, and its frames, each given as its number and its JPEG."""
    damage = f" <strong>damaged: {escape(', '.join(clip.damage))}</strong>" if clip.damage else ""
    size = f'width="{clip.width_px}" height="{clip.height_px}"'
    images = [
        f'<img alt="frame {index}" title="frame {index}" {size} '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        for index, jpeg in frames
    ]
    return (
        f"<article>\n<h3><bdi>{escape(clip.source)}</bdi></h3>\n<p>{_facts(clip)}{damage}</p>\n"
        f'<div class="{"upright" if is_upright(clip) else "wide"}">{"".join(images)}</div>\n</article>\n'
    )


def _facts(clip: SampleRow) -> str:
    parts = [clip.split]
    if clip.num_segment_frames:
        end = clip.end_seconds if clip.end_seconds is not None else clip.duration_seconds
        parts.append(f"{_clock(clip.start_seconds or 0.0)} to {_clock(end)} of {_clock(clip.duration_seconds)}")
    elif clip.duration_seconds:
        parts.append(f"{clip.duration_seconds:.1f} s" if clip.duration_seconds < 60 else _clock(clip.duration_seconds))
    parts.append(_counted(clip.num_segment_frames or clip.num_frames, "frame"))
    parts.append(f"{clip.source_width_px} x {clip.source_height_px}")
    return escape(", ".join(parts))


def _clock(seconds: float) -> str:
    """Returns a time as players show it, to a tenth: `0:12.5`, `1:02:03.0`."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}:{minutes:02d}' if hours else minutes}:{tenths // 10:02d}.{tenths % 10}"


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
