"""Who may ask: clients with an API key, or, if the server has no key, only this machine's own programs.

Any web page that the user opens can reach a server without a key, even on a loopback address, because the browser sends
the request. Such a request has a foreign Origin, or (DNS rebinding) a Host that is not a loopback name.
"""

import hashlib
import hmac
import os
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from configs.home import resolve
from configs.section import UsageError
from configs.serve import API_KEY_VARIABLE, ServeConfig
from serve.gateway.page import PAGE_FILES
from serve.messages.refusal import Refusal, foreign_host, unauthorized
from serve.request.error_response import refusal_response, with_nosniff

OPEN_PATHS = frozenset({*PAGE_FILES, "/healthz", "/readyz"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_LOOPBACK_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?", re.IGNORECASE)


def read_keys(config: ServeConfig) -> tuple[str, ...]:
    """Returns the API keys from the environment and from `api_key_file`.

    Raises:
        UsageError: The file cannot be read, or there is no key and `allow_unauthenticated` is off.
    """
    lines = os.environ.get(API_KEY_VARIABLE, "").split(",")
    if config.api_key_file:
        path = resolve(config.api_key_file)
        try:
            lines += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"api_key_file ({path}) cannot be read: {reason}") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys and not config.allow_unauthenticated:
        raise UsageError(
            f"no API key: set {API_KEY_VARIABLE} where the server's processes start, or name an api_key_file; "
            "allow_unauthenticated serves without a key, but only to this machine's own programs"
        )
    return keys


class Guard:
    """ASGI middleware that lets a request through, or answers it with 401 or 403.

    Args:
        app: The application behind.
        keys: A request needs any one of them. If empty, only this machine's own programs get an answer.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        app = self._app if refusal is None else refusal_response(refusal, scope["path"])
        await app(scope, receive, with_nosniff(send))

    def _refusal(self, path: str, headers: Headers) -> Refusal | None:
        if self._digests:
            if path in OPEN_PATHS or self._knows(headers.get("authorization", "")):
                return None
            return unauthorized()
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not _LOOPBACK_HOST.fullmatch(hosts[0]):
            return foreign_host()
        if not {origin.lower() for origin in origins} <= {
            f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")
        }:
            return Refusal(403, "foreign_origin", "the server has no API key, so other web pages may not ask")
        return None

    def _knows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them, for constant time
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
