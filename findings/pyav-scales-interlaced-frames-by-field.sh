#!/usr/bin/env bash
# One would guess: VideoFrame.reformat() scales the picture that the frame holds; whether it is flagged interlaced is
#   metadata, and equal pixels give equal results. PyAV 16.1.0 behaves like that.
# What happens: since PyAV 17.0 a frame that is flagged interlaced is scaled field by field: the even and the odd rows are
#   two pictures. Halved in height by AREA, rows of 16 and 235 stay rows of 16 and 235 instead of becoming grey. The flag
#   is read-only; the same pixels in a new frame, or behind the filter setfield=prog, are scaled as one picture.
# Why it matters: most DV, MPEG-2 and AVCHD files are flagged, films among them whose pictures are progressive. Shrunk for
#   a model, every sharp horizontal edge comes out as stripes, without an error or a warning.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import io
import sys

import av
import numpy as np

rows = np.where(np.arange(64) % 2, 235, 16).astype(np.uint8)
picture = np.vstack([np.repeat(rows[:, None], 64, 1), np.full((32, 64), 128, np.uint8)])
file = io.BytesIO()
with av.open(file, "w", format="matroska") as container:
    stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "b": "8M", "g": "1"})
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for packet in [*stream.encode(av.VideoFrame.from_ndarray(picture, "yuv420p")), *stream.encode(None)]:
        container.mux(packet)
file.seek(0)
with av.open(file) as container:
    frame = next(container.decode(video=0))


def half(frame):
    return frame.reformat(width=64, height=32, interpolation="AREA").to_ndarray()[:6, 32].tolist()


flagged, copied = half(frame), half(av.VideoFrame.from_ndarray(frame.to_ndarray(), "yuv420p"))
print(f"PyAV {av.__version__}, libswscale {'.'.join(map(str, av.library_versions['libswscale']))}")
print(f"  flagged interlaced: {frame.interlaced_frame}; its rows: {frame.to_ndarray()[:6, 32].tolist()}")
print(f"  half the height:                       {flagged}")
print(f"  the same pixels in a frame not flagged: {copied}")
by_field = max(flagged) - min(flagged) > 200
sys.exit(by_field != (sys.argv[1] == "by-field") or max(copied) - min(copied) > 2)
PYTHON

changed=0
for case in 16.1.0=whole 17.0.0=by-field 18.1.0=by-field; do
    python3 -m venv "$folder/${case%=*}"
    "$folder/${case%=*}/bin/python" -m pip install --quiet --disable-pip-version-check "av==${case%=*}" numpy==2.3.5
    "$folder/${case%=*}/bin/python" "$folder/show.py" "${case#*=}" || changed=1
done
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
