"""How the workers of one machine share its CPU cores."""

import os

MAX_LOADER_WORKERS = 8


def num_threads(configured: int | None, num_local: int) -> int:
    """Returns a worker's CPU threads: as configured, or the machine's cores divided by its number of workers.

    On 12 cores, 4 workers get 3 threads each.
    """
    return configured or max(1, _num_cores() // num_local)


def num_loader_workers(configured: int | None, num_local: int) -> int:
    """Returns a worker's loader processes: as configured, or one for each core that training leaves free, at most 8.

    On 12 cores, each of 4 workers gets 2.
    """
    if configured is not None:
        return configured
    return max(0, min(MAX_LOADER_WORKERS, _num_cores() // num_local - 1))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
