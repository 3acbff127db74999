"""Reads the bounds of segments exactly: seconds, clock times and frame numbers become fractions without rounding."""

import datetime
import re
from decimal import Decimal
from fractions import Fraction

from packer.video.segment import FRAGMENT, Segment

_PLAIN = re.compile(r"(\d{1,9})(?:\.(\d{1,30}))?")
"""Nearly every time in a table: faster than by `Decimal`."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d*)?)")
_WITH_FRAGMENT = re.compile(rf"(.+){FRAGMENT}")
_TIMES = "write seconds (12.5), mm:ss or hh:mm:ss"
_MOST_DIGITS, _MOST_DECIMALS = 9, 40
"""A number beyond these is damaged, and its exact fraction could take any amount of memory."""


def is_missing(value: object) -> bool:
    """Tells whether a value of a table or of JSON is none: null, not a number, or text of spaces alone."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or value != value


def to_seconds(value: object) -> Fraction:
    """Returns a time: `12.3` gives 123/10, `"1:03.5"` 127/2, `"1:59:5.8"` 35729/5.

    Text is a number of seconds, mm:ss or hh:mm:ss, each with a fraction or without. A float counts as the shortest text
    that names it.

    Raises:
        ValueError: It is no such time.
    """
    if isinstance(value, datetime.timedelta):
        return Fraction(value // datetime.timedelta(microseconds=1), 10**6)
    if isinstance(value, datetime.time):
        value = value.isoformat()
    if isinstance(value, str):
        return _text_to_seconds(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{value!r} is no time: {_TIMES}")
    return _number_to_seconds(str(value))


def to_frame(value: object) -> int:
    """Returns a frame number: `7`, `"7"` and `7.0` give 7.

    Raises:
        ValueError: It is no whole number.
    """
    whole = re.fullmatch(r"([+-]?\d{1,12})(\.0*)?", str(value).strip())
    if isinstance(value, bool) or whole is None:
        raise ValueError(f"{_shown(value)} is no frame number, which is a whole number")
    return int(whole[1])


def seconds_segment(start: object, end: object) -> Segment | None:
    """Returns the segment between two times, of which one or both may be missing; None if both are.

    Raises:
        ValueError: A bound is no time.
    """
    if is_missing(start) and is_missing(end):
        return None
    first = Fraction(0) if is_missing(start) else to_seconds(start)
    return Segment(first, None if is_missing(end) else to_seconds(end))


def frames_segment(start: object, end: object, frame_rate: Fraction | None) -> Segment | None:
    """Returns the segment of the frames from `start` up to, but without, `end`, which count from 0.

    Args:
        start: Missing: 0.
        end: Missing: the end of the video.
        frame_rate: Frames per second at which they were counted. The segment is then in seconds: frame n begins at
            n / frame_rate. None: they are the frames of the video itself.

    Raises:
        ValueError: A bound is no whole number.
    """
    if is_missing(start) and is_missing(end):
        return None
    first = Fraction(0 if is_missing(start) else to_frame(start))
    last = None if is_missing(end) else Fraction(to_frame(end))
    if frame_rate is None:
        return Segment(first, last, "frames")
    return Segment(first / frame_rate, None if last is None else last / frame_rate)


def split_fragment(path: object) -> tuple[object, Segment | None]:
    """Returns a path without the segment that ends it, as in the index of a pack, and that segment.

    `a/x.mp4#t=12.5,17` gives `a/x.mp4` and the segment whose `fragment` is `#t=12.5,17`.
    """
    if not isinstance(path, str) or "#" not in path or (found := _WITH_FRAGMENT.fullmatch(path.strip())) is None:
        return path, None
    name, unit, start, end = found.groups()
    return name, Segment(Fraction(start), Fraction(end) if end else None, "seconds" if unit == "t" else "frames")


def _text_to_seconds(text: str) -> Fraction:
    if plain := _PLAIN.fullmatch(text):
        whole, part = plain[1], plain[2] or ""
        return Fraction(int(whole + part), 10 ** len(part))
    if _NUMBER.fullmatch(text):
        return _number_to_seconds(text)
    if (clock := _CLOCK.fullmatch(text)) is None:
        comma = "decimals follow a point, not a comma; " * bool(re.fullmatch(r"\d+,\d+", text))
        raise ValueError(f"{text!r} is no time: {comma}{_TIMES}")
    hours, minutes, seconds = clock.groups()
    value = _number_to_seconds(seconds.replace(",", "."))
    if value >= 60 or (hours and int(minutes) >= 60):
        raise ValueError(f"{text!r} is no time: minutes after hours, and seconds after minutes, must be below 60")
    return int(hours or 0) * 3600 + int(minutes) * 60 + value


def _number_to_seconds(text: str) -> Fraction:
    number = Decimal(text)
    if not number.is_finite() or number.adjusted() >= _MOST_DIGITS or -number.adjusted() >= _MOST_DECIMALS:
        raise ValueError(f"{text} is no time: it must be a number of seconds below 1,000,000,000")
    return Fraction(number)


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)
