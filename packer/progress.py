"""How far a long piece of work is: a bar on a terminal, otherwise a log line every 30 seconds."""

import logging
import time
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOGGED_SECONDS = 30.0


class Progress:
    """Counts what is done of `total` things, while its block runs.

    Example:
        with Progress(len(videos), "video") as progress:
            for video in videos:
                ...
                progress.update()
    """

    def __init__(self, total: int, unit: str, title: str = "", logged_seconds: float = LOGGED_SECONDS) -> None:
        """Takes how many things there are, what one is called, the bar's title, and the time between log lines."""
        self._total, self._unit, self._title = total, unit, title
        self._logged_seconds = logged_seconds
        self._num_done = 0
        self._counts: dict[str, int] = {}
        self._logged_at = time.monotonic()
        self._bar: tqdm[NoReturn] = tqdm(total=total, unit=unit, desc=title or None, disable=None)

    def update(self, num_done: int = 1, **counts: int) -> None:
        """Adds things that are done; `counts`, such as `rejected=3`, stand beside the bar or in the log line."""
        self._num_done += num_done
        if counts != self._counts:
            self._counts = counts
            self._bar.set_postfix(counts, refresh=False)
        self._bar.update(num_done)
        if self._bar.disable and time.monotonic() - self._logged_at >= self._logged_seconds:
            self._logged_at = time.monotonic()
            words = "".join(f" num_{name}={count}" for name, count in counts.items())
            unit, title = self._unit, self._title or "progress"
            logger.info("%s num_%ss_done=%d num_%ss=%d%s", title, unit, self._num_done, unit, self._total, words)

    def __enter__(self) -> "Progress":
        """Returns the counter."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the bar."""
        self._bar.close()
