"""The predictor: what a model is checked for, and that a clip's answer does not depend on its batch."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.pack import DecodeLimits
from packer.video.clip import read_clip
from serve.replica.predictor import Predictor
from tests.support.bombs import muxed, png
from tests.support.registry import CLASS_NAMES, CLIP, VIEW, Brightness, contract
from tests.support.videos import write_numbered_video


class Wrong(Brightness):
    """Gives the logits that the test chooses, instead of those that the contract promises."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        logits = super().forward(frames_BTCHW)
        return {"nan": logits * torch.nan, "fixed": logits[:1], "batch": logits * len(logits)}[self.answer]


def test_probabilities_sum_to_one_and_do_not_depend_on_the_batch() -> None:
    predictor = Predictor(Brightness(), contract(), "cpu", 1)
    shape = (CLIP.num_frames, VIEW.size_px, VIEW.size_px, 3)
    clips = [np.full(shape, level, np.uint8) for level in (0, 100, 255)]
    together = predictor.predict(clips)
    assert [CLASS_NAMES[row.argmax()] for row in together] == ["dark", "middle", "bright"]
    for clip, row in zip(clips, together, strict=True):
        assert row.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(predictor.predict([clip])[0], row, atol=1e-6)


def test_a_clip_is_seen_as_the_contract_says(tmp_path: Path) -> None:
    clip = read_clip(write_numbered_video(tmp_path / "video.mp4", 9, width_px=96), CLIP, DecodeLimits())
    frames = Predictor(Brightness(), contract(), "cpu", 1).view(clip)
    assert frames.shape == (CLIP.num_frames, VIEW.size_px, VIEW.size_px, 3)


def test_the_view_of_a_very_wide_clip_takes_little_memory() -> None:
    clip = read_clip(muxed([png(60_000, 40)] * 2, "png", 60_000, 40), CLIP, DecodeLimits())
    frame_bytes = clip.height_px * clip.width_px * 3
    predictor = Predictor(Brightness(), contract(), "cpu", 1)
    tracemalloc.start()
    try:
        predictor.view(clip)
        assert frame_bytes < tracemalloc.get_traced_memory()[1] < 2 * frame_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("answer", "message"),
    [("nan", "not finite"), ("fixed", r"shapes \(1, 3\) and \(1, 3\)"), ("batch", "alone and in a batch differ")],
)
def test_a_model_that_is_not_what_it_says_is_refused(answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(Wrong(answer), contract(), "cpu", 1)


def test_a_model_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="its contract names 4 classes"):
        Predictor(Brightness(), contract((*CLASS_NAMES, "one too many")), "cpu", 1)
