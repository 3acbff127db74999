"""One log line per request, and the answer 500 if the server failed.

Bodies, queries and headers are never logged, because they may hold keys.
"""

import logging
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.messages.refusal import internal_error
from serve.messages.schema import Timing
from serve.request.error_response import refusal_response
from serve.request.record import CLIENT_GONE, REQUEST_RECORD, RequestObserver, RequestRecord

logger = logging.getLogger(__name__)

PROBES = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Monitors ask these every few seconds, so they are logged at DEBUG."""
MAX_PATH_CHARACTERS = 200


class Access:
    """ASGI middleware around the whole application.

    Args:
        app: The application behind.
        observer: Is told of each request.
    """

    def __init__(self, app: ASGIApp, observer: RequestObserver) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(scope["method"], scope["path"])
        REQUEST_RECORD.set(record)
        started_at = time.monotonic()

        async def counted_receive() -> Message:
            message = await receive()
            record.num_bytes += len(message.get("body", b""))
            return message

        async def recording_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, counted_receive, recording_send)
        except Exception as error:
            logger.error("request_failed path=%s", _shown(record.path), exc_info=error)
            if record.status != CLIENT_GONE:
                raise  # part of the answer is out: only a cut connection tells the client that it is not complete
            await refusal_response(internal_error(), record.path)(scope, receive, recording_send)
        finally:
            record.seconds = time.monotonic() - started_at
            record.route = getattr(scope.get("route"), "path", record.route)
            self._observer.request(record)
            logger.log(logging.DEBUG if record.path in PROBES else logging.INFO, "%s", _line(record))


def _line(record: RequestRecord) -> str:
    """Returns `request method=POST path=/v1/predict status=200 bytes=...`; the times of several videos are summed."""
    values: dict[str, object] = {"method": record.method, "path": _shown(record.path), "status": record.status}
    if record.refusals:
        values["code"] = ",".join(record.refusals)
    values |= {"bytes": record.num_bytes, "seconds": f"{record.seconds:.4f}"}
    if record.versions:
        values["version"] = ",".join(sorted(record.versions))
    if record.timings:
        for stage in Timing.model_fields:
            values[stage] = f"{sum(getattr(timing, stage) for timing in record.timings):.4f}"
    return " ".join(["request", *(f"{name}={value}" for name, value in values.items())])


def _shown(path: str) -> str:
    return quote(path)[:MAX_PATH_CHARACTERS]  # quoted, so that a client cannot write log lines of its own
