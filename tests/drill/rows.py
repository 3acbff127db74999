"""What a drill of the server shows: a row of its table."""

import math
from dataclasses import dataclass

from tests.support.load import Load, Outcome


@dataclass(frozen=True)
class Row:
    """What a drill showed."""

    what: str
    num_requests: int
    failed: str
    times: str
    """p99 and worst answer, in seconds."""
    quiet_times: str
    """The same figures over a time of equal length and load in which nothing was broken."""
    recovery_seconds: float | None
    """From the blow to the first answer after the last failed request."""
    problems: tuple[str, ...]


def row(what: str, load: Load, quiet: Load | None, recovery: float | None, *problems: str) -> Row:
    kinds = sorted({f"{outcome.status} {outcome.code}" for outcome in load.failed})
    failed = f"{len(load.failed)}" + (f" ({', '.join(kinds)})" if kinds else "")
    return Row(what, len(load.outcomes), failed, times(load), times(quiet), recovery, problems)


def times(load: Load | None) -> str:
    return f"{load.percentile(99):.3f} {load.percentile(100):.3f}" if load else "-"


def check(wrong: bool, problem: str) -> tuple[str, ...]:
    return (problem,) if wrong else ()


def refused_well(outcomes: list[Outcome], codes: set[str]) -> tuple[str, ...]:
    """Returns what is wrong with refusals: each must be a 503 of these codes that says when to try again."""
    bad = [one for one in outcomes if (one.status, one.code in codes, bool(one.retry_after)) != (503, True, True)]
    return check(bool(bad), f"{len(bad)} refusals without code or Retry-After, such as {bad[:1]}")


def recovery_seconds(load: Load, blow: float) -> float:
    """Returns the time from the blow to the first answer after which nothing failed."""
    last = max((outcome.start for outcome in load.failed), default=blow)
    return min((one.start + one.seconds for one in load.answered if one.start >= last), default=math.nan) - blow
