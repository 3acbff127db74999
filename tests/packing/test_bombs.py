"""Bombs are refused while they are small: what each costs stands in tests/support/bombs.py."""

import pytest

from tests.support.bombs import BOMBS, cost

MAX_GROWN_BYTES = 300 * 10**6
REFUSALS = {"too_large", "out_of_memory", "not_a_video", "no_video_stream", "undecodable", "truncated"}
SLOW = {
    "10^6 frames in 1 MB",
    "100,000 entries of metadata",
    "200,000 chapters",
    "200,000 edits",
    "200,000 tags",
    "4,000,000 empty boxes",
    "5,000,000 empty blocks",
    "60 MB of codec parameters",
    "compressed packets, 10 GB",
    "one hour at 25 per second",
}
"""Read to their end, or for as long as a video's header and packets may take, 0.8 s of the processor: which of both
comes first is up to the machine."""
HARMLESS = {"4 * 10^7 frames claimed in 1 kB", "64 x 64, then 8k x 8k", "6,000,000 delimiters of frames"}
"""Of which the part that is there may be decoded."""


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_are_refused_for_little(name: str) -> None:
    paid = cost(BOMBS[name]())
    assert paid.grown_bytes < MAX_GROWN_BYTES
    if name not in HARMLESS:
        assert paid.reason in (REFUSALS | {"timeout"} if name in SLOW else REFUSALS)
