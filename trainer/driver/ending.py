"""How a command ends if it does not succeed: stopped by the user, or failed for a reason that the log states."""

import signal
from types import FrameType

EXIT_FAILED = 1
EXIT_STOPPED = 130
"""128 + SIGINT, as a shell reports it."""


class Stopped(BaseException):
    """The user asked to stop. Not an Exception, so that no library on the way handles it as an error of its own."""


class RunFailedError(Exception):
    """A run ended without a model; the text is the reason that the user reads."""


def catch_stop_signals() -> None:
    """Makes SIGINT and SIGTERM raise `Stopped` in the main thread; the second one ends the process at once.

    Call it after `ray.init`, which sets a handler of its own.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
