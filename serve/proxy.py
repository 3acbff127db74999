"""What Ray's HTTP proxy is set up with; it has no setting for either, only a function that it calls at its start.

Without it a request's headers have no deadline and no limit, and the proxy answers whatever request id a client sent.
HAProxy in its place (RAY_SERVE_ENABLE_HA_PROXY=1) was refused, though it costs a request less: it calls no such
function, has its own ports listen on every address, and obeys any user of the machine, by a socket of mode 666.
"""

from starlette.middleware import Middleware

from serve.connection import limit_connections
from serve.request_id import RequestIds

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Where Ray's proxy looks for the function to call: `SET_UP`."""
SET_UP = "serve.proxy.set_up_proxy"


def set_up_proxy() -> list[Middleware]:
    """Limits the connections of the process that it is called in, and returns what is to stand before the proxy."""
    limit_connections()
    return [Middleware(RequestIds)]
