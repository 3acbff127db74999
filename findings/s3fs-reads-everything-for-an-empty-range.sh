#!/usr/bin/env bash
# One would guess: cat_file(path, start=n, end=n) returns no bytes, as file[n:n] does; fsspec's own memory and local
#   file systems do that. A range behind the end returns nothing either, as for a slice.
# What happens: s3fs leaves out the Range header if start equals end: it downloads the whole object and returns it.
#   For a range behind the end it raises OSError (EINVAL), where the others return no bytes.
# Why it matters: readers that compute ranges meet empty ones (an empty file in an archive, a last block of length
#   zero). They get gigabytes where they asked for nothing, and bytes that are not what they take them for.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import logging
import os
import sys
from importlib.metadata import version

import fsspec
from moto.server import ThreadedMotoServer

folder = sys.argv[1]
os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the server's own lines
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
systems = {
    "local": (fsspec.filesystem("file"), f"{folder}/object"),
    "memory": (fsspec.filesystem("memory"), "/object"),
    "s3": (fsspec.filesystem("s3", endpoint_url=f"http://{host}:{port}"), "bucket/object"),
}
systems["s3"][0].mkdir("bucket")


def read(system, path, start, end):
    try:
        return len(system.cat_file(path, start=start, end=end))
    except OSError as error:
        return type(error).__name__


print(", ".join(f"{name} {version(name)}" for name in ("s3fs", "fsspec", "moto")))
seen = {}
for name, (system, path) in systems.items():
    system.pipe_file(path, bytes(range(100)))
    seen[name] = [read(system, path, *span) for span in ((10, 20), (10, 10), (200, 210))]
    print(f"  {name}: of 100 bytes, [10:20] gives {seen[name][0]}, [10:10] {seen[name][1]}, [200:210] {seen[name][2]}")
server.stop()
sys.exit(seen != {"local": [10, 0, 0], "memory": [10, 0, 0], "s3": [10, 100, "OSError"]})
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check s3fs==2026.9.0 "moto[s3,server]==5.2.5"
changed=0
"$folder/venv/bin/python" "$folder/show.py" "$folder" || changed=1
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
