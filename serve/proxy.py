"""What Ray's HTTP proxy is set up with; it has no setting for either, only a function that it calls at its start.

Without it a request's headers have no deadline and no limit, and the proxy answers whatever request id a client sent.
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
