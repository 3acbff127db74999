"""The greedy batcher: which items share a batch, and what an item that fails does to the others."""

import asyncio
from collections.abc import Sequence

import pytest

from serve.replica.batcher import GreedyBatcher


class Device:
    """Records its batches; doubles numbers, refuses negative ones, and holds a batch while `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(items)
        await self.gate.wait()
        return [2 * item if item >= 0 else ValueError(f"{item} is negative") for item in items]


def test_takes_all_that_waits_when_the_device_is_free() -> None:
    async def scenario() -> list[list[int]]:
        device = Device()
        device.gate.clear()
        batcher = GreedyBatcher(device.run, max_batch_size=4)
        tasks = [asyncio.create_task(batcher.submit(0))]
        while not device.batches:
            await asyncio.sleep(0)
        tasks += [asyncio.create_task(batcher.submit(item)) for item in range(1, 8)]
        await asyncio.sleep(0)
        device.gate.set()
        assert await asyncio.gather(*tasks) == [2 * item for item in range(8)]
        return device.batches

    assert asyncio.run(scenario()) == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_an_error_in_an_items_place_is_its_own() -> None:
    async def scenario() -> list[int | BaseException]:
        batcher = GreedyBatcher(Device().run, max_batch_size=4)
        return await asyncio.gather(*(batcher.submit(item) for item in (1, -2, 3)), return_exceptions=True)

    first, second, third = asyncio.run(scenario())
    assert (first, third) == (2, 6)
    assert isinstance(second, ValueError)


def test_an_error_of_the_batch_goes_to_all_and_the_next_batch_runs() -> None:
    async def scenario() -> None:
        async def fail_on_one(items: list[int]) -> list[int]:
            if 1 in items:
                raise MemoryError("too many")
            return items

        batcher = GreedyBatcher(fail_on_one, max_batch_size=2)
        results = await asyncio.gather(*(batcher.submit(item) for item in (0, 1, 2)), return_exceptions=True)
        assert [type(result) for result in results] == [MemoryError, MemoryError, int]

    asyncio.run(scenario())


def test_too_few_results_are_an_error_and_hang_nobody() -> None:
    async def scenario() -> None:
        async def drop(items: list[int]) -> list[int]:
            return []

        with pytest.raises(RuntimeError, match="0 results for a batch of 1 items"):
            await GreedyBatcher(drop, max_batch_size=2).submit(1)

    asyncio.run(scenario())


def test_a_cancelled_item_never_reaches_the_device() -> None:
    async def scenario() -> list[list[int]]:
        device = Device()
        device.gate.clear()
        batcher = GreedyBatcher(device.run, max_batch_size=4)
        first = asyncio.create_task(batcher.submit(0))
        while not device.batches:
            await asyncio.sleep(0)
        dropped, kept = (asyncio.create_task(batcher.submit(item)) for item in (1, 2))
        await asyncio.sleep(0)
        dropped.cancel()
        device.gate.set()
        assert await asyncio.gather(first, kept) == [0, 4]
        return device.batches

    assert asyncio.run(scenario()) == [[0], [2]]
