"""Refuses requests that the server has no room for before it reads their bodies; a shutdown waits for the others.

A request counts as work once its body has arrived, so slow uploads keep nobody out. Each gateway process knows only its
own requests; in the end, a model replica itself refuses what is too much for it.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.messages.refusal import Refusal, overloaded
from serve.request.error_response import refusal_response

ALIVE_PATH = "/healthz"


class Admission:
    """Counts the requests inside, and decides who may come in.

    Args:
        max_working: Most requests whose body has arrived and that have no answer yet.
    """

    def __init__(self, max_working: int) -> None:
        self._max_working = max_working
        self._closed = False
        self._empty = asyncio.Event()
        self.num_requests = 0
        self.num_working = 0

    async def close(self) -> None:
        """Refuses every new request, and returns when those inside have their answers."""
        self._closed = True
        if self.num_requests:
            await self._empty.wait()

    def refusal(self, scope: Scope) -> Refusal | None:
        """Returns why a request may not come in, or None if it may."""
        if self._closed and scope["path"] != ALIVE_PATH:
            return Refusal(503, "shutting_down", "the server is shutting down", retry_after_seconds=5)
        if scope["method"] == "POST" and self.num_working >= self._max_working:
            return overloaded()
        return None

    def left(self, worked: bool) -> None:
        """Removes a request that was answered or abandoned from the count.

        Args:
            worked: Whether its body had arrived.
        """
        self.num_requests -= 1
        self.num_working -= worked
        if self._closed and not self.num_requests:
            self._empty.set()


class Gate:
    """ASGI middleware in front of an `Admission`."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if refusal := self._admission.refusal(scope):
            await refusal_response(refusal, scope["path"])(scope, receive, send)
            return
        working = False

        async def counted_receive() -> Message:
            nonlocal working
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body") and not working:
                working = True
                self._admission.num_working += 1
            return message

        self._admission.num_requests += 1
        try:
            await self._app(scope, counted_receive, send)
        finally:
            self._admission.left(working)
