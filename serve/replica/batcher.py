"""Greedy batching: when the model is free, it takes everything that is waiting, up to a maximum.

Nobody waits for a batch to fill. A single request runs at once, and under load the batch is what arrived during the
last forward pass. Ray's `@serve.batch` closes a batch after a fixed wait even while the model is busy, so its mean
batch stays near 1 under load.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class GreedyBatcher(Generic[ItemT, ResultT]):
    """Runs single items through a function of batches, one batch at a time, in the order of arrival.

    Args:
        run_batch: Returns one result per item, in order. If an exception stands in an item's place, only that item's
            `submit` raises it; an exception that `run_batch` raises goes to the whole batch.
        max_batch_size: Most items per call.
    """

    def __init__(
        self, run_batch: Callable[[list[ItemT]], Awaitable[Sequence[ResultT | Exception]]], max_batch_size: int
    ) -> None:
        self._run_batch = run_batch
        self._max_batch_size = max_batch_size
        self._waiting: list[tuple[ItemT, asyncio.Future[ResultT]]] = []
        self._drain_task: asyncio.Task[None] | None = None

    async def submit(self, item: ItemT) -> ResultT:
        """Returns the result of one item. If it is cancelled while it waits, the item is dropped."""
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._drain_task is None:
            self._drain_task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            await asyncio.sleep(0)  # requests of the same tick join the first batch
            while batch := self._take():
                results = await self._run([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    _settle(future, result)
        finally:
            self._drain_task = None
            for _, future in self._waiting:  # only if this task itself was cancelled
                future.cancel()

    def _take(self) -> list[tuple[ItemT, asyncio.Future[ResultT]]]:
        live = [(item, future) for item, future in self._waiting if not future.done()]
        self._waiting = live[self._max_batch_size :]
        return live[: self._max_batch_size]

    async def _run(self, items: list[ItemT]) -> Sequence[ResultT | Exception]:
        try:
            results = await self._run_batch(items)
        except Exception as error:
            return [error] * len(items)
        if len(results) != len(items):
            return [RuntimeError(f"{len(results)} results for a batch of {len(items)} items")] * len(items)
        return results


def _settle(future: asyncio.Future[ResultT], result: ResultT | Exception) -> None:
    if future.done():  # cancelled while its batch ran
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
