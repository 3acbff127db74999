"""Finds the file that each row of labels is about.

A row never takes another file than its own: a path with folders must be the end of the file's path, or the file's path
below the data folder must be the end of the row's. Only a name alone may lie in any folder, if it is the only one.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from urllib.parse import unquote

from configs.section import UsageError
from packer.labels.rows import LabelRow, Labels
from packer.storage.location import Location
from packer.video.catalog import Catalog, Video, has_video_extension
from packer.video.container import VideoError
from packer.video.segment import Segment

_NUM_NAMED = 3
_NEVER = Fraction(10**12)
_WHOLE = Segment(Fraction(0))
_UNITS = ("seconds", "frames")


@dataclass(frozen=True)
class Labelled:
    """The videos that labels name."""

    catalog: Catalog
    """Rows without a file are among `non_videos`, as no_file; so are segments that no video can have, as bad_segment,
    and those with two labels, as contradiction."""
    split_of: Mapping[str, str]
    """The split by source, of the videos whose rows state one."""
    notes: tuple[tuple[str, str], ...]
    """What the user should know, as (label, text)."""


def match_labels(folder: Location, files: Catalog, labels: Labels) -> Labelled:
    """Returns the videos that labels name.

    Args:
        folder: The data folder.
        files: All files below it, as `find_unlabelled` gives them.
        labels: The labels.

    Raises:
        UsageError: No row has a file, a row may mean two files, two names mean one file, or a video has two splits.
    """
    finder = Finder([*files.videos, *(video for video, _ in files.non_videos)], folder)
    matched = [finder.match(row) for row in labels.rows]
    _check_any(folder, files, matched)
    check_names(matched)
    errors_of_files = {video.source: error for video, error in files.non_videos}
    rows_of: dict[str, list[LabelRow]] = defaultdict(list)
    videos: dict[str, Video] = {}
    set_aside: list[tuple[Video, VideoError]] = []
    for row, file in matched:
        video = _video(row, file)
        if file is None:
            set_aside.append((video, VideoError("no_file", f"{row.where} names it, and the data folder lacks it")))
        elif error := errors_of_files.get(file.source):
            set_aside.append((video, error))
        elif row.segment and row.segment.fault:
            error = VideoError("bad_segment", f"the segment of {row.where} {row.segment.fault}: correct the row")
            set_aside.append((video, error))
        else:
            rows_of[video.source].append(row)
            _check_one_file(row, videos.setdefault(video.source, video), video)
    contradictions = [found for source, rows in rows_of.items() for found in _contradictions(videos[source], rows)]
    contradicted = {video.source for video, _ in contradictions}
    kept = sorted((v for v in videos.values() if v.source not in contradicted), key=lambda video: video.source)
    if not kept:
        raise UsageError(f"{_first_error([*set_aside, *contradictions])}: not one row of the labels can be packed")
    catalog = Catalog(
        class_names=tuple(sorted({video.class_name for video in kept})),
        videos=tuple(kept),
        non_videos=tuple(_once([*set_aside, *contradictions])),
        num_skipped=files.num_skipped,
    )
    split_of = {video.source: _split(video, rows_of[video.source]) for video in kept}
    return Labelled(catalog, split_of, tuple(_notes(files, matched, catalog, rows_of)))


class Finder:
    """The files of a data folder, by all that a row may call them."""

    def __init__(self, files: Collection[Video], folder: Location | None = None) -> None:
        """Takes the files, and their folder if it is known."""
        self._root = f"{str(folder).rstrip('/')}/" if folder else ""
        self._by_source = {_nfc(file.source): file for file in files}
        self._by_name: dict[str, list[Video]] = defaultdict(list)
        self._by_stem: dict[str, list[Video]] = defaultdict(list)
        for file in files:
            name = _nfc(file.source).rpartition("/")[2]
            self._by_name[name].append(file)
            stem = "" if file.is_frame_folder else name.rpartition(".")[0]
            self._by_stem[stem or name].append(file)

    def match(self, row: LabelRow) -> tuple[LabelRow, Video | None]:
        """Returns the row and its file; if the file holds nothing but the segment, the row is about all of it.

        Raises:
            UsageError: The row may mean several files.
        """
        if row.trimmed_path and (trimmed := self._named(row, row.trimmed_path)):
            return replace(row, segment=None), trimmed
        return row, self._named(row, row.path) or (self._named(row, row.other_path) if row.other_path else None)

    def _named(self, row: LabelRow, name: str) -> Video | None:
        if row.is_id:
            folders, _, stem = _nfc(name).rpartition("/")
            ending = f"/{folders}/" if folders else "/"
            files = [file for file in self._by_stem[stem] if _folder(file).endswith(ending)]
            return _only(row, files)
        for path in dict.fromkeys((name, name.replace("\\", "/"), unquote(name))):
            if found := self._find(row, _nfc(path.removeprefix(self._root).rstrip("/"))):
                return found
        return None

    def _find(self, row: LabelRow, path: str) -> Video | None:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            if found := self._by_source.get("/".join(parts[start:])):
                return found
        if not parts:
            return None
        named = self._by_name[parts[-1]]
        if not named and not has_video_extension(parts[-1]):
            named = self._by_stem[parts[-1]]
        ending = f"/{'/'.join(parts)}"
        if len(parts) > 1:
            named = [file for file in named if _without_extension(file, parts[-1]).endswith(ending)]
        return _only(row, named)


def _folder(file: Video) -> str:
    return f"/{_nfc(file.source).rpartition('/')[0]}/".replace("//", "/")


def _without_extension(file: Video, name: str) -> str:
    source = f"/{_nfc(file.source)}"
    return source if source.endswith(f"/{name}") else source.rpartition(".")[0]


def _only(row: LabelRow, files: Sequence[Video]) -> Video | None:
    if len(files) > 1:  # datasets keep a folder per class, and some have the same clip in two of them
        files = [file for file in files if row.label in file.source.split("/")[:-1]] or files
    if len(files) > 1:
        raise UsageError(
            f"{row.where} names {row.path}, which may be {files[0].source} or {files[1].source}: give the path below "
            "the data folder"
        )
    return files[0] if files else None


def _video(row: LabelRow, file: Video | None) -> Video:
    fragment = row.segment.fragment if row.segment else ""
    if file is None:
        return Video("", f"{row.path}{fragment}", row.label, 0, row.segment, row.group)
    return replace(file, source=f"{file.source}{fragment}", class_name=row.label, segment=row.segment, group=row.group)


def _check_one_file(row: LabelRow, video: Video, other: Video) -> None:
    if video.path != other.path:
        raise UsageError(
            f"{row.where} is about {video.source}, which names a file and a segment of another file: rename the file"
        )


def _check_any(folder: Location, files: Catalog, matched: Sequence[tuple[LabelRow, Video | None]]) -> None:
    if not any(file for _, file in matched):
        raise UsageError(
            f"{folder} has none of the {len(matched)} files that the labels name, such as {matched[0][0].path} "
            f"({matched[0][0].where}); it has files such as {files.videos[0].source}: the labels belong to another "
            "folder, or name the files in another way"
        )


def check_names(matched: Iterable[tuple[LabelRow, Video | None]]) -> None:
    """Refuses two paths that differ in their folders and yet found one file: one of them is about another file."""
    first: dict[str, LabelRow] = {}
    for row, file in matched:
        if file is None or row.is_id:
            continue
        other = first.setdefault(file.source, row)
        longer, shorter = sorted((_parts(other.path), _parts(row.path)), key=len, reverse=True)
        if longer[len(longer) - len(shorter) :] != shorter:
            raise UsageError(
                f"{other.where} names {other.path} and {row.where} names {row.path}, but the data folder has only "
                f"{file.source}: give the paths below the data folder"
            )


def _parts(path: str) -> list[str]:
    return [part for part in unquote(_nfc(path)).replace("\\", "/").split("/") if part not in ("", ".")]


def _contradictions(video: Video, rows: Sequence[LabelRow]) -> list[tuple[Video, VideoError]]:
    """Returns the video once for each of its labels, if it has several."""
    where = {row.label: row.where for row in reversed(rows)}
    if len(where) == 1:
        return []
    said = " and ".join(f"{label!r} ({place})" for label, place in sorted(where.items()))
    error = VideoError("contradiction", f"the labels say {said}: keep one of them")
    return [(replace(video, class_name=label), error) for label in sorted(where)]


def _split(video: Video, rows: Sequence[LabelRow]) -> str:
    splits = {row.split: row.where for row in rows}
    if len(splits) > 1:
        said = " and ".join(f"{split or 'no split'} ({where})" for split, where in splits.items())
        raise UsageError(f"the labels put {video.source} into {said}: give it one split")
    return rows[0].split


def _once(errors: Iterable[tuple[Video, VideoError]]) -> list[tuple[Video, VideoError]]:
    found = {(video.source, video.class_name, error.reason): (video, error) for video, error in errors}
    return sorted(found.values(), key=lambda item: (item[0].source, item[0].class_name))


def _first_error(errors: Sequence[tuple[Video, VideoError]]) -> str:
    return f"{errors[0][0].source} ({errors[0][1]})" if errors else "the labels are empty"


def _notes(
    files: Catalog,
    matched: Sequence[tuple[LabelRow, Video | None]],
    catalog: Catalog,
    rows_of: Mapping[str, Sequence[LabelRow]],
) -> Iterable[tuple[str, str]]:
    used = {file.source for _, file in matched if file is not None}
    counts = Counter(error.reason for _, error in catalog.non_videos)
    absent = list(dict.fromkeys(row.path for row, file in matched if file is None))
    if absent:
        yield "absent", f"{_named('row', [row.path for row, f in matched if f is None], absent)} without a file"
    if unused := [video.source for video in files.videos if video.source not in used]:
        yield "unlabelled", f"{_named('file', unused, unused)} without a row: not packed"
    repeated = [source for source, rows in rows_of.items() if len(rows) > 1 and len({row.label for row in rows}) == 1]
    if repeated:
        yield "rows", f"{_named('video', repeated, repeated)} in several equal rows: packed once"
    for reason, what in (("bad_segment", "no segment of a video"), ("contradiction", "two labels for one video")):
        if counts[reason]:
            named = [video.source for video, error in catalog.non_videos if error.reason == reason]
            yield "rows", f"{_named('row', named, list(dict.fromkeys(named)))} with {what}: rejected"
    if overlaps := _overlaps(catalog.videos):
        what = _named("segment", overlaps, overlaps)
        yield "overlaps", f"{what} overlapping one of another class: the shared frames come into both"


def _named(what: str, all_of: Sequence[str], names: Sequence[str]) -> str:
    plural = "s" * (len(all_of) != 1)
    return f"{len(all_of)} {what}{plural} ({', '.join(names[:_NUM_NAMED])}{', ...' * (len(names) > _NUM_NAMED)})"


def _overlaps(videos: Sequence[Video]) -> list[str]:
    """Returns the segments that begin before the end of another class's segment in the same unit, or whole video."""
    of_file: dict[tuple[str, str], list[tuple[Segment, Video]]] = defaultdict(list)
    for video in videos:
        for unit in (video.segment.unit,) if video.segment else _UNITS:
            of_file[video.file_source, unit].append((video.segment or _WHOLE, video))
    found = []
    for segments in of_file.values():
        ends: dict[str, Fraction] = {}  # by class, the latest end so far
        for segment, video in sorted(segments, key=lambda item: item[0].start):
            if any(end > segment.start for name, end in ends.items() if name != video.class_name):
                found.append(video.source)
            end = _NEVER if segment.end is None else segment.end
            ends[video.class_name] = max(ends.get(video.class_name, end), end)
    return found


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
