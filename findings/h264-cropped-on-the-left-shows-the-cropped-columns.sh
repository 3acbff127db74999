#!/usr/bin/env bash
# One would guess: if an H.264 stream crops columns on the left, the decoded frames do not have them, just as with
#   columns that are cropped on the right, and frames are as wide as the stream says.
# What happens: FFmpeg moves the left edge only in steps that keep its memory aligned (64 columns of 8-bit 4:2:0 with
#   the flag off). For a smaller crop, PyAV's frames keep the cropped columns: stream.width says 126, the frame has
#   128 columns, the two hidden ones first. Cropped by the same number on the right, everything is exact. With the
#   decoder's flag `unaligned`, the left is exact too.
# Why it matters: encoders that pad on the left write such streams. The hidden columns are garbage or black bars;
#   stored coordinates, masks and crops are shifted by them, and arrays of stream.width columns do not fit.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import io
import sys

import av
import numpy as np
from av.codec.context import Flags

av.logging.set_level(av.logging.PANIC)


def film(crop):
    """Returns a raw H.264 stream of one frame of 128 x 64; the columns get brighter from left to right."""
    file = io.BytesIO()
    with av.open(file, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        picture = np.full((96, 128), 128, np.uint8)
        picture[:64] = 20 + np.arange(128)
        rewrite = av.BitStreamFilterContext(f"h264_metadata={crop}", stream)
        frame = av.VideoFrame.from_ndarray(picture, "yuv420p")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(rewrite.filter(packet))
        container.mux(rewrite.filter(None))
    return file.getvalue()


def read(data, unaligned=False):
    with av.open(io.BytesIO(data)) as container:
        if unaligned:
            container.streams.video[0].codec_context.flags |= Flags.unaligned
        frame = next(container.decode(video=0))
        luma = frame.to_ndarray()[:64]
        return container.streams.video[0].width, luma.shape[1], round(float(luma[:, 0].mean())) - 20


print(f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}")
seen = {}
for side, columns in (("left", 2), ("left", 32), ("left", 64), ("right", 2), ("right", 32)):
    data = film(f"crop_{side}={columns}")
    plain, unaligned = read(data), read(data, unaligned=True)
    seen[side, columns] = plain, unaligned
    for name, (stream_width, width, first) in (("plain", plain), ("unaligned", unaligned)):
        print(f"  {columns:2} cropped {side:5} {name:9}: stream {stream_width}, frame {width}, first column {first}")
sys.exit(
    seen
    != {
        ("left", 2): ((126, 128, 0), (126, 126, 2)),
        ("left", 32): ((96, 128, 0), (96, 96, 32)),
        ("left", 64): ((64, 64, 64), (64, 64, 64)),
        ("right", 2): ((126, 126, 0), (126, 126, 0)),
        ("right", 32): ((96, 96, 0), (96, 96, 0)),
    }
)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.3.5
changed=0
"$folder/venv/bin/python" "$folder/show.py" || changed=1
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
