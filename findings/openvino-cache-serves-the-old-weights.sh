#!/usr/bin/env bash
# One would guess: with CACHE_DIR, OpenVINO compiles a model once, and compiles it again when the model's file has
#   changed.
# What happens: compile_model() with the path of an ONNX file looks the compiled model up by path and time of the last
#   change in whole seconds. A file that is replaced by another model within the same second, or that keeps its time
#   (a copy with cp -p, rsync -t, an unpacked archive with fixed times), is answered from the cache by the weights of
#   before. compile_model(read_model(path)) looks at the content and gives the new weights. (For OpenVINO's own .xml
#   and .bin, the path is safe.)
# Why it matters: a server that swaps its model at a fixed path goes on with the old one and says so nowhere.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

folder = Path(sys.argv[1])
path = str(folder / "model.onnx")
core = ov.Core()
core.set_property({"CACHE_DIR": str(folder / "cache")})


def write(value):
    """Writes a model that multiplies by `value`, with a fixed time of its last change."""
    weights = numpy_helper.from_array(np.eye(64, dtype=np.float32) * value, "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "scale", [x], [y], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    os.utime(path, (1_700_000_000, 1_700_000_000))


def answer(model):
    return float(core.compile_model(model, "CPU")(np.ones((1, 64), np.float32))[0][0, 0])


print(f"openvino {ov.__version__}, onnx {onnx.__version__}")
write(2.0)
first = answer(path)
write(3.0)
by_path, by_content = answer(path), answer(core.read_model(path))
print(f"  a model that multiplies by 2 answers {first:g}")
print(f"  replaced by one that multiplies by 3, same time: by path {by_path:g}, read first {by_content:g}")
sys.exit((first, by_path, by_content) != (2.0, 2.0, 3.0))
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    openvino==2026.4.1 onnx==1.23.2 numpy==2.3.5
changed=0
"$folder/venv/bin/python" "$folder/show.py" "$folder" || changed=1
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
