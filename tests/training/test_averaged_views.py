"""Test-time averaging: which squares are cut, that logits are averaged, and what may not be asked for."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from configs.train import TrainConfig, ViewConfig
from trainer.schedule.rows import Row
from trainer.views.eval_view import eval_view
from trainer.views.test_time import AveragedModel, Crops

VIEW = ViewConfig(short_side_px=24, size_px=16)
ROW = Row(0, 0, 1.0)


@pytest.mark.parametrize(("height", "width"), [(24, 41), (41, 24), (24, 24), (48, 70), (12, 10)])
def test_crops_are_both_ends_and_the_middle(height: int, width: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    first, middle, last = np.split(Crops(VIEW)(torch.from_numpy(frames), ROW).numpy(), 3)
    assert np.array_equal(middle, eval_view(torch.from_numpy(frames), VIEW))
    whole = eval_view(torch.from_numpy(frames), VIEW).shape
    assert first.shape == last.shape == whole == (2, 16, 16, 3)
    if (height, width) == (24, 41):
        assert np.array_equal(first, frames[:, 4:20, :16])
        assert np.array_equal(last, frames[:, 4:20, -16:])
    if (height, width) == (41, 24):
        assert np.array_equal(first, frames[:, :16, 4:20])
        assert np.array_equal(last, frames[:, -16:, 4:20])


@pytest.mark.parametrize("flip", [False, True])
def test_logits_are_the_mean_over_the_views(flip: bool) -> None:
    clips = torch.randint(0, 256, (5, 6, 3, 8, 8), dtype=torch.uint8)
    weights = torch.randn(2 * 3 * 8 * 8, 4)

    def model(clips_BTCHW: torch.Tensor) -> torch.Tensor:
        return torch.tanh(clips_BTCHW.flatten(1).float() / 255 @ weights)

    views = [clips[:, start : start + 2] for start in (0, 2, 4)]
    wanted = sum(model(view) + model(view.flip(-1)) if flip else model(view) for view in views)
    torch.testing.assert_close(AveragedModel(model, 2, flip)(clips), wanted / (6 if flip else 3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluation": {"three_crops": True}, "view": {"mode": "squash"}}, r"three_crops needs view.mode crop"),
        ({"evaluation": {"num_clips": 2}}, r"num_clips \(2\) needs a view.num_frames"),
    ],
)
def test_views_that_do_not_exist_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(values)
