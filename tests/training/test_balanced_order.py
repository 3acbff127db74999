"""Balanced sampling: every class equally often, as many samples as ever, for any number of ranks and from any start."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from configs.train import AugmentConfig, TrainConfig, ViewConfig
from trainer.schedule.order import Shuffle, balanced_order, balanced_uses, earlier_uses
from trainer.schedule.rows import Row
from trainer.schedule.schedule import Schedule
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader
from trainer.views.train_view import TrainView

SHARD_SIZES = (4, 1, 3, 5)
LABELS = np.array([0, 0, 2, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0])  # classes 1 and 3 have no samples
SHUFFLE = Shuffle(seed=7, block=6)


@pytest.mark.parametrize("labels", [LABELS, np.arange(5), np.zeros(7, np.int64), np.repeat([0, 1], [1, 99])])
@pytest.mark.parametrize("seed", range(5))
def test_uses_are_even_among_classes_and_within_them(labels: np.ndarray, seed: int) -> None:
    uses = balanced_uses(labels, np.random.default_rng(seed))
    assert uses.sum() == len(labels)
    per_class = [int(uses[labels == label].sum()) for label in np.unique(labels)]
    assert max(per_class) - min(per_class) <= 1
    for label in np.unique(labels):
        assert np.ptp(uses[labels == label]) <= 1


def test_what_is_left_out_is_drawn_anew() -> None:
    labels = np.repeat([0, 1], [30, 2])
    uses = sum(balanced_uses(labels, np.random.default_rng(seed)) for seed in range(40))
    assert (uses[:30] > 5).all()
    assert (uses[:30] < 40).all()


def test_earlier_uses_are_counted() -> None:
    assert earlier_uses(np.array([5, 2, 5, 5])).tolist() == [0, 0, 1, 2]
    order = np.random.default_rng(0).integers(0, 9, 50)
    seen: Counter[int] = Counter()
    for sample, earlier in zip(order.tolist(), earlier_uses(order).tolist(), strict=True):
        assert earlier == seen[sample]
        seen[sample] += 1


def rows(schedule: Schedule, world_size: int) -> list[Row]:
    found = []
    for step in range(schedule.num_steps):
        shares = [schedule.rows(step, rank, world_size) for rank in range(world_size)]
        found += [shares[place % world_size][place // world_size] for place in range(schedule.global_batch)]
    return found


@pytest.mark.parametrize("batch", [1, 4, 5, 13, 30])
def test_epochs_are_balanced_and_the_same_for_any_ranks_and_starts(batch: int) -> None:
    whole = rows(Schedule(SHARD_SIZES, batch, 3, 0, SHUFFLE, LABELS), 1)
    real = [row for row in whole if row.weight]
    assert len(real) == len(set(real)) == 3 * 13  # a sample used again is another row
    for epoch in range(3):
        counts = Counter(int(LABELS[row.index]) for row in real if row.epoch == epoch)
        assert sorted(counts.values()) == [4, 4, 5]
        for index, times in Counter(row.index for row in real if row.epoch == epoch).items():
            draws = [row.draw for row in real if (row.epoch, row.index) == (epoch, index)]
            assert draws == list(range(times))
    for world_size in (2, 3, 4):
        if world_size <= batch:
            assert rows(Schedule(SHARD_SIZES, batch, 3, 0, SHUFFLE, LABELS), world_size) == whole
    for start in range(0, 40, 3):
        rest = rows(Schedule(SHARD_SIZES, batch, 3, start, SHUFFLE, LABELS), 1)
        assert [row for row in rest if row.weight] == real[start:]


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): tuple(balanced_order(SHARD_SIZES, Shuffle(seed, 6), epoch, LABELS))
        for seed, epoch in product(range(3), range(3))
    }
    assert len(set(orders.values())) == len(orders)
    assert tuple(balanced_order(SHARD_SIZES, Shuffle(1, 6), 2, LABELS)) == orders[1, 2]


def test_a_sample_that_is_used_again_is_augmented_anew(packed: Path) -> None:
    index = SampleIndex.open(packed, "train")
    labels = np.zeros(index.num_samples, np.int64)
    labels[-1] = 1
    schedule = Schedule(index.shard_sizes, 7, 1, 0, SHUFFLE, labels)
    view = TrainView(ViewConfig(short_side_px=32, size_px=24), AugmentConfig(), seed=0)
    clips = {
        row: clip.numpy().tobytes()
        for batch in make_loader(index, schedule, view, 24)
        for row, clip in zip(batch.rows, batch.clips, strict=True)
        if row.index == index.num_samples - 1
    }
    assert len(clips) in (10, 11)
    assert len(set(clips.values())) > 7


def test_balancing_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"sampling and optimizer.class_weights both balance the classes"):
        TrainConfig.model_validate({"sampling": "balanced", "optimizer": {"class_weights": "balanced"}})
