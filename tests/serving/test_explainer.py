"""Which frames decided: the weights are what the model says, and explaining takes little from other videos."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from serve.messages.refusal import Refusal
from serve.replica.batcher import GreedyBatcher
from serve.replica.explainer import Explainer, FrameWeights
from serve.replica.predictor import FramesTHWC, Predictor, ProbabilitiesK
from tests.support.registry import CLIP, VIEW, contract

T, S = CLIP.num_frames, VIEW.size_px
EVIDENCE_TK = [[0.0, 0.0, 0.0], [0.5, 3.0, 1.0], [0.0, 5.0, -1.0], [-2.0, -1.0, 0.0]]
"""What a white frame says for each class."""


class Linear(torch.nn.Module):
    """Maps `(B, T, 3, S, S) uint8` to `(B, K) float32` logits: the brightness of each frame times its evidence."""

    def __init__(self, evidence_TK: list[list[float]] = EVIDENCE_TK) -> None:
        super().__init__()
        self.register_buffer("evidence_TK", torch.tensor(evidence_TK))

    def forward(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        brightness_BT = frames_BTCHW.float().mean(dim=(2, 3, 4)) / 255
        logits_BK: torch.Tensor = brightness_BT @ self.evidence_TK
        return logits_BK


def grey(*levels: int) -> FramesTHWC:
    """Returns a clip of frames of one grey each."""
    return np.repeat(np.array(levels, np.uint8), S * S * 3).reshape(T, S, S, 3)


def explained(module: torch.nn.Module, clip: FramesTHWC) -> FrameWeights:
    predictor = Predictor(module, contract(), "cpu", 1)

    async def classify(frames: FramesTHWC) -> ProbabilitiesK:
        return predictor.predict([frames])[0]

    return asyncio.run(Explainer(1).explain(classify, clip, predictor.predict([clip])[0]))


def test_the_weights_of_a_linear_model_are_exact() -> None:
    levels = (40, 240, 200, 120)  # their mean is 150
    found = explained(Linear(), grey(*levels))
    logits_K = np.array(levels) / 255 @ np.array(EVIDENCE_TK)
    assert (found.best, found.second) == tuple(np.argsort(-logits_K)[:2]) == (1, 2)
    assert found.lead == pytest.approx(logits_K[1] - logits_K[2], abs=1e-5)
    evidence_T = np.array(EVIDENCE_TK)[:, 1] - np.array(EVIDENCE_TK)[:, 2]
    wanted_T = evidence_T * (np.array(levels) - 150) / 255
    np.testing.assert_allclose(found.weights_T, wanted_T, atol=1e-5)
    lead_of_nothing = evidence_T.sum() * 150 / 255  # of a clip that has its mean colour everywhere
    assert found.weights_T.sum() == pytest.approx(found.lead - lead_of_nothing, abs=1e-5)
    assert list(np.argsort(-found.weights_T)) == [2, 1, 3, 0]


def test_the_frames_that_a_model_reads_weigh_and_no_other_though_two_of_them_are_alike() -> None:
    reads_1_and_2 = Linear([[0.0] * 3, [0.0, 4.0, 0.0], [0.0, 4.0, 0.0], [0.0] * 3])
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 100, (T, S, S, 3), np.uint8)
    clip[1:3] += 150
    weights = explained(reads_1_and_2, clip).weights_T
    assert min(weights[1:3]) > 1
    np.testing.assert_allclose(weights[[0, 3]], 0, atol=1e-6)


def test_a_frame_that_weighs_more_than_the_lead_decided_alone() -> None:
    found = explained(Linear([[0.0, 3.0, 1.0], [0.0, -1.0, 1.0], [0.0] * 3, [0.0] * 3]), grey(250, 100, 0, 0))
    assert 0 < found.lead < found.weights_T[0]


def test_a_model_that_is_all_too_sure_has_finite_weights() -> None:
    found = explained(Linear([[0.0, 5000.0, -5000.0]] * 4), grey(250, 250, 250, 10))
    assert np.isfinite([found.lead, *found.weights_T]).all()


def test_explanations_add_one_clip_to_a_batch_at_most() -> None:
    batches: list[list[str]] = []

    async def run_batch(clips: list[tuple[str, FramesTHWC]]) -> Sequence[ProbabilitiesK]:
        batches.append([name for name, _ in clips])
        await asyncio.sleep(0.002)
        return [np.array([0.7, 0.2, 0.1])] * len(clips)

    async def all_at_once() -> None:
        batcher: GreedyBatcher[tuple[str, FramesTHWC], ProbabilitiesK] = GreedyBatcher(run_batch, 16)
        explainer = Explainer(3)

        async def explain() -> None:
            with explainer.admitted():
                await explainer.explain(lambda clip: batcher.submit(("hidden", clip)), grey(1, 2, 3, 4), answer)

        async def ask_often() -> None:
            for _ in range(10):
                await batcher.submit(("other", grey(0, 0, 0, 0)))

        answer = np.array([0.7, 0.2, 0.1])
        await asyncio.gather(explain(), explain(), explain(), ask_often(), ask_often())

    asyncio.run(all_at_once())
    names = [name for batch in batches for name in batch]
    assert (names.count("hidden"), names.count("other")) == (3 * T, 20)
    assert max(batch.count("hidden") for batch in batches) == 1
    assert max(batch.count("other") for batch in batches) == 2  # nothing kept them apart


def test_too_many_are_refused_and_one_that_is_given_up_leaves_its_place() -> None:
    async def never(clip: FramesTHWC) -> ProbabilitiesK:
        await asyncio.sleep(3600)
        raise AssertionError

    async def at_once(clip: FramesTHWC) -> ProbabilitiesK:
        return np.array([0.5, 0.3, 0.2])

    async def one_after_the_other() -> None:
        explainer = Explainer(1)
        answer = np.array([0.7, 0.2, 0.1])
        with explainer.admitted():
            with pytest.raises(Refusal, match="all the videos it can take"), explainer.admitted():
                pass
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):  # as a deadline, or a client that has left
                    await explainer.explain(never, grey(1, 2, 3, 4), answer)
        with explainer.admitted():
            found = await explainer.explain(at_once, grey(1, 2, 3, 4), answer)
        np.testing.assert_allclose(found.weights_T, np.log(7 / 2) - np.log(5 / 3))

    asyncio.run(one_after_the_other())
