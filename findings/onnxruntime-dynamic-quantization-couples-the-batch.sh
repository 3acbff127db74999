#!/usr/bin/env bash
# One would guess: a quantized classifier is less exact, but what it says of one sample depends on that sample alone.
#   So it does not matter for a sample which others a server happens to put into its batch.
# What happens: quantize_dynamic() gives the activations of a layer one scale for the whole batch, from its largest
#   and smallest value. A sample with large values makes the steps coarser for all others of its batch: their logits
#   change.
# Why it matters: a server that batches requests answers the same request in different ways, depending on strangers.
#   Tests with one sample at a time, or with batches of like samples, do not show it. Static quantization fixes the
#   scales.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/show.py" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

chosen = np.random.default_rng(0)
folder = sys.argv[1]
sizes, nodes, weights, name = (64, 128, 128, 10), [], [], "x"
for number, (wide, narrow) in enumerate(zip(sizes, sizes[1:], strict=False)):
    matrix = chosen.normal(0, wide**-0.5, (wide, narrow)).astype(np.float32)
    weights.append(numpy_helper.from_array(matrix, f"w{number}"))
    last = number == len(sizes) - 2
    nodes.append(helper.make_node("MatMul", [name, f"w{number}"], ["logits" if last else f"m{number}"]))
    if not last:
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number}"]))
        name = f"r{number}"
graph = helper.make_graph(
    nodes,
    "classifier",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", sizes[0]])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", sizes[-1]])],
    weights,
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), f"{folder}/float.onnx")
quantize_dynamic(f"{folder}/float.onnx", f"{folder}/int8.onnx")

samples = chosen.normal(0, 1, (200, sizes[0])).astype(np.float32)
loud = 20 * chosen.normal(0, 1, (1, sizes[0])).astype(np.float32)
print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, numpy {np.__version__}")
changed = {}
for kind in ("float", "int8"):
    session = onnxruntime.InferenceSession(f"{folder}/{kind}.onnx", providers=["CPUExecutionProvider"])
    alone = np.vstack([session.run(None, {"x": sample[None]})[0] for sample in samples])
    beside = np.vstack([session.run(None, {"x": np.vstack([sample[None], loud])})[0][:1] for sample in samples])
    changed[kind] = int((alone.argmax(1) != beside.argmax(1)).sum())
    print(
        f"  {kind}: beside one loud sample the logits move by up to {np.abs(alone - beside).max():.2g}, "
        f"the class of {changed[kind]} of {len(samples)} samples changes"
    )
sys.exit(changed["float"] != 0 or changed["int8"] < 10)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    onnxruntime==1.32.0 onnx==1.23.2 numpy==2.3.5 sympy==1.14.0
changed=0
"$folder/venv/bin/python" "$folder/show.py" "$folder" || changed=1
[ "$changed" = 0 ] && echo "as described above" || echo "this has changed"
exit "$changed"
