"""The HTTP side: routes, limits and error answers around anything that classifies videos."""

import asyncio
import logging
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from configs.serve import ServeConfig
from serve.guard import Guard, refusal_response
from serve.page import add_page, find_samples
from serve.refusal import Refusal
from serve.schema import Answer, ErrorAnswer, Health, ModelFacts, ModelStatus, Results
from serve.upload import FILE_FIELD, read_videos

logger = logging.getLogger(__name__)

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FILE_FIELD],
                    "properties": {FILE_FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}


class VideoClassifier(Protocol):
    """What the routes need: `serve.classifier.Classifier` in this process, or a Ray deployment of it."""

    async def classify(self, video: bytes, top_k: int, with_frames: bool) -> Answer:
        """Returns the answer for one video, or raises Refusal."""

    async def status(self) -> ModelStatus:
        """Returns whether a model is served, or raises Refusal."""


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase} for status in statuses}


class Routes:
    """The handlers, around one classifier.

    Args:
        classifier: Where the answers come from.
        config: Limits and defaults.
    """

    def __init__(self, classifier: VideoClassifier, config: ServeConfig) -> None:
        self._classifier = classifier
        self._config = config

    def add_to(self, app: FastAPI) -> None:
        """Adds every route to `app`."""
        denied = _errors(401, 403, 500)
        app.add_api_route(
            "/v1/predict",
            self.predict,
            methods=["POST"],
            response_model_exclude_none=True,
            openapi_extra=BODY,
            responses={**denied, **_errors(400, 408, 413, 415, 422, 503)},
        )
        app.add_api_route("/v1/model", self.model, responses={**denied, **_errors(503)})
        app.add_api_route("/healthz", self.healthz, response_model_exclude_none=True)
        app.add_api_route("/readyz", self.readyz, response_model_exclude_none=True, responses=_errors(503))

    async def predict(
        self,
        request: Request,
        top_k: Annotated[int | None, Query(ge=1, description="classes in the answer")] = None,
        frames: Annotated[bool, Query(description="return the frames that the model saw")] = False,
    ) -> Answer | Results:
        """Classifies one video, or each of several.

        The video is the body itself, or the field `file` of a form. Several files get one result each, in their
        order: an answer, or an error object for a file that cannot be used.
        """
        deadline = asyncio.get_running_loop().time() + self._config.deadline_seconds
        videos, several = await self._read(request, deadline)
        answers = [self._classify(video, top_k or self._config.top_k, frames, deadline) for video in videos]
        if not several:
            return await answers[0]
        results = await asyncio.gather(*map(_caught, answers))
        return Results(results=results)

    async def model(self) -> ModelFacts:
        """Returns what is served now."""
        facts, _ = await self._ready()
        return facts

    async def healthz(self) -> Health:
        """Says that the server is alive."""
        return Health(status="alive")

    async def readyz(self) -> Health:
        """Says whether a model is loaded, so that videos can be classified."""
        _, problem = await self._ready()
        return Health(status="ready", problem=problem)

    async def _ready(self) -> tuple[ModelFacts, str | None]:
        status = await self._classifier.status()
        if status.model is None:
            raise Refusal(503, "no_model", str(status.problem), retry_after_seconds=10)
        return status.model, status.problem

    async def _read(self, request: Request, deadline: float) -> tuple[list[bytes], bool]:
        try:
            async with asyncio.timeout_at(deadline):
                return await read_videos(request, self._config.max_body_bytes, self._config.max_files)
        except TimeoutError as error:
            message = f"the body did not arrive within {self._config.deadline_seconds:g} seconds"
            raise Refusal(408, "request_timeout", message) from error

    async def _classify(self, video: bytes, top_k: int, frames: bool, deadline: float) -> Answer:
        if not video:
            raise Refusal(400, "empty_file", "the file is empty")
        try:
            async with asyncio.timeout_at(deadline):
                return await self._classifier.classify(video, top_k, frames)
        except TimeoutError as error:
            message = f"no answer within {self._config.deadline_seconds:g} seconds: the server is busy"
            raise Refusal(503, "deadline_exceeded", message, retry_after_seconds=5) from error


def make_app(classifier: VideoClassifier, config: ServeConfig, keys: tuple[str, ...]) -> FastAPI:
    """Returns the HTTP application around a classifier.

    Args:
        classifier: Where the answers come from.
        config: Limits and defaults.
        keys: API keys; none: only requests of this machine's own programs are answered.
    """
    app = FastAPI(
        title="clipstream",
        summary="Classifies videos.",
        redoc_url=None,
        middleware=[Middleware(Guard, keys=keys)],
        exception_handlers={
            Refusal: _on_refusal,
            RequestValidationError: _on_bad_parameter,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_failure,
        },
    )
    Routes(classifier, config).add_to(app)
    add_page(app, find_samples(config.samples))
    return app


async def _caught(answer: Coroutine[Any, Any, Answer]) -> Answer | ErrorAnswer:
    try:
        return await answer
    except Refusal as refusal:
        return ErrorAnswer.of(refusal)


async def _on_refusal(request: Request, refusal: Refusal) -> Response:
    return refusal_response(refusal)


async def _on_bad_parameter(request: Request, error: RequestValidationError) -> Response:
    lines = [f"{detail['loc'][-1]}: {detail['msg']} (got {detail['input']!r})" for detail in error.errors()]
    return refusal_response(Refusal(422, "bad_parameter", "; ".join(lines)))


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    code = HTTPStatus(error.status_code).name.lower()
    response = refusal_response(
        Refusal(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    )
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _on_failure(request: Request, error: Exception) -> Response:
    logger.error("request_failed path=%s", request.url.path, exc_info=error)
    return refusal_response(Refusal(500, "internal_error", "the server failed on this request; its log says why"))
