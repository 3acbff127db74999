#!/usr/bin/env bash
# One would guess: Thread.join() that Ctrl-C interrupts leaves the thread as it is, and is_alive() says that it runs.
# What happens: in CPython 3.11 and 3.12, if a signal's handler raises while join() waits, the thread counts as ended:
#   is_alive() is False, and the next join() returns at once, though the thread runs on. 3.13 has mended it.
# Why it matters: a program that catches Ctrl-C and then waits for its thread to finish its work does not wait at all.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
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
    print(f"CPython {sys.version.split()[0]}: is_alive() {alive}, join() waited {waited:.1f} s, done {worked.is_set()}")
    sys.exit((alive, worked.is_set()) != ((False, False) if sys.argv[1] == "forgets" else (True, True)))
sys.exit("the signal did not interrupt join()")
PYTHON

# uv takes an interpreter of exactly this version that is on PATH, otherwise it fetches one.
python3 -m venv "$folder/uv"
"$folder/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9
changed=0
for case in 3.11.7=forgets 3.12.1=forgets 3.13.0=waits; do
    "$folder/uv/bin/uv" venv --quiet --python "${case%=*}" "$folder/${case%=*}"
    "$folder/${case%=*}/bin/python" "$folder/show.py" "${case#*=}" || changed=1
done
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
