"""Sets up Ray's HTTP proxy: limits, request ids and refusals, for which Ray has no options, only a function to call.

Without it, a request's headers have no deadline and no limit, and the proxy sends back any request id that a client
sent. It also reads a body as fast as it comes, even if the application is far behind: one body took 230 MB of memory.
HAProxy instead of Ray's proxy (RAY_SERVE_ENABLE_HA_PROXY=1) costs less per request, but was rejected: it calls no such
function, its own ports listen on every address, and any user of the machine can control it by a socket of mode 666.
"""

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.proxy.connection import limit_connections
from serve.proxy.shedding import Shedding
from serve.request.request_id import RequestIds, log_to_stderr

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""The environment variable by which Ray's proxy finds the function to call: `SET_UP`."""
SET_UP = "serve.proxy.set_up_proxy"
BODY_BYTES_PER_SECOND = 64 * 2**20
"""How fast a long body is read. The application keeps up, and refuses a body that is too long before much waits."""
_UNPACED_BYTES = 8 * 2**20
_PIECE_BYTES = 2**20


def set_up_proxy() -> list[Middleware]:
    """Limits the connections of the proxy's process and returns the middleware for it, the innermost first."""
    from serve.request.metrics import RequestMetrics  # here, because the command sets Ray's variables before this

    limit_connections()
    log_to_stderr()
    return [Middleware(Shedding, observer=RequestMetrics()), Middleware(RequestIds), Middleware(PacedBodies)]


class PacedBodies:
    """ASGI middleware that reads a request's body, after its beginning, at `BODY_BYTES_PER_SECOND` at most."""

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
