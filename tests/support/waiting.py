"""Waits for what other processes do."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Returns once a condition holds; it is asked every 50 ms and must hold within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
