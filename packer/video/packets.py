"""What the packets of a video show, read before any of them is decoded.

A reader of a codec's headers (`h264.py`, `mpeg4.py`) says which frame each packet holds; `PacketPlan` then says which
packets must be decoded for the wanted frames. If a header leaves a doubt, the reader raises `NeedsFullDecode` and all
frames are decoded. So a reader needs to know only the common part of its format.
"""

from bisect import bisect
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import av  # named in the alias below
from av.video.stream import VideoStream

Packet: TypeAlias = "av.Packet[VideoStream]"  # a class that is generic to type checkers alone


class NeedsFullDecode(Exception):
    """It is not certain which frames the packets hold: decode them all."""


class Picture(NamedTuple):
    """What one packet shows on the screen."""

    position: int | None
    """Index of its frame in display order, from 0; None if it shows no frame."""
    is_start: bool
    """Decoding can begin here: neither this picture nor any shown after it is predicted from earlier packets."""
    is_reference: bool
    """Other pictures may be predicted from it."""


class Reader(Protocol):
    """Reads the headers of one video stream."""

    def read(self, packet: Packet) -> None:
        """Takes the next packet in decoding order.

        Raises:
            NeedsFullDecode: The packet may show other than one whole frame.
        """

    def pictures(self) -> list[Picture]:
        """Returns what the packets show, in decoding order.

        Raises:
            NeedsFullDecode: The display order is not certain.
        """


class Span(NamedTuple):
    """Consecutive packets; decoding can begin at the first."""

    start: int
    stop: int
    """Number of the last packet, plus one."""


class PacketPlan:
    """Knows which packets are needed for a choice of frames."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        """Takes what the packets show, in decoding order."""
        self.pictures = pictures
        self._number_at = {picture.position: number for number, picture in enumerate(pictures)}
        self._starts = [number for number, picture in enumerate(pictures) if picture.is_start]

    def spans_of(self, wanted: Iterable[int]) -> list[Span]:
        """Returns which packets are needed for the frames at the wanted positions.

        Inside a span, pictures that are neither wanted nor a reference are not needed.

        Raises:
            NeedsFullDecode: A wanted frame is shown before every frame at which decoding can begin.
        """
        spans: list[Span] = []
        for number in sorted(self._number_at[position] for position in wanted):
            start = self._start_before(number)
            # A B picture shown before its open group's I picture, but decoded after it, needs the group before.
            while spans and start < spans[-1].stop:
                start = min(start, spans.pop().start)
            spans.append(Span(start, number + 1))
        return spans

    def _start_before(self, number: int) -> int:
        position = self.pictures[number].position or 0
        for place in range(bisect(self._starts, number) - 1, -1, -1):
            start = self._starts[place]
            if (self.pictures[start].position or 0) <= position:
                return start
        raise NeedsFullDecode("a frame is shown before all frames that decoding can begin with")

    def number_of(self, position: int) -> int:
        """Returns the number of the packet that holds a frame."""
        return self._number_at[position]

    def needs(self, wanted: Collection[int], number: int) -> bool:
        """Tells whether the frames at the wanted positions need a packet."""
        picture = self.pictures[number]
        if not picture.is_reference:
            return picture.position in wanted
        return any(span.start <= number < span.stop for span in self.spans_of(wanted))


class Bits:
    """Reads a header bit by bit."""

    def __init__(self, data: bytes) -> None:
        """Takes the header's bytes."""
        self._bits = bin(int.from_bytes(b"\1" + data, "big"))[3:]
        self._next = 0

    def take(self, num_bits: int) -> int:
        """Returns the next bits as a number.

        Raises:
            NeedsFullDecode: The header has ended.
        """
        start, self._next = self._next, self._next + num_bits
        if self._next > len(self._bits):
            raise NeedsFullDecode("a header ends early")
        return int(self._bits[start : self._next], 2) if num_bits else 0

    def golomb(self) -> int:
        """Returns the next Exp-Golomb number, ue(v).

        Raises:
            NeedsFullDecode: The header has ended.
        """
        num_zeros = self._bits.find("1", self._next) - self._next
        if num_zeros < 0:
            raise NeedsFullDecode("a header ends early")
        self._next += num_zeros
        return self.take(num_zeros + 1) - 1

    def skip_golombs(self, num_numbers: int) -> None:
        """Passes over Exp-Golomb numbers.

        Raises:
            NeedsFullDecode: The header has ended.
        """
        for _ in range(num_numbers):
            one = self._bits.find("1", self._next)
            self._next = 2 * one - self._next + 1
            if one < 0 or self._next > len(self._bits):
                raise NeedsFullDecode("a header ends early")

    def rest(self) -> str:
        """Returns the remaining bits, as a text of 0 and 1."""
        return self._bits[self._next :]
