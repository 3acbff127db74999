#!/usr/bin/env bash
# One would guess: a monochrome video of limited range (black 16, white 235) is shown with black as 0 and white as
#   255, whichever codec holds it: the range is stated in the stream, and the frame's color_range repeats it.
# What happens: FFmpeg decodes monochrome H.264 to yuv420p, and black comes out as 0. It decodes monochrome HEVC to
#   the format `gray`, and swscale takes every `gray` as full range, whatever color_range says: 16, 126, 235 stay as
#   they are.
# Why it matters: thermal and night cameras send monochrome HEVC. Their pictures come out flat, black at 16 and white
#   at 235, and a model that was trained on the H.264 files of the same camera sees other pictures.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import io
import sys

import av
import numpy as np

av.logging.set_level(av.logging.ERROR)
BARS = np.repeat(np.array([16, 126, 235], np.uint8), 64)[None].repeat(128, 0)
LIMITED = 1  # AVCOL_RANGE_MPEG


def shown(codec, options):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "gray"
        stream.codec_context.color_range = LIMITED
        frame = av.VideoFrame.from_ndarray(BARS, "gray")
        frame.color_range = LIMITED
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        frame = next(container.decode(video=0))
    grey = frame.to_ndarray(format="rgb24")[64, [32, 96, 160], 0].tolist()
    print(f"  {codec}: decoded to {frame.format.name}, color_range {int(frame.color_range)}, as RGB {grey}")
    return frame.format.name, int(frame.color_range), grey


print(f"PyAV {av.__version__}, libswscale {'.'.join(map(str, av.library_versions['libswscale']))}")
h264 = shown("libx264", {"qp": "1"})
hevc = shown("libx265", {"x265-params": "log-level=error:crf=1"})
sys.exit((h264, hevc) != (("yuv420p", 1, [0, 128, 255]), ("gray", 1, [16, 126, 235])))
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.3.5
changed=0
"$folder/venv/bin/python" "$folder/show.py" || changed=1
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
