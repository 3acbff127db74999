"""Decodes the packets that chosen frames need, for several choices of frames at once.

Each choice succeeds or fails as it would alone: what one choice gives must not depend on the others that happen to be
decoded with it. So if a picture turns out damaged, only the choices that need it fail, and the spans of packets that it
made doubtful are decoded once more for the others.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import chain, islice

import av
from av.video.stream import VideoStream

from packer.video.packets import NeedsFullDecode, Packet, PacketPlan, Span

Use = Callable[[av.VideoFrame, VideoStream, int], None]
"""Takes a wanted frame and its index."""
OpenPackets = Callable[[], AbstractContextManager[Iterable[Packet]]]
"""Gives all packets, from the first on."""
OpenStream = Callable[[], AbstractContextManager[VideoStream]]
"""Gives the stream with a decoder that has decoded nothing yet."""
_UNKNOWN = -1
"""The number of a damaged packet if it is not known which one is damaged."""


def decode_needed(
    plan: PacketPlan,
    wanted: Sequence[Collection[int]],
    open_packets: OpenPackets,
    open_stream: OpenStream,
    use: Use,
) -> set[int]:
    """Decodes what the choices need, and returns the numbers of the choices that succeeded.

    Args:
        plan: What the packets show.
        wanted: Indices of the frames of each choice; all of them hold 0.
        open_packets: Gives the packets; called once for each round.
        open_stream: Gives the stream; called for each round, and after each damaged packet: damage may leave its mark
            on a decoder even if its buffers are flushed.
        use: Called for each wanted frame, in display order within a span of packets; in any case for frame 0 first. If
            a span is decoded again, its frames come again.
    """
    waiting = {number: positions for number, positions in enumerate(wanted) if _can_be_decoded(plan, positions)}
    alone: set[int] = set()
    positions = _union(waiting.values())
    while positions:
        num_waiting = len(waiting)
        doubtful: set[int] = set()
        suspects: set[int] = set()
        with open_packets() as packets:
            for span, damaged in _decoded_spans(plan, positions, packets, open_stream, use):
                if damaged is None:
                    continue
                inside = {position for position in positions if span.start <= plan.number_of(position) < span.stop}
                touched = {number for number, needs in waiting.items() if not inside.isdisjoint(needs)}
                alone |= touched if damaged == _UNKNOWN else set()
                for number in touched:
                    if damaged == _UNKNOWN or plan.needs(waiting[number], damaged):
                        del waiting[number]
                suspects |= touched
                doubtful |= positions if 0 in inside else inside
                if 0 in inside:  # without the first frame, the others cannot be used
                    break
        if len(waiting) == num_waiting:  # the damage cannot be explained
            alone |= suspects
            waiting = {number: needs for number, needs in waiting.items() if number not in suspects}
        positions = doubtful & _union(waiting.values())
    succeeded = set(waiting)
    for number in alone if len(wanted) > 1 else ():
        if decode_needed(plan, [wanted[number]], open_packets, open_stream, use):
            succeeded.add(number)
    return succeeded


def _union(choices: Iterable[Collection[int]]) -> set[int]:
    return set().union(*choices)


def _can_be_decoded(plan: PacketPlan, positions: Iterable[int]) -> bool:
    try:
        plan.spans_of(positions)
    except NeedsFullDecode:
        return False
    return True


def _decoded_spans(
    plan: PacketPlan, wanted: set[int], packets: Iterable[Packet], open_stream: OpenStream, use: Use
) -> Iterator[tuple[Span, int | None]]:
    """Yields each span once it has been decoded, with the number of a damaged packet in it, or None."""
    unread, num_read = iter(packets), 0
    with ExitStack() as opened:
        stream: VideoStream | None = None
        for span in plan.spans_of(wanted):
            part = islice(unread, span.start - num_read, span.stop - num_read)
            num_read = span.stop
            if stream is None:
                stream = opened.enter_context(open_stream())
            else:
                stream.codec_context.flush_buffers()
            damaged = _damaged_in(plan, span, wanted, stream, part, use)
            yield span, damaged
            if damaged is not None:
                deque(part, 0)  # the next span is counted from the end of this one
                opened.close()
                stream = None


def _damaged_in(
    plan: PacketPlan, span: Span, wanted: set[int], stream: VideoStream, part: Iterable[Packet], use: Use
) -> int | None:
    """Decodes a span; returns the number of a packet that cannot be decoded as it should, or None."""
    sent: dict[int, int] = {}
    came: list[int] = []
    for number, packet in chain(_stamped(plan, span, wanted, part, sent), ((_UNKNOWN, None),)):
        try:
            frames = stream.decode(packet)
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            return number
        for frame in frames:
            position = frame.pts
            if position is None or frame.is_corrupt:  # a damaged frame too: a full decode counts them all
                return sent.get(position, _UNKNOWN) if position is not None else _UNKNOWN
            came.append(position)
            if position in wanted:
                try:
                    use(frame, stream, position)
                except av.error.MemoryError:
                    raise
                except av.FFmpegError:
                    return sent.get(position, _UNKNOWN)
    if came == sorted(sent):
        return None
    missing = sent.keys() - set(came)
    is_part = len(missing) == len(sent) - len(came) and came == sorted(came)
    return min(sent[position] for position in missing) if missing and is_part else _UNKNOWN


def _stamped(
    plan: PacketPlan, span: Span, wanted: set[int], part: Iterable[Packet], sent: dict[int, int]
) -> Iterator[tuple[int, Packet]]:
    """Yields the needed packets of a span and their numbers, each with its frame's index as time."""
    pictures = plan.pictures[span.start : span.stop]
    for number, (picture, packet) in enumerate(zip(pictures, part, strict=False), span.start):
        if picture.is_reference or picture.position in wanted:
            packet.pts = packet.dts = picture.position
            if picture.position is not None:
                sent[picture.position] = number
            yield number, packet
