#!/usr/bin/env bash
# One would guess: an empty edit (media time -1) in the middle of an MP4's edit list is a pause: for its duration
#   nothing new is shown, as ISO/IEC 14496-12 says of empty edits. 25 frames stay 25, and the later ones come later.
# What happens: FFmpeg takes an empty edit as a pause only at the start of the list. In the middle, media time -1
#   counts like 0: the first frames of the track are shown once more for as long as the pause should last. An edit of
#   rate 0, which should dwell on one frame, plays on at full rate, and what follows it is shown a second time. An
#   edit of rate 2 ends halfway instead of showing every frame twice as fast. No error, no warning, and frame times
#   without a gap.
# Why it matters: editors and recorders that mux pauses write such lists. Whoever samples frames of them gets pictures
#   twice, at times at which no player of the standard shows them, and annotations in seconds point at other pictures.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import io
import struct
import sys

import av
import numpy as np

NUM_FRAMES, TICKS_PER_FRAME, PER_SECOND = 25, 512, 1000


def film():
    """Returns an MP4 of one second, 25 key frames, each of another grey."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "1", "qp": "10"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(NUM_FRAMES):
            picture = np.full((96, 64), 128, np.uint8)
            picture[:64] = 20 + 8 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


def with_edits(data, edits):
    """Replaces the edit list; `moov` is the last box, so no other place in the file moves."""
    assert data.index(b"mdat") < data.index(b"moov")
    entries = b"".join(struct.pack(">IiHH", *edit, 0) for edit in edits)
    elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    edts = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    at = data.index(b"edts") - 4
    (num_bytes,) = struct.unpack_from(">I", data, at)
    changed = bytearray(data[:at] + edts + data[at + num_bytes :])
    for kind in (b"moov", b"trak"):
        place = changed.index(kind) - 4
        (size,) = struct.unpack_from(">I", changed, place)
        struct.pack_into(">I", changed, place, size + len(edts) - num_bytes)
    return bytes(changed)


def shown(data):
    with av.open(io.BytesIO(data)) as container:
        return [round((int(frame.to_ndarray()[32, 32]) - 20) / 8) for frame in container.decode(video=0)]


whole, head, tail = [*range(25)], [*range(13)], [*range(13, 25)]
half = 13 * TICKS_PER_FRAME
cases = [  # edits of duration, media time and rate; what comes; what the standard says
    ("one edit", [(1000, 0, 1)], whole, whole),
    ("0.2 s of pause, then all", [(200, -1, 1), (1000, 0, 1)], whole, whole),
    ("0.52 s, 0.2 s of pause, the rest", [(520, 0, 1), (200, -1, 1), (480, half, 1)], head + [*range(5)] + tail, whole),
    ("0.52 s, 1 s on frame 13, the rest", [(520, 0, 1), (1000, half, 0), (480, half, 1)], head + tail + tail, whole),
    ("all at double rate", [(500, 0, 2)], head, whole),
]
print(f"PyAV {av.__version__}, libavformat {'.'.join(map(str, av.library_versions['libavformat']))}")
original, is_same = film(), True
for name, edits, seen, right in cases:
    came = shown(with_edits(original, edits))
    is_same &= came == seen
    print(f"  {name}: {len(came)} frames, {len(right)} wanted{'' if came == right else f': {came}'}")
sys.exit(not is_same)
PYTHON

changed=0
for version in 16.1.0 18.1.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check "av==$version" numpy==2.3.5
    "$folder/$version/bin/python" "$folder/show.py" || changed=1
done
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
