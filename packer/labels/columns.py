"""The columns of a table of labels: the names that each may have, and what a header must not hold."""

import difflib
from collections.abc import Iterator, Mapping, Sequence

from configs.section import UsageError
from packer.labels.delimited import column_name
from packer.labels.row_list import named
from packer.labels.table_file import Table
from packer.video.catalog import has_video_extension

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": (
        *("path", "filepath", "file_path", "file_name", "filename", "file", "video", "video_path", "videopath"),
        "source",
    ),
    "video_id": ("video_id",),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "subset"),
    "group": ("group", "site", "subject", "recording"),
    "start": ("start", "start_time", "start_seconds", "time_start"),
    "end": ("end", "end_time", "end_seconds", "time_end"),
    "start_frame": ("start_frame",),
    "end_frame": ("end_frame",),
}
"""The columns, and the names that each may have."""
_COLUMN_OF = {alias: column for column, aliases in COLUMNS.items() for alias in aliases}
_BEGIN_WORDS = frozenset({"start", "begin", "onset"})
_END_WORDS = frozenset({"stop", "end"})
_BEGIN_NAMES = frozenset({"first", "first_frame", "frame_first", "from", "from_frame", "in", "in_point", "t0", "tmin"})
_END_NAMES = frozenset({"last", "last_frame", "frame_last", "to", "to_frame", "out", "out_point", "t1", "tmax"})
"""Names that bound a segment if one of each is there; alone, they may mean anything."""
_RANGE_NAMES = frozenset({"segment", "segments", "interval", "time_range", "timestamps", "support"})
_LENGTH_WORDS = frozenset({"duration", "length", "offset"})
_DATE_WORDS = frozenset({"date", "day", "datetime"})
_NUM_SHOWN = 10


def find_columns(table: Table) -> dict[str, int]:
    """Returns the index of each column that the table has, by its first name in `COLUMNS`.

    Raises:
        UsageError: A column is missing or there twice, or one that is not read seems to bound segments.
    """
    plain = [column_name(name) for name in table.names]
    found: dict[str, list[int]] = {}
    for index, name in enumerate(plain):
        if name in _COLUMN_OF:
            found.setdefault(_COLUMN_OF[name], []).append(index)
    for column, places in found.items():
        if len(places) > 1:
            names = [table.names[place] for place in places]
            what = f"the column {names[0]} twice" if len(set(names)) == 1 else f"the columns {' and '.join(names)}"
            raise UsageError(
                f"{table.file_name} has {what}, which mean{'s' * (len(set(names)) == 1)} the {column} of a clip: keep "
                "one of them, and rename or remove the other"
            )
    if "path" in found:
        found.pop("video_id", None)
    _check_needed(table, found)
    _check_bounds(table, found, plain)
    return {column: places[0] for column, places in found.items()}


def _check_needed(table: Table, found: Mapping[str, list[int]]) -> None:
    has_path = "path" in found or "video_id" in found
    if has_path and "label" in found:
        return
    shown = ", ".join(table.names[:_NUM_SHOWN])
    if not has_path and "label" not in found and any(has_video_extension(name) for name in table.names):
        raise UsageError(
            f"{table.file_name} has no header: its first line must name the columns, such as path,label; it is {shown}"
        )
    missing = "label" if has_path else "path"
    aliases = [name for name in COLUMNS[missing] if name != missing]
    typos = [name for name in table.names if _meant(name) == missing]
    hint = ""
    if typos:
        hint = f"; did you mean {typos[0]}? Then rename it"
    elif len(table.names) == 1:
        hint = "; values must be separated by commas, semicolons or tabs"
    raise UsageError(
        f"{table.file_name} has no column {missing} (or {', '.join(aliases)}); its columns are: {shown}{hint}"
    )


def _check_bounds(table: Table, found: Mapping[str, list[int]], plain: Sequence[str]) -> None:
    """Refuses columns that seem to bound segments but are not read: whole videos would get a segment's label."""
    seconds, frames = (sorted(names & found.keys()) for names in ({"start", "end"}, {"start_frame", "end_frame"}))
    if seconds and frames:
        raise UsageError(
            f"{table.file_name} gives its segments both in seconds ({', '.join(seconds)}) and in frames "
            f"({', '.join(frames)}): remove one of the two"
        )
    unread = [name for name, word in zip(table.names, plain, strict=True) if word not in _COLUMN_OF]
    if bounds := _unread_bounds(unread, seconds + frames):
        raise UsageError(
            f"{table.file_name} has the column{'s' * (len(bounds) > 1)} {named(bounds)}, which may bound a segment: "
            "rename to start and end for seconds (or mm:ss), to start_frame and end_frame for frames from 0 without "
            "the last, or remove it"
        )


def _unread_bounds(unread: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the names of unread columns that may bound segments, beside the bounds that are known."""
    words = {name: set(column_name(name).split("_")) for name in unread}
    words = {name: of_name for name, of_name in words.items() if not of_name & _DATE_WORDS}
    begins = {name for name in words if column_name(name) in _BEGIN_NAMES}
    ends = {name for name in words if column_name(name) in _END_NAMES}
    if len(known) > 1:
        return []
    if known and known[0].startswith("start"):
        return [name for name in words if words[name] & (_END_WORDS | _LENGTH_WORDS) or name in ends]
    if known:
        return [name for name in words if words[name] & _BEGIN_WORDS or name in begins]
    pair = begins | ends if begins and ends else set()
    either = _BEGIN_WORDS | _END_WORDS
    return [name for name in words if words[name] & either or name in pair or column_name(name) in _RANGE_NAMES]


def unread_notes(table: Table, index_of: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yields which columns are not read, as (label, text); a name that may be a misspelling has a text of its own."""
    unread = [name for index, name in enumerate(table.names) if name and index not in index_of.values()]
    for name in unread:
        meant = _meant(name)
        if meant is not None and meant not in index_of:
            yield "columns", f"{name} is not read; if it is meant to be {meant}, rename it"
    if unread:
        yield "columns", f"not read: {', '.join(unread[:_NUM_SHOWN])}{', ...' * (len(unread) > _NUM_SHOWN)}"


def _meant(name: str) -> str | None:
    """Returns the column that a name is probably a misspelling of."""
    plain = column_name(name)
    if plain in _COLUMN_OF:
        return None
    alike = difflib.get_close_matches(plain, _COLUMN_OF, n=1, cutoff=0.75)
    return _COLUMN_OF[alike[0]] if alike else None


def is_header(names: Sequence[str]) -> bool:
    """Tells whether names, as `column_name` writes them, are those of a table: there is a video and a label."""
    found = {_COLUMN_OF[name] for name in names if name in _COLUMN_OF}
    return "label" in found and not found.isdisjoint({"path", "video_id"})
