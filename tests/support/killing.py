"""Kills packs at random moments."""

import subprocess
import sys
from pathlib import Path

# Kills itself, as kill -9 does, before one of its next steps in the target, whichever it is; then begins again.
KILLED = """
import os, random, signal, sys
from packer.__main__ import main
import packer.report

_, num_kills, target, *arguments = sys.argv
random.seed(7)
for number in range(int(num_kills)):
    steps = random.randrange(1, 60)
    if (child := os.fork()) == 0:
        def step(event, args):
            global steps
            steps -= str(args[0]).startswith(target) if args else 0
            if not steps:
                steps = -1  # os.kill is a step too
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(step)
        sys.stdout = sys.stderr
        os._exit(main([*arguments, target, f"--workers={1 + number % 3}"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def kill_often(num_kills: int, target: Path, data: Path, *options: str) -> list[int]:
    """Returns the exit codes of as many commands, most of which are killed."""
    arguments = [sys.executable, "-c", KILLED, str(num_kills), str(target), str(data), *options]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    codes = list(map(int, done.stdout.split()))
    assert len(codes) == num_kills
    assert set(codes) <= {-9, 0, 2}  # 2: complete already
    assert codes.count(-9) >= num_kills // 2
    return codes
