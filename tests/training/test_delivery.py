"""Points on their way to a tracking server: in order, each once, and never in the way of a process that ends."""

import subprocess
import sys
import threading
import time

from trainer.tracking.delivery import Delivery

HANGING = """
import sys, threading
from trainer.tracking.delivery import Delivery

delivery = Delivery(lambda points: threading.Event().wait())
delivery.add([1])
delivery.flush(0.1)
delivery.close(0.1)
print("closed")
"""

INTERRUPTED = """
import sys, threading
from trainer.tracking.delivery import Delivery

class Interrupted(threading.Thread):
    def start(self):
        super().start()
        raise KeyboardInterrupt  # as a signal does that comes while the new thread begins to run

threading.Thread = Interrupted
delivery = Delivery(lambda points: None)
delivery.add([1])
try:
    delivery.flush()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_server_that_never_answers_does_not_keep_a_process_alive() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "closed\n")
    assert "tracking lost num_points=1" in done.stderr


def test_an_interrupted_start_of_sending_does_not_keep_a_process_alive() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_points_arrive_in_order_and_once_whatever_fails_on_the_way() -> None:
    arrived: list[int] = []
    failures = threading.Semaphore(2)

    def send(points: list[int]) -> None:
        if failures.acquire(blocking=False):
            raise ConnectionError("refused")
        arrived.extend(points)

    delivery = Delivery(send)
    for number in range(5):
        delivery.add([number])
    deadline = time.monotonic() + 60
    while delivery.undelivered() and time.monotonic() < deadline:
        delivery.close(5)
    assert arrived == [0, 1, 2, 3, 4]
