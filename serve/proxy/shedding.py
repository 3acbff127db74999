"""Refuses in the proxy's process what a full gateway would refuse, so that the gateway is not even asked.

Under an overload most requests are refused, and a refusal by the gateway costs as much as handing a video on. So after
one refusal the proxy lets one request in for each one that leaves, for as long as the refusal told its client to wait.
Then the gateway is asked again, and its next refusal starts the same anew. The proxy knows no limit of its own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.messages.refusal import OVERLOADED, OVERLOADED_SECONDS, overloaded
from serve.request.access_log import Access
from serve.request.error_response import CODE_HEADER, refusal_response, with_nosniff
from serve.request.record import RequestObserver


@dataclass
class _Full:
    """The state of a path whose gateway is full."""

    ends_at: float
    num_free: int = 0
    """Requests that have left since and that no other one has replaced."""


class Shedding:
    """ASGI middleware in front of Ray's proxy.

    Args:
        app: The proxy.
        observer: Is told of each request that is refused here. The gateways have observers for the others.
        clock: Returns the time in seconds.
    """

    def __init__(self, app: ASGIApp, observer: RequestObserver, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._refuse = Access(_refuse, observer)
        self._clock = clock
        self._full: dict[str, _Full] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif self._enters(scope["path"]):
            await self._pass(scope, receive, send)
        else:
            await self._refuse(scope, receive, send)

    def _enters(self, path: str) -> bool:
        full = self._full.get(path)
        if full is None or full.ends_at <= self._clock():
            return True
        if not full.num_free:
            return False
        full.num_free -= 1
        return True

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def watching_send(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = Headers(raw=message["headers"]).get(CODE_HEADER) == OVERLOADED
            await send(message)

        try:
            await self._app(scope, receive, watching_send)
        finally:
            self._left(scope["path"], refused)

    def _left(self, path: str, refused: bool) -> None:
        if refused:
            now = self._clock()
            self._full = {known: full for known, full in self._full.items() if full.ends_at > now}
            self._full[path] = _Full(now + OVERLOADED_SECONDS)
        elif path in self._full:
            self._full[path].num_free += 1


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await refusal_response(overloaded(), scope["path"])(scope, receive, with_nosniff(send))
