"""Follows the registry's alias: loads the version it points at beside the one being served, then swaps.

A version that cannot be loaded leaves the old one serving, and the reason in `problem`. The registry being away
changes nothing for a model that is loaded.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

ModelT = TypeVar("ModelT")

FIRST_LOAD_SECONDS = 60.0
"""How long `start` waits for the first model."""
RELOAD_SECONDS = 60.0
"""How long a version that failed to load is left alone."""


class ModelDied(Exception):
    """The process of the model that was being served has ended by itself, killed or crashed."""


class ModelUnavailable(Exception):
    """No model can be had; the text is one sentence for clients, without paths or addresses."""


class AliasWatch(Generic[ModelT]):
    """Keeps `model` the one that the alias points at.

    Args:
        resolve: Returns the version that the alias points at; called in a thread.
        load: Returns the model of a version, checked and warm; called in a thread.
        retire: Takes a model that another one has replaced.
        poll_seconds: Most time between two calls of `resolve`.
    """

    def __init__(
        self,
        resolve: Callable[[], str],
        load: Callable[[str], ModelT],
        retire: Callable[[ModelT], object],
        poll_seconds: float,
    ) -> None:
        self._resolve = resolve
        self._load = load
        self._retire = retire
        self._poll_seconds = poll_seconds
        self._version: str | None = None
        self._failed_version: str | None = None
        self._retry_at = 0.0
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.model: ModelT | None = None
        self.problem: str | None = "the model is being loaded"

    async def start(self) -> None:
        """Returns when the first attempt has ended, or after a minute; goes on watching."""
        self._task = asyncio.create_task(self._watch())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), FIRST_LOAD_SECONDS)

    def close(self) -> None:
        """Ends the watching."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            try:
                await self._refresh()
            except ModelUnavailable as error:
                self._fail(str(error), error)
            except Exception as error:  # a model is foreign input: whatever it raises, the old one serves on
                self._fail("the version that the alias points at cannot be loaded: see the server's log", error)
            self._tried.set()
            # At random, so that the replicas of one machine do not all load at once and leave no core for serving.
            await asyncio.sleep(self._poll_seconds * random.uniform(0.5, 1))

    async def _refresh(self) -> None:
        version = await asyncio.to_thread(self._resolve)
        now = asyncio.get_running_loop().time()
        if version == self._failed_version and now < self._retry_at:
            return
        if version != self._version:
            self._failed_version, self._retry_at = version, now + RELOAD_SECONDS
            former, self.model = self.model, await asyncio.to_thread(self._load, version)
            self._version = version
            if former is not None:
                self._retire(former)
            logger.info("model_loaded version=%s", version)
        self._failed_version = self.problem = None

    def _fail(self, problem: str, error: Exception) -> None:
        if problem != self.problem:
            logger.warning("model_not_loaded problem=%r", problem, exc_info=error)
        self.problem = problem
