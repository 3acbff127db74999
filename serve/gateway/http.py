"""The HTTP application: our own routes, the limits and the error answers, around anything that classifies videos."""

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from configs.serve import ServeConfig
from serve.gateway.admission import Admission, Gate
from serve.gateway.auth import Guard
from serve.gateway.deadline import Deadline
from serve.gateway.oip import OpenInference
from serve.gateway.openapi import DESCRIPTION, PREDICTED, VIDEOS, DescribedApp, errors
from serve.gateway.page import add_page, find_samples
from serve.gateway.upload import read_videos
from serve.messages.refusal import Refusal, explains_nothing
from serve.messages.schema import Answer, ErrorAnswer, Health, ModelInfo, Results, VideoClassifier, Wanted
from serve.request.access_log import Access
from serve.request.error_response import refusal_response
from serve.request.record import CLIENT_GONE, RequestObserver, note_answer, note_refusal
from serve.request.request_id import RequestIds

MAX_ECHO = 100
"""Most characters of the client's own input that an error message repeats."""


class PredictOptions(BaseModel):
    """The parameters of the query of `/v1/predict`."""

    model_config = ConfigDict(extra="forbid")

    top_k: int | None = Field(None, ge=1, description="classes in the answer; by default the server's own number")
    frames: bool = Field(False, description="also return the frames that the model saw, as they are stored: whole")
    view: bool = Field(False, description="also return these frames as they enter the model: in its size and crop")
    explain: bool = Field(
        False, description="also return which frames decided, if the server was started with --explain"
    )


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
        app.add_api_route(
            "/v1/predict",
            self.predict,
            methods=["POST"],
            response_model_exclude_none=True,
            openapi_extra={"requestBody": VIDEOS},
            responses={**PREDICTED, **errors(400, 408, 413, 415, 422)},
        )
        app.add_api_route("/v1/model", self.model)
        for path, handler in {"/healthz": self.healthz, "/readyz": self.readyz}.items():
            app.add_api_route(path, handler, response_model_exclude_none=True)
            # Load balancers ask by HEAD too. The description leaves it out: HTTP defines it as GET without the body.
            app.add_api_route(
                path, handler, methods=["HEAD"], response_model_exclude_none=True, include_in_schema=False
            )

    async def predict(self, request: Request, options: Annotated[PredictOptions, Query()]) -> Answer | Results:
        """Classifies one video, or each of several.

        The body is the video itself, of any type but text and JSON, or a multipart form in which every field is a file
        and named `file`. A form with one file gets the same answer as a raw body. For several files there is one result
        each, in their order: an answer, or an error object if the file cannot be used.
        """
        if options.explain and not self._config.explain:
            raise explains_nothing()
        deadline = Deadline(self._config.deadline_seconds)
        async with deadline.of_body():
            videos, several = await read_videos(request, self._config.max_body_bytes, self._config.max_files)
        wanted = Wanted(options.top_k or self._config.top_k, options.frames, options.view, options.explain)
        answers = [self._classify(video, wanted, deadline) for video in videos]
        if not several:
            return await answers[0]
        results = await asyncio.gather(*map(_caught, answers))
        return Results(results=results)

    async def model(self) -> ModelInfo:
        """Returns the model that is served now."""
        return (await self._classifier.status()).served_model()

    async def healthz(self) -> Health:
        """Says that the server is alive."""
        return Health(status="alive")

    async def readyz(self) -> Health:
        """Says whether a model is loaded, so that videos can be classified."""
        status = await self._classifier.status()
        status.served_model()
        return Health(status="ready", problem=status.problem)

    async def _classify(self, video: bytes, wanted: Wanted, deadline: Deadline) -> Answer:
        if not video:
            raise Refusal(400, "empty_file", "the file is empty")
        async with deadline.of_answer():
            answer = await self._classifier.classify(video, wanted)
        note_answer(answer)
        return answer


def make_app(
    classifier: VideoClassifier,
    config: ServeConfig,
    keys: tuple[str, ...],
    observer: RequestObserver | None = None,
    admission: Admission | None = None,
) -> FastAPI:
    """Returns the HTTP application around a classifier.

    Args:
        classifier: Where the answers come from.
        config: Limits and defaults.
        keys: API keys. If empty, only this machine's own programs get an answer.
        observer: Is told of every request.
        admission: Decides who may come in; by default as many as one model replica takes.
    """
    gate = Middleware(Gate, admission=admission or Admission(config.max_queued))
    app = DescribedApp(
        title="clipstream",
        summary="Classifies videos.",
        description=DESCRIPTION,
        version=version("clipstream"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would send the client to any Host that the request names
        middleware=[
            Middleware(RequestIds),
            Middleware(Access, observer=observer or RequestObserver()),
            Middleware(Guard, keys=keys),
            gate,
        ],
        exception_handlers={
            Refusal: _on_refusal,
            RequestValidationError: _on_bad_parameter,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
        },
    )
    Routes(classifier, config).add_to(app)
    OpenInference(classifier, config).add_to(app)
    add_page(app, find_samples(config.samples))
    return app


async def _caught(answer: Coroutine[Any, Any, Answer]) -> Answer | ErrorAnswer:
    try:
        return await answer
    except Refusal as refusal:
        note_refusal(refusal)
        return ErrorAnswer.of(refusal)


async def _on_refusal(request: Request, refusal: Refusal) -> Response:
    return refusal_response(refusal, request.scope["path"])


async def _on_bad_parameter(request: Request, error: RequestValidationError) -> Response:
    lines = [
        f"{detail['loc'][-1]}: {detail['msg']} (got {str(detail['input'])[:MAX_ECHO]!r})" for detail in error.errors()
    ]
    return refusal_response(Refusal(422, "bad_parameter", "; ".join(lines)), request.scope["path"])


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    code = HTTPStatus(error.status_code).name.lower()
    way_out = {404: "GET /openapi.json lists the routes", 405: f"use {(error.headers or {}).get('Allow')}"}
    path = request.scope["path"]
    sentence = f"{request.method} {path[:MAX_ECHO]}: {error.detail}"
    if error.status_code in way_out:
        sentence += f": {way_out[error.status_code]}"
    response = refusal_response(Refusal(error.status_code, code, sentence), path)
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_GONE)  # nobody is there to read it
