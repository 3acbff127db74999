#!/usr/bin/env bash
# One would guess: Thread.join() that Ctrl-C interrupts leaves the thread as it is, and is_alive() says that it runs.
# What happens: in CPython 3.9 to 3.12, if a signal's handler raises while join() waits, the thread counts as ended:
# is_alive() is False, and the next join() returns at once, though the thread runs on.
# Why it matters: a program that catches Ctrl-C and then waits for its thread to finish its work does not wait at all.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/join.py" <<'PYTHON'
import os
import signal
import sys
import threading
import time

worked = threading.Event()


def work():
    time.sleep(2)
    worked.set()


thread = threading.Thread(target=work, daemon=True)
thread.start()
threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
try:
    thread.join()
except KeyboardInterrupt:
    alive = thread.is_alive()
    began = time.monotonic()
    thread.join()
    waited = time.monotonic() - began
    print(f"Python {sys.version.split()[0]}: is_alive() {alive}, join() waited {waited:.2f} s, work done {worked.is_set()}")
    sys.exit(0 if not alive and not worked.is_set() else 3)
PYTHON
# seen with 3.9.18, 3.10.13, 3.11.7 and 3.12.1, not with 3.13.0: is_alive() False, join() waited 0.00 s, work done False
"${PYTHON:-python3}" "$folder/join.py"
