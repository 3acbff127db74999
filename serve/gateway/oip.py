"""The Open Inference Protocol, version 2, beside our own routes, with the same model, batches, limits and API keys.

The protocol has no error per clip, so a batch is answered as a whole or not at all, by one version of the model.

Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import asyncio
from importlib.metadata import version as installed_version
from typing import Annotated

from fastapi import FastAPI, Header, Request, Response
from pydantic import BaseModel, Field

from configs.serve import ServeConfig
from serve.gateway.deadline import Deadline
from serve.gateway.openapi import INFERENCE, INFERRED, errors
from serve.gateway.upload import read_body
from serve.messages.refusal import unknown_model, unknown_version
from serve.messages.schema import ModelInfo, VideoClassifier
from serve.messages.tensors import JSON_LENGTH, parse_request, render_response
from serve.request.record import note_answer


class ServerLive(BaseModel):
    """The server is alive."""

    live: bool


class ServerReady(BaseModel):
    """A model is loaded."""

    ready: bool


class ModelReady(ServerReady):
    """This model is loaded."""

    name: str = Field(examples=["clipstream"])


class ServerMetadata(BaseModel):
    """Name, version and extensions of the server."""

    name: str = "clipstream"
    version: str
    extensions: list[str] = ["binary_tensor_data", "classification"]


class TensorMetadata(BaseModel):
    """Name, type and shape of a tensor; -1 stands for the number of clips."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Inputs and outputs of the model. The input may also be BYTES [-1]: video files."""

    name: str = Field(examples=["clipstream"])
    versions: list[str] = Field(examples=[["3"]])
    platform: str = Field(examples=["pytorch_exportedprogram"])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class OpenInference:
    """The handlers, around one classifier.

    Args:
        classifier: Where the answers come from.
        config: Limits and the model's name.
    """

    def __init__(self, classifier: VideoClassifier, config: ServeConfig) -> None:
        self._classifier = classifier
        self._config = config

    def add_to(self, app: FastAPI) -> None:
        """Adds the protocol's routes to `app`."""
        model, version = "/v2/models/{model_name}", "/versions/{model_version}"
        app.add_api_route("/v2", self.metadata)
        app.add_api_route("/v2/health/live", self.live)
        app.add_api_route("/v2/health/ready", self.ready)
        for path in (model, model + version):
            app.add_api_route(path, self.model, responses=errors(404))
            app.add_api_route(f"{path}/ready", self.model_ready, responses=errors(404))
            app.add_api_route(
                f"{path}/infer",
                self.infer,
                methods=["POST"],
                openapi_extra={"requestBody": INFERENCE},
                responses={**INFERRED, **errors(400, 404, 408, 413, 415, 422)},
            )

    async def metadata(self) -> ServerMetadata:
        """Returns the server's name, version and extensions."""
        return ServerMetadata(version=installed_version("clipstream"))

    async def live(self) -> ServerLive:
        """Says that the server is alive."""
        return ServerLive(live=True)

    async def ready(self, request: Request) -> ServerReady:
        """Says whether a model is loaded."""
        await self._model_info(request)
        return ServerReady(ready=True)

    async def model(self, request: Request) -> ModelMetadata:
        """Returns the inputs and outputs of the model."""
        info = await self._model_info(request)
        shape = [-1, info.num_frames, 3, info.size_px, info.size_px]
        return ModelMetadata(
            name=info.name,
            versions=[info.version],
            platform="pytorch_exportedprogram",
            inputs=[TensorMetadata(name="clips", datatype="UINT8", shape=shape)],
            outputs=[TensorMetadata(name="probabilities", datatype="FP32", shape=[-1, len(info.class_names)])],
        )

    async def model_ready(self, request: Request) -> ModelReady:
        """Says whether the model is loaded."""
        info = await self._model_info(request)
        return ModelReady(name=info.name, ready=True)

    async def infer(
        self,
        request: Request,
        json_length: Annotated[
            str | None, Header(alias=JSON_LENGTH, description="bytes of JSON, if a tensor's bytes follow it")
        ] = None,
    ) -> Response:
        """Classifies a batch of videos, or of clips as the model sees them.

        There is one input, `clips`: `BYTES` [N], video files, or `UINT8` [N, T, 3, S, S], RGB frames of the shape that
        `/v2/models/{name}` states. There is one output, `probabilities`: `FP32` [N, K] in the order of `/v1/model`'s
        class names, or the best classes by name if the parameter `classification` is set. If one clip cannot be used,
        the whole batch is refused.
        """
        self._check_name(request)
        deadline = Deadline(self._config.deadline_seconds)
        async with deadline.of_body():
            body = await read_body(request, self._config.max_body_bytes)
        message, clips = await asyncio.to_thread(parse_request, body, json_length, self._config.max_files)
        async with deadline.of_answer():
            scores = await self._classifier.infer(clips)
        note_answer(scores)
        _check_version(request, scores.model.version)
        header, binary = render_response(message, scores)
        if not binary:
            return Response(header, media_type="application/json")
        return Response(header + binary, headers={JSON_LENGTH: str(len(header))}, media_type="application/octet-stream")

    def _check_name(self, request: Request) -> None:
        name = self._config.registered_model
        if request.path_params.get("model_name", name) != name:
            raise unknown_model(name)

    async def _model_info(self, request: Request) -> ModelInfo:
        self._check_name(request)
        info = (await self._classifier.status()).served_model()
        _check_version(request, info.version)
        return info


def _check_version(request: Request, served: str) -> None:
    if request.path_params.get("model_version", served) != served:
        raise unknown_version(served)
