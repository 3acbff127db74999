"""What Ray's HTTP proxy is set up with; it has no setting for either, only a function that it calls at its start.

Without it a request's headers have no deadline and no limit, the proxy answers whatever request id a client sent, and
reads a body as fast as it comes, however far behind the application is: one body took 230 MB of it.
HAProxy in its place (RAY_SERVE_ENABLE_HA_PROXY=1) was refused, though it costs a request less: it calls no such
function, has its own ports listen on every address, and obeys any user of the machine, by a socket of mode 666.
"""

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.proxy.connection import limit_connections
from serve.proxy.shedding import Shedding
from serve.request.request_id import RequestIds, log_to_stderr

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Where Ray's proxy looks for the function to call: `SET_UP`."""
SET_UP = "serve.proxy.set_up_proxy"
BODY_BYTES_PER_SECOND = 64 * 2**20
"""How fast a long body is read: the application keeps up with it, and ends what is too long before much waits."""
_UNPACED_BYTES = 8 * 2**20
_PIECE_BYTES = 2**20


def set_up_proxy() -> list[Middleware]:
    """Limits the connections of the process that it is called in; returns what stands before it, the inmost first."""
    from serve.request.metrics import RequestMetrics  # here: the command sets Ray's variables before Ray is imported

    limit_connections()
    log_to_stderr()
    return [Middleware(Shedding, observer=RequestMetrics()), Middleware(RequestIds), Middleware(PacedBodies)]


class PacedBodies:
    """ASGI middleware that reads a request's body, but for its beginning, at `BODY_BYTES_PER_SECOND` at most."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        num_bytes = _PIECE_BYTES - _UNPACED_BYTES

        async def receive_paced() -> Message:
            nonlocal num_bytes
            if num_bytes >= _PIECE_BYTES:
                await asyncio.sleep(num_bytes / BODY_BYTES_PER_SECOND)
                num_bytes = 0
            message = await receive()
            num_bytes += len(message.get("body", b""))
            return message

        await self._app(scope, receive_paced, send)
