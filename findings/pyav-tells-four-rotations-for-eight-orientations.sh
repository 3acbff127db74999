#!/usr/bin/env bash
# One would guess: VideoFrame.rotation tells how a frame has to be turned to be shown upright, and 0 means not at all.
# What happens: a display matrix has eight values of whole quarter turns, four of them mirrored. rotation knows four:
#   a mirrored frame reads as one that is only turned, and one that is upside down reads as 0, like an upright one.
# Why it matters: selfie cameras and dashcams write mirrored matrices. Turned by `rotation`, their pictures are
#   mirrored or stand on their heads, and nothing tells that this happened. The matrix itself is in the frame's side
#   data.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import io
import struct
import sys

import av
import numpy as np


def film(matrix):
    """Returns an MP4 of one frame whose track has the matrix a, b, c, d: x' = ax + cy, y' = bx + dy."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 64), 128, np.uint8), "yuv420p")))
        container.mux(stream.encode(None))
    data = bytearray(file.getvalue())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return io.BytesIO(bytes(data))


def read(matrix):
    with av.open(film(matrix)) as container:
        frame = next(container.decode(video=0))
    stored = [part for part in frame.side_data if "DISPLAYMATRIX" in str(part.type)]
    a, b, _, c, d, *_ = np.frombuffer(stored[0], np.int32) >> 16 if stored else (1, 0, 0, 0, 1)
    return frame.rotation, (int(a), int(b), int(c), int(d))


cases = {
    "upright": (1, 0, 0, 1),
    "quarter turn": (0, 1, -1, 0),
    "half turn": (-1, 0, 0, -1),
    "three quarters": (0, -1, 1, 0),
    "mirrored left to right": (-1, 0, 0, 1),
    "mirrored top to bottom": (1, 0, 0, -1),
    "mirrored at the diagonal": (0, 1, 1, 0),
    "mirrored at the other one": (0, -1, -1, 0),
}
seen = [0, -90, -180, 90, -180, 0, -90, 90]
print(f"PyAV {av.__version__}, libavutil {'.'.join(map(str, av.library_versions['libavutil']))}")
came = []
for name, matrix in cases.items():
    rotation, stored = read(matrix)
    came.append(rotation)
    print(f"  {name:25} rotation {rotation:4}, matrix in the side data {stored}")
    assert stored == matrix
print(f"  {len(set(cases.values()))} orientations, {len(set(came))} values of rotation")
sys.exit(came != seen)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.3.5
changed=0
"$folder/venv/bin/python" "$folder/show.py" || changed=1
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
