"""Error answers as HTTP responses: our own JSON, or that of the Open Inference Protocol."""

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Send

from serve.messages.refusal import Refusal
from serve.messages.schema import ErrorAnswer, OipError
from serve.request.facts import note_refusal

CODE_HEADER = "X-Error-Code"
"""Header of a refusal that names its reason; the Open Inference Protocol's form has no place for it."""


def is_oip(path: str) -> bool:
    """Returns whether a path is one of the Open Inference Protocol, which has its own form for errors."""
    return f"{path}/".startswith("/v2/")


def refusal_response(refusal: Refusal, path: str) -> JSONResponse:
    """Returns a refusal as an HTTP response, in the form that the protocol of the path has for errors, and notes it."""
    note_refusal(refusal)
    headers = {CODE_HEADER: refusal.code}
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status in {408, 413}:
        headers["Connection"] = "close"  # the rest of the body is not wanted
    content = OipError(error=refusal.message) if is_oip(path) else ErrorAnswer.of(refusal)
    return JSONResponse(content.model_dump(), refusal.status, headers)


def with_nosniff(send: Send) -> Send:
    """Returns `send` with a header that keeps browsers from guessing types."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return send_with_header
