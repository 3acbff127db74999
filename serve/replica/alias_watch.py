"""Follows the registry's alias: loads the version that it points at beside the served one, then swaps them.

If a version cannot be loaded, the old one goes on serving and `problem` says why. If the registry cannot be reached, a
loaded model goes on serving too.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from serve.replica.errors import NOT_LOADED, ModelUnavailable

logger = logging.getLogger(__name__)

ModelT = TypeVar("ModelT")

FIRST_LOAD_SECONDS = 60.0
"""How long `start` waits for the first model."""
RELOAD_SECONDS = 60.0
"""How long to wait before a version that failed to load is tried again."""


class AliasWatch(Generic[ModelT]):
    """Keeps `model` the one that the alias points at.

    Args:
        resolve: Returns the version that the alias points at; called in a thread.
        load: Returns the model of a version, checked and warm; called in a thread.
        retire: Is given each model that another one has replaced.
        poll_seconds: Longest time between two calls of `resolve`.
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
        """Starts to watch, and returns when the first attempt to load a model has ended, or after a minute."""
        self._task = asyncio.create_task(self._watch())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), FIRST_LOAD_SECONDS)

    def close(self) -> None:
        """Stops watching."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            try:
                await self._refresh()
            except ModelUnavailable as error:
                self._fail(str(error), error.for_operators)
            except Exception as error:  # a model is foreign input: whatever it raises, the old one goes on serving
                self._fail(NOT_LOADED, repr(error), error)
            self._tried.set()
            # A random time, so that the replicas of a machine do not all load at once and leave no core for serving.
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

    def _fail(self, problem: str, reason: str, unexpected: Exception | None = None) -> None:
        """Notes why there is no model, or no newer one. It is logged once; a traceback only if it is unexpected."""
        if problem != self.problem:
            what = (
                f"waiting for a model, looked for every {self._poll_seconds:g} s"
                if self.model is None
                else f"still serving version {self._version}"
            )
            logger.warning("%s: %s", what, reason, exc_info=unexpected)
        self.problem = problem
