"""The order of samples: the same global batches for any number of ranks, exactly once per epoch, resumable anywhere."""

import tracemalloc
from collections import Counter
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.schedule.order import Shuffle, epoch_order
from trainer.schedule.rows import Row
from trainer.schedule.schedule import Schedule

SHARD_SIZES = (4, 1, 3, 5)
NUM_SAMPLES = sum(SHARD_SIZES)
SHUFFLE = Shuffle(seed=7, block=6)
GLOBAL_BATCHES = (1, 2, 3, 4, 5, 8, 13, 14, 30)
WORLD_SIZES = (1, 2, 3, 4, 5, 8)


def global_batch(schedule: Schedule, step: int, world_size: int) -> list[Row]:
    """The rows of a step as the ranks hold them, put back in the order of positions."""
    shares = [schedule.rows(step, rank, world_size) for rank in range(world_size)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    return [shares[place % world_size][place // world_size] for place in range(schedule.global_batch)]


def all_rows(schedule: Schedule) -> list[Row]:
    return [row for step in range(schedule.num_steps) for row in schedule.rows(step, 0, 1)]


@pytest.mark.parametrize("batch", GLOBAL_BATCHES)
def test_any_number_of_ranks_gets_the_same_global_batches(batch: int) -> None:
    for num_epochs, start in product((1, 2, 3), (0, 1, 5, NUM_SAMPLES - 1, NUM_SAMPLES)):
        schedule = Schedule(SHARD_SIZES, batch, num_epochs, start, SHUFFLE)
        for step, world_size in product(range(schedule.num_steps), WORLD_SIZES):
            if world_size <= batch:
                assert global_batch(schedule, step, world_size) == list(schedule.rows(step, 0, 1))


@pytest.mark.parametrize("batch", GLOBAL_BATCHES)
@pytest.mark.parametrize("num_epochs", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [SHUFFLE, None])
def test_every_epoch_holds_each_sample_once(batch: int, num_epochs: int, shuffle: Shuffle | None) -> None:
    rows = all_rows(Schedule(SHARD_SIZES, batch, num_epochs, 0, shuffle))
    real = [row for row in rows if row.weight == 1]
    used = Counter((row.epoch, row.index) for row in real)
    assert used == {(epoch, index): 1 for epoch in range(num_epochs) for index in range(NUM_SAMPLES)}
    assert [row.epoch for row in real] == sorted(row.epoch for row in real)
    padding = rows[len(real) :]
    assert all(row.weight == 0 for row in padding)
    assert len(padding) == -len(real) % batch
    # Padding opens the last epoch's order, so its rows are samples like any other.
    opening = [row.index for row in real if row.epoch == num_epochs - 1]
    assert [row.index for row in padding] == [opening[place % NUM_SAMPLES] for place in range(len(padding))]


@pytest.mark.parametrize("batch", GLOBAL_BATCHES)
def test_a_start_anywhere_gives_the_uninterrupted_rest(batch: int) -> None:
    whole = [row for row in all_rows(Schedule(SHARD_SIZES, batch, 3, 0, SHUFFLE)) if row.weight]
    for start in range(3 * NUM_SAMPLES + 1):
        schedule = Schedule(SHARD_SIZES, batch, 3, start, SHUFFLE)
        assert [row for row in all_rows(schedule) if row.weight] == whole[start:]
        assert schedule.num_steps == -(-(3 * NUM_SAMPLES - start) // batch)
        ends = [schedule.end_of(step) for step in range(schedule.num_steps)]
        assert ends == [min(start + (step + 1) * batch, 3 * NUM_SAMPLES) for step in range(schedule.num_steps)]


def test_steps_may_be_asked_for_in_any_order() -> None:
    schedule = Schedule(SHARD_SIZES, 4, 5, 2, SHUFFLE)
    steps = list(range(schedule.num_steps))
    forward = [schedule.rows(step, 1, 3) for step in steps]
    assert [schedule.rows(step, 1, 3) for step in reversed(steps)] == forward[::-1]


def test_worked_example() -> None:
    schedule = Schedule((10,), 4, num_epochs=2)
    assert [(row.epoch, row.index) for row in schedule.rows(2, 0, 2)] == [(0, 8), (1, 0)]
    assert [(row.epoch, row.index) for row in schedule.rows(2, 1, 2)] == [(0, 9), (1, 1)]


def test_without_shuffle_samples_come_as_they_are_stored() -> None:
    rows = all_rows(Schedule(SHARD_SIZES, 5))
    assert [row.index for row in rows] == [*range(NUM_SAMPLES), 0, 1]


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): tuple(epoch_order(SHARD_SIZES, Shuffle(seed, 6), epoch)) for seed in range(4) for epoch in (0, 1)
    }
    assert len(set(orders.values())) == len(orders)
    assert all(sorted(order) == list(range(NUM_SAMPLES)) for order in orders.values())
    np.random.seed(0)  # the order must not depend on it
    again = {key: tuple(epoch_order(SHARD_SIZES, Shuffle(key[0], 6), key[1])) for key in reversed(orders)}
    assert again == orders


def test_order_is_the_same_on_every_machine() -> None:
    assert list(epoch_order(SHARD_SIZES, SHUFFLE, 0)) == [1, 2, 5, 0, 3, 4, 8, 6, 9, 7, 10, 11, 12]


def order_by_one_sort(shard_sizes: list[int], shuffle: Shuffle, epoch: int) -> NDArray[np.int64]:
    """The order by its definition, computed all at once. It must never change: resumed runs depend on it."""
    generator = np.random.Generator(np.random.PCG64([shuffle.seed, epoch]))
    starts = np.cumsum([0, *shard_sizes])
    permuted = generator.permutation(len(shard_sizes))
    samples = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in permuted])
    places = np.arange(len(samples)) + generator.uniform(0, shuffle.block, len(samples))
    return samples[np.argsort(places, kind="stable")]


