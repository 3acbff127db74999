"""One log line per request, and the answer 500 where something failed.

Neither bodies nor queries nor headers are logged: they may hold keys.
"""

import logging
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.messages.refusal import Refusal
from serve.messages.schema import Timing
from serve.request.error_response import refusal_response
from serve.request.facts import CLIENT_GONE, FACTS, RequestFacts, RequestObserver

logger = logging.getLogger(__name__)

PROBES = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Asked every few seconds by whoever watches the server: logged at DEBUG."""
MAX_PATH_CHARACTERS = 200


class Access:
    """ASGI middleware around the whole application.

    Args:
        app: The application behind.
        observer: Told of each request.
    """

    def __init__(self, app: ASGIApp, observer: RequestObserver) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = RequestFacts(scope["method"], scope["path"])
        FACTS.set(facts)
        started_at = time.monotonic()

        async def counted_receive() -> Message:
            message = await receive()
            facts.num_bytes += len(message.get("body", b""))
            return message

        async def noted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
            await send(message)

        try:
            await self._app(scope, counted_receive, noted_send)
        except Exception as error:
            logger.error("request_failed path=%s", _shown(facts.path), exc_info=error)
            if facts.status != CLIENT_GONE:
                raise  # half an answer is out: only a cut connection tells that it is not whole
            message = "the server failed on this request; its log says why"
            refusal = Refusal(500, "internal_error", message)
            await refusal_response(refusal, facts.path)(scope, receive, noted_send)
        finally:
            facts.seconds = time.monotonic() - started_at
            facts.route = getattr(scope.get("route"), "path", facts.route)
            self._observer.request(facts)
            logger.log(logging.DEBUG if facts.path in PROBES else logging.INFO, "%s", _line(facts))


def _line(facts: RequestFacts) -> str:
    """Returns `request method=POST path=/v1/predict status=200 bytes=...`; of several videos the sums of times."""
    values: dict[str, object] = {"method": facts.method, "path": _shown(facts.path), "status": facts.status}
    if facts.refusals:
        values["code"] = ",".join(facts.refusals)
    values |= {"bytes": facts.num_bytes, "seconds": f"{facts.seconds:.4f}"}
    if facts.versions:
        values["version"] = ",".join(sorted(facts.versions))
    if facts.timings:
        for stage in Timing.model_fields:
            values[stage] = f"{sum(getattr(timing, stage) for timing in facts.timings):.4f}"
    return " ".join(["request", *(f"{name}={value}" for name, value in values.items())])


def _shown(path: str) -> str:
    return quote(path)[:MAX_PATH_CHARACTERS]  # quoted, so that no client can write lines of its own
