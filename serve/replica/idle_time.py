"""Work that must not slow down what serves: it gets only idle time, and one process of the machine at a time."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from packer.storage.lock import hold_lock

ResultT = TypeVar("ResultT")


def run_in_idle_time(work: Callable[[], ResultT]) -> ResultT:
    """Returns what `work` returns, or raises what it raises.

    It runs in a thread that the system schedules only while nothing else wants the core. It waits until no other
    process of this machine is at such work, so that at least one core is left to those that serve.
    """
    turn = hold_lock(Path(__file__), wait=True, create=False)
    with turn, ThreadPoolExecutor(1, "idle", initializer=_give_way) as executor:
        return executor.submit(work).result()


def _give_way() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # on Linux this concerns the calling thread only
