"""Collects the rows of a file of labels, with the checks that all formats share."""

from decimal import Decimal
from urllib.parse import unquote, urlsplit

from configs.section import UsageError
from packer.labels.rows import LabelRow, Labels
from packer.labels.splits import SPLIT_OF_FOLDER, SPLITS
from packer.labels.times import is_missing
from packer.video.segment import Segment

_NUM_NAMED = 3
_MOST_DIGITS = 15
"""Larger numbers stay as they are: every float is whole then, and a decimal could have any number of digits."""


class RowList:
    """The rows that a reader has found so far."""

    def __init__(self, file_name: str) -> None:
        self._file_name = file_name
        self._rows: list[LabelRow] = []
        self._unlabelled: list[str] = []
        self._notes: list[tuple[str, str]] = []

    def add(
        self,
        where: str,
        path: object,
        label: object,
        *,
        split: object = "",
        group: object = "",
        segment: Segment | None = None,
        is_id: bool = False,
        other_path: str = "",
        trimmed_path: str = "",
    ) -> None:
        """Adds a row from the values that the file holds; a row without a label is reported by `finish`.

        Raises:
            UsageError: There is no path, the split is unknown, or a value is no text or number.
        """
        if not (name := clean_path(to_text(path, where, "path"))):
            raise UsageError(f"{where} names no video: fill in its path, or delete the row")
        if not (class_name := to_text(label, where, "label")):
            self._unlabelled.append(where)
            return
        self._rows.append(
            LabelRow(
                where=where,
                path=name,
                label=class_name,
                split=_to_split(to_text(split, where, "split"), where),
                group=to_text(group, where, "group"),
                segment=segment,
                is_id=is_id,
                other_path=other_path,
                trimmed_path=trimmed_path,
            )
        )

    def note(self, label: str, text: str) -> None:
        """Adds something that the user should know about the file."""
        self._notes.append((label, text))

    def finish(self, format_name: str) -> Labels:
        """Returns the labels.

        Raises:
            UsageError: A row has no label, or there is no row.
        """
        if self._unlabelled:
            several = len(self._unlabelled) > 1
            raise UsageError(
                f"{self._file_name} has {len(self._unlabelled)} row{'s' * several} without a label "
                f"({named(self._unlabelled)}): give {'each its' if several else 'it a'} label, or delete "
                f"{'them' if several else 'it'}"
            )
        if not self._rows:
            raise UsageError(f"{self._file_name}, read as {format_name}, labels no video: it has no rows")
        has_splits = any(row.split for row in self._rows)
        return Labels(format_name, tuple(self._rows), has_splits, tuple(self._notes))


def to_text(value: object, where: str, what: str) -> str:
    """Returns a value of a table or of JSON as text; numbers that are whole lose their point: 3.0 gives `3`.

    pandas stores whole numbers as floats if one of them is missing. Text stays as it is, but for spaces at its ends.

    Raises:
        UsageError: It is no single value.
    """
    if isinstance(value, str):
        return value.strip()
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal) and _is_whole(value):
        return str(int(value))
    if isinstance(value, int | float | Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        raise UsageError(
            f"{where} has {len(value)} values for {what}: a clip has one class; give each label a row of its own, or "
            "choose one"
        )
    raise UsageError(f"{where} has no text for {what}, but {type(value).__name__}")


def clean_path(text: str) -> str:
    """Returns a path with / between folders: Windows has another sign, and tools write `file://` and `./` before it."""
    if not text.startswith(("file://", "./")) and "\\" not in text:
        return text
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "\\" in text and "/" not in text:
        text = text.replace("\\", "/")
    while text.startswith("./"):
        text = text[2:].lstrip("/")
    return text


def named(places: list[str]) -> str:
    """Returns the first of some places or values: `a, b, c, ...`."""
    return ", ".join(places[:_NUM_NAMED]) + ", ..." * (len(places) > _NUM_NAMED)


def _is_whole(value: float | Decimal) -> bool:
    number = Decimal(value)
    return number.is_finite() and number.adjusted() < _MOST_DIGITS and number == number.to_integral_value()


def _to_split(text: str, where: str) -> str:
    if not text:
        return ""
    split = SPLIT_OF_FOLDER.get(text.casefold())
    if split is None:
        others = ", ".join(name for name in SPLIT_OF_FOLDER if name not in SPLITS)
        raise UsageError(f"{where} has split {text!r}: it must be train, val or test (or {others}), or empty")
    return split