@pytest.mark.parametrize("sizes", [[5], [1, 1, 1], [0, 7, 0, 0, 20, 3, 0], [10] * 30])
@pytest.mark.parametrize("block", [1, 2, 7, 40, 1000])
def test_any_part_of_an_order_is_that_part_of_one_sort(sizes: list[int], block: int) -> None:
    for seed, epoch in product(range(3), range(2)):
        shuffle = Shuffle(seed, block)
        whole = order_by_one_sort(sizes, shuffle, epoch)
        bounds = sorted({0, 1, 2, len(whole) // 2, len(whole) - 1, len(whole)})
        for first, last in product(bounds, bounds):
            if first <= last:
                assert list(epoch_order(sizes, shuffle, epoch, first, last)) == list(whole[first:last])
        schedule = Schedule(sizes, 3, epoch + 1, epoch * len(whole), shuffle)
        assert [row.index for row in all_rows(schedule) if row.weight] == list(whole)


def test_a_hundred_million_samples_are_never_held_at_once() -> None:
    schedule = Schedule([1000] * 100_000, 1024, 90, shuffle=Shuffle(0, 2000))
    tracemalloc.start()
    rows = [schedule.rows(step, 1023, 1024)[0] for step in (0, schedule.num_steps // 2, schedule.num_steps - 1)]
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert [row.epoch for row in rows] == [0, 45, 89]


@pytest.mark.parametrize("block", [1, 7, 50])
@pytest.mark.parametrize("epoch", range(5))
def test_samples_move_less_than_a_block(block: int, epoch: int) -> None:
    sizes = [10] * 30
    order = epoch_order(sizes, Shuffle(3, block), epoch)
    shard_order = list(dict.fromkeys(epoch_order(sizes, Shuffle(3, 1), epoch) // 10))
    stands = {
        shard * 10 + place: number * 10 + place for number, shard in enumerate(shard_order) for place in range(10)
    }
    moves = [abs(place - stands[int(index)]) for place, index in enumerate(order)]
    assert max(moves) < block
    assert block == 1 or max(moves) > block // 3


def test_a_block_as_large_as_the_split_mixes_all_shards() -> None:
    order = epoch_order([10] * 30, Shuffle(0, 3000), 0)
    assert len(set(order[:30] // 10)) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 1), "shard_sizes hold no sample"),
        (((0, 0), 1), "shard_sizes hold no sample"),
        (((5,), 0), r"global_batch \(0\) must be at least 1"),
        (((5,), 2, 2, -1), r"start \(-1\) must lie in 0\.\.10, the positions of 2 epochs"),
        (((5,), 2, 2, 11), r"start \(11\) must lie in 0\.\.10"),
    ],
)
def test_what_is_no_schedule_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)  # type: ignore[arg-type]


def test_more_ranks_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"world_size \(5\) must be at most global_batch \(4\).*--num-workers"):
        Schedule((9,), 4).rows(0, 0, 5)


def test_a_finished_stream_has_no_steps() -> None:
    assert Schedule((5,), 2, 2, start=10).num_steps == 0
