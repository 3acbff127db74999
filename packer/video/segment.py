"""A segment: the part of a video that one label is about."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

_BOUND = r"-?\d{1,40}(?:\.\d{1,40}|/[1-9]\d{0,39})?"
FRAGMENT = rf"#(t|frames)=({_BOUND})(?:,({_BOUND}))?"
"""Regular expression for `Segment.fragment`; its groups are the unit, the start and the end."""


_AT_END = re.compile(f"{FRAGMENT}$")


def file_of(source: str) -> str:
    """Returns the path of a sample's file by its `source`, which for a segment ends with `Segment.fragment`."""
    return _AT_END.sub("", source) if "#" in source else source


@dataclass(frozen=True)
class Segment:
    """The frames of a video in [start, end): shown at `start` or later, and before `end`.

    Bounds are exact: 12.3 is 123/10, and frame 100 at 30000/1001 frames per second is 1001/300 seconds.
    """

    start: Fraction
    """In `unit`. Seconds count from the start of the file as players show it, frames from 0 in display order."""
    end: Fraction | None = None
    """In `unit`; None: the end of the video."""
    unit: Literal["seconds", "frames"] = "seconds"

    @property
    def fault(self) -> str:
        """Why no video can have such a segment, as the end of a sentence about it; empty if one can."""
        if self.start < 0:
            return f"begins at {text_of(self.start)} {self.unit}, before the video"
        if self.end is None or self.start < self.end:
            return ""
        what = "is empty: it ends where it begins" if self.start == self.end else "ends before it begins"
        return f"{what} ({text_of(self.start)} to {text_of(self.end)} {self.unit})"

    @cached_property
    def order(self) -> tuple[Fraction, ...]:
        """What segments of a file are sorted by: those in seconds first, then by their end, then by their start."""
        return Fraction(self.unit == "frames"), Fraction(self.end is None), self.end or Fraction(0), self.start

    @cached_property
    def fragment(self) -> str:
        """What follows the path in a sample's `source`, so that each segment has its own: `#t=12.5,17`, `#frames=0,64`.

        The first is the form of W3C's Media Fragments URI 1.0, 4.2.1; a bound without a decimal form is a fraction.
        """
        name = "t" if self.unit == "seconds" else "frames"
        return f"#{name}={text_of(self.start)}{'' if self.end is None else f',{text_of(self.end)}'}"


def text_of(number: Fraction) -> str:
    """Returns a number in its shortest exact form: `12`, `12.25` or, if no decimal is exact, `37/3`."""
    rest, num_digits = number.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        num_digits = max(num_digits, count)
    if rest > 1:
        return str(number)
    digits = str(abs(number.numerator) * 10**num_digits // number.denominator).rjust(num_digits + 1, "0")
    whole, part = digits[: len(digits) - num_digits], digits[len(digits) - num_digits :]
    return "-" * (number < 0) + whole + (f".{part}" if part else "")
