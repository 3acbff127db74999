"""The GPU's bench on the CPU, with tiny sizes: that it measures what it says, not what it measures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.model import ModelConfig
from tests.bench.gpu import NO_DEVICE, Work, measure, rows

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning"),
]

TINY = Work(
    size_px=24,
    short_side_px=32,
    global_batch=4,
    num_steps=2,
    matmul_side=64,
    model=ModelConfig(
        backbone="narrow", width=8, weights="none", hidden_size=8, batch_norm="frozen"
    ),  # compiles sooner
    loader_workers=0,
)
STREAMED = {
    f"{what}, JPEGs decoded {where}"
    for what in ("stream alone", "together")
    for where in ("in loaders", "on the device")
}
CONTENDERS = {"eager", "channels_last", "compiled", "tutorial", *STREAMED}


def test_every_contender_is_measured(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = measure(TINY, torch.device("cpu"), 2, packed)
    assert row.clips_per_second.keys() == CONTENDERS
    assert all(len(values) == 2 and min(values) > 0 for values in row.clips_per_second.values())
    assert row.wait_shares.keys() == {name for name in CONTENDERS if name.startswith("together")}
    assert all(len(values) == 2 and 0 < min(values) <= max(values) < 1 for values in row.wait_shares.values())
    # Of the first convolution alone: 4 frames of 12 x 12 places, 8 channels of 3 x 3 x 3, and its weights' gradient.
    assert row.flops_per_clip > 2 * 4 * 12 * 12 * 8 * 27 * 2
    assert row.compile_seconds >= 0
    assert row.share_of_peak("compiled") > 0
    text = row.as_text()
    assert all(name in text for name in CONTENDERS)
    assert json.loads(json.dumps(row.as_json()))["flops_per_clip"] == row.flops_per_clip
    same = {"channels_last": [100.0], "compiled": [100.0]}
    assert replace(row, clips_per_second=same).num_steps_to_pay == math.inf
    faster = replace(row, compile_seconds=3.0, clips_per_second=same | {"compiled": [200.0]})
    assert faster.num_steps_to_pay == pytest.approx(3.0 / (4 / 100 - 4 / 200))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(3, tmp_path)
    assert row.as_text() == NO_DEVICE
    assert row.as_json()["skipped"] == NO_DEVICE
    assert NO_DEVICE in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
