"""Work in idle time: the system puts it behind everything else, and one process does it at a time."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from serve.replica.idle_time import run_in_idle_time

NUM_PROCESSES = 3


def test_only_the_work_gives_way() -> None:
    assert run_in_idle_time(lambda: os.sched_getscheduler(0)) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_an_error_of_the_work_reaches_the_caller_and_ends_its_turn() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_idle_time(lambda: 1 // 0)
    assert run_in_idle_time(lambda: 1) == 1


def work_alone(busy: Path) -> None:
    """Fails if another process is between these lines."""

    def work() -> None:
        busy.mkdir()
        time.sleep(0.1)
        busy.rmdir()

    run_in_idle_time(work)


def test_processes_take_turns(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    with ProcessPoolExecutor(NUM_PROCESSES, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(work_alone, busy) for _ in range(2 * NUM_PROCESSES)]:
            done.result(60)
