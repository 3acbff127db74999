"""Refusals as HTTP responses, in the form that the path's protocol has for errors, and the header of every answer."""

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Send

from serve.messages.refusal import Refusal
from serve.messages.schema import ErrorAnswer, OipError
from serve.request.record import note_refusal

CODE_HEADER = "X-Error-Code"
"""Header with a refusal's code, because the errors of the Open Inference Protocol have no field for it."""


def is_oip(path: str) -> bool:
    """Returns whether a path belongs to the Open Inference Protocol, which has its own form for errors."""
    return f"{path}/".startswith("/v2/")


def refusal_response(refusal: Refusal, path: str) -> JSONResponse:
    """Returns a refusal as the answer to the current request, and adds it to the request's record.

    Args:
        refusal: Why the request is refused.
        path: The request's path, which decides the form of the body.
    """
    note_refusal(refusal)
    content = OipError(error=refusal.message) if is_oip(path) else ErrorAnswer.of(refusal)
    return JSONResponse(content.model_dump(), refusal.status, _headers(refusal))


def _headers(refusal: Refusal) -> dict[str, str]:
    headers = {CODE_HEADER: refusal.code}
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status in {408, 413}:
        headers["Connection"] = "close"  # the server does not read the rest of the body
    return headers


def with_nosniff(send: Send) -> Send:
    """Returns `send` with a header that keeps browsers from guessing an answer's type."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return send_with_header
