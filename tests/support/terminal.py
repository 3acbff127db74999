"""A command in a terminal of its own, where Ctrl-C is typed: the kernel then signals the whole foreground group."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path

CTRL_C = b"\x03"


class Terminal:
    """Runs a command as a user does: its session's terminal is this one, of 80 columns.

    Args:
        command: With its arguments.
        cwd: Where it runs.
        environment: All of its variables.
        num_columns: Width of the terminal.
    """

    def __init__(self, command: Sequence[str], cwd: Path, environment: dict[str, str], num_columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, num_columns, 0, 0))
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command],
            cwd=cwd,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            close_fds=True,
        )
        os.close(slave)
        self._shown = b""

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._process.pid

    def type(self, keys: bytes) -> None:
        """Presses keys."""
        os.write(self._master, keys)

    @property
    def shown(self) -> str:
        """What the terminal has shown so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._shown.decode(errors="replace").replace("\r\n", "\n"))

    def read(self, seconds: float) -> bool:
        """Reads what comes within some seconds; returns False once the command has closed the terminal."""
        if select.select([self._master], [], [], seconds)[0]:
            try:
                self._shown += os.read(self._master, 65536)
            except OSError:  # Linux says so when nobody has it open any more
                return False
        return True

    def await_text(self, pattern: str, seconds: float = 120.0) -> "re.Match[str]":
        """Reads until the terminal shows a pattern, and returns its match."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            is_open = self.read(0.2)
            assert is_open, f"the command ended before {pattern!r}:\n{self.shown}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s:\n{self.shown}"
        return found

    def await_end(self, seconds: float = 120.0) -> int:
        """Reads to the end of the command, and returns its exit code; negative if a signal ended it."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end within {seconds} s:\n{self.shown}"
            self.read(0.1)
        while self.read(0.0) and select.select([self._master], [], [], 0.0)[0]:
            pass
        os.close(self._master)
        return self._process.returncode
