"""The life of `python -m serve`: it starts, says what it waits for, and ends in order when it is told to.

The main thread only waits for signals, and Ray lives in another thread. So no signal interrupts Ray in the middle of
what it does: that would leave processes behind, and tracebacks on the screen.
"""

import logging
import queue
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from configs.serve import ServeCommand
from serve.local_ray import LocalRay, StartError, address

logger = logging.getLogger("serve")

EXIT_FAILED = 1
EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}
"""What the command returns if a supervisor asked it to end, and if somebody pressed Ctrl-C."""


def serve_until_stopped(command: ServeCommand) -> int:
    """Serves until SIGTERM or Ctrl-C, and returns the exit code; 1 if the server cannot start.

    The requests inside get their answers first, within `deadline_seconds`. Another signal cuts them off.
    """
    with ThreadPoolExecutor(1, "ray") as thread:
        return _ServerLife(command, thread).run()


class _ServerLife:
    def __init__(self, command: ServeCommand, thread: ThreadPoolExecutor) -> None:
        self._command = command
        self._thread = thread
        self._ray = LocalRay(command)
        # What happens, in order: the number of a signal; None: what the other thread did has ended. The handler of a
        # signal may put something into this queue while `get` runs, which is not true of most others.
        self._events: queue.SimpleQueue[signal.Signals | None] = queue.SimpleQueue()

    def run(self) -> int:
        """Returns the exit code."""
        self._listen()
        logger.info(
            "starting Ray on this machine, then loading %s@%s: some 10 to 20 seconds",
            *(self._command.registered_model, self._command.alias),
        )
        is_up, number = False, None
        try:
            number = self._do(self._ray.start) or self._do(self._ray.deploy)
            if number is None:
                is_up = True
                self._say_where()
                number = self._events.get()
        except StartError as error:
            logger.error("the server cannot start: %s", error)
        if number is not None:
            self._say_what_comes(number, is_up)
        self._end(is_up)
        return EXIT_FAILED if number is None else EXIT_CODES[number]

    def _listen(self) -> None:
        for number in EXIT_CODES:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # as a shell tells its background jobs to do with Ctrl-C
            signal.signal(number, lambda number, frame: self._events.put(signal.Signals(number)))

    def _begin(self, work: Callable[[], None]) -> Future[None]:
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: self._events.put(None))
        return future

    def _next_event(self) -> signal.Signals | None:
        number = self._events.get()
        if number is None:
            self._listen()  # again, because Ray's start puts a handler of its own in the place of ours
        return number

    def _do(self, work: Callable[[], None]) -> signal.Signals | None:
        """Lets the other thread work. Returns None when that is done, or the signal that came first."""
        future = self._begin(work)
        number = self._next_event()
        if number is None:
            future.result()
        return number

    def _say_where(self) -> None:
        where = address(self._command.host, self._command.port)
        metrics = self._ray.metrics_address
        logger.info(
            "listening url=http://%s metrics=http://%s/metrics model=%s", where, metrics, self._command.registered_model
        )

    def _say_what_comes(self, number: signal.Signals, is_up: bool) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        if is_up:
            logger.info(
                "stopping after %s: requests inside get their answers, for at most %g s; %s again cuts them off",
                *(name, self._command.deadline_seconds, name),
            )
        else:
            logger.info("stopping after %s: some seconds, because a Ray that is starting cannot be stopped", name)

    def _end(self, is_up: bool) -> None:
        self._ray.ask_to_end()
        ending = self._begin(self._ray.end)
        is_first = True
        while not ending.done():
            if self._next_event() is not None and is_first:
                is_first = False
                logger.info("cutting off the requests inside" if is_up else "still waiting for Ray to have started")
                self._ray.hurry()
        ending.result()
