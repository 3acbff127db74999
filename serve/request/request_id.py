"""Request ids: each request has one. It is in the answer and in every line that any process logs about the request.

Ray's HTTP proxy sends back any id that a client sent. `RequestIds` therefore stands in front of the proxy too (see
`serve.proxy.set_up`). Otherwise an answer would have the header twice.
"""

import logging
import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the current request; empty outside of a request."""

_HEADER = "X-Request-ID"
_SAFE = re.compile(r"[A-Za-z0-9._:=+/-]{1,128}")


class RequestIds:
    """ASGI middleware that takes a request's id from its header, or makes one, and adds it to the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        request_id = headers.get(_HEADER, "")
        if not _SAFE.fullmatch(request_id):
            request_id = headers[_HEADER] = str(uuid.uuid4())
        REQUEST_ID.set(request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


def log_to_stderr() -> None:
    """Sets up logging in a process of Ray, which sets up only its own loggers; lines end with the request's id."""
    handler = logging.StreamHandler()
    handler.addFilter(_add_request_id)
    logging.basicConfig(level=logging.INFO, format="%(message)s%(request)s", handlers=[handler])


def _add_request_id(record: logging.LogRecord) -> bool:
    request_id = REQUEST_ID.get()
    record.request = f" request_id={request_id}" if request_id else ""
    return True
