"""Progress is a bar on a terminal and a few lines in a log."""

import logging
import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from packer.progress import Progress

WORK = """
import logging
from packer.progress import Progress
logging.basicConfig(level=logging.INFO)
with Progress(300, "video", "pack") as progress:
    for number in range(300):
        progress.update(rejected=number)
"""


def test_a_log_that_is_no_terminal_gets_no_bar() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_log_gets_a_line_when_it_is_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress(3, "video", "pack", logged_seconds=0) as progress:
        progress.update()
        progress.update(2, rejected=1)
    assert [record.getMessage() for record in caplog.records] == [
        "pack num_videos_done=1 num_videos=3",
        "pack num_videos_done=3 num_videos=3 num_rejected=1",
    ]


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))  # a new one has no width
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123
        with subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs) as process:
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # Linux reports the end of a terminal as an error
                while part := terminal.read(2**16):
                    shown += part
        assert process.returncode == 0
    assert b"pack: 100%" in shown
    assert b"300/300" in shown
    assert b"rejected=299" in shown
    assert b"INFO" not in shown
