"""The time that one request may take; a client cannot raise it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from serve.messages.refusal import Refusal


class Deadline:
    """The deadline of one request; create it when the request's headers have arrived.

    Args:
        seconds: Longest time from now to the answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends_at = asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def of_body(self) -> AsyncGenerator[None, None]:
        """Limits the time for reading the body.

        Raises:
            Refusal: The body has not arrived in time (408).
        """
        try:
            async with asyncio.timeout_at(self._ends_at):
                yield
        except TimeoutError as error:
            message = f"the body did not arrive within {self._seconds:g} seconds"
            raise Refusal(408, "request_timeout", message) from error

    @asynccontextmanager
    async def of_answer(self) -> AsyncGenerator[None, None]:
        """Limits the time for the answer.

        Raises:
            Refusal: There is no answer in time (503).
        """
        try:
            async with asyncio.timeout_at(self._ends_at):
                yield
        except TimeoutError as error:
            message = f"no answer within {self._seconds:g} seconds: the server is busy"
            raise Refusal(503, "deadline_exceeded", message, retry_after_seconds=5) from error
