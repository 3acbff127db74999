"""The parts of `/openapi.json` that the handlers' types do not give: bodies, refusals, headers, the key, examples."""

import re
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from serve.gateway.auth import OPEN_PATHS
from serve.gateway.upload import FILE_FIELD
from serve.messages.refusal import Refusal, foreign_host, internal_error, overloaded, unauthorized, unknown_model
from serve.messages.schema import ErrorAnswer, OipError
from serve.messages.tensors import JSON_LENGTH, InferRequest, InferResponse
from serve.request.error_response import CODE_HEADER, is_oip

DESCRIPTION = """\
Send a video, get its classes:

    curl --data-binary @clip.mp4 'http://127.0.0.1:8000/v1/predict?top_k=3'

- If the server has API keys, send one in `Authorization: Bearer KEY`. Otherwise it answers only programs on its own
  machine.
- Every refusal is `{"error": {"code", "message"}}`: a stable name for programs and a sentence for people. Under `/v2`
  it is `{"error": "sentence"}`, the form of the Open Inference Protocol. The header `X-Error-Code` always holds the
  name.
- After a 503 the same request may succeed later: `Retry-After` says when to try again.
- The server recognises a video by its bytes, never by its name or type. It never opens a path or an address.
"""

ANSWER = {
    "model": {"name": "clipstream", "version": "3"},
    "predictions": [{"class": "wave", "probability": 0.97}, {"class": "clap", "probability": 0.02}],
    "clip": {
        "num_frames": 120,
        "frame_indices": [0, 8, 16, 24, 32, 40, 48, 56, 63, 71, 79, 87, 95, 103, 111, 119],
        "fps": 30.0,
        "duration_seconds": 4.0,
        "width_px": 640,
        "height_px": 360,
        "decode_road": "needed",
        "damage": [],
    },
    "timing": {"decode_seconds": 0.031, "queue_seconds": 0.002, "model_seconds": 0.094},
}
EXPLANATION = {
    "class": "wave",
    "against": "clap",
    "lead": 3.88,
    "frame_weights": [0.1, 0.1, 0.2, 0.2, 0.4, 0.9, 1.6, 1.9, 0.8, 0.3, 0.1, 0.1, -0.2, -0.1, 0.1, 0.1],
    "method": "occlusion of single frames",
    "seconds": 1.504,
}
REFUSED = {"error": {"code": "empty_file", "message": "the file is empty"}}
INFERENCE_ANSWER = {
    "model_name": "clipstream",
    "model_version": "3",
    "id": "42",
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.97, 0.03]}],
}

NO_VIDEO = "no known video container, or its header is missing or damaged: Invalid data found when processing input"
REFUSALS = {
    400: (
        "The body is empty, or it is not a form or message that the server can read.",
        Refusal(400, "empty_body", f"the body is empty: send a video's bytes, or a form with the field `{FILE_FIELD}`"),
    ),
    401: ("The server has API keys, and the request has none of them.", unauthorized()),
    403: (
        "The server has no API key, and the request does not come from a program on the server's own machine.",
        foreign_host(),
    ),
    404: ("The server serves another model or version.", unknown_model("clipstream")),
    408: (
        "The body did not arrive in time.",
        Refusal(408, "request_timeout", "the body did not arrive within 60 seconds"),
    ),
    413: (
        "The body is too large.",
        Refusal(413, "too_large", "the body is larger than 67108864 bytes: send a smaller video"),
    ),
    415: (
        "A body of this type or encoding cannot be a video.",
        Refusal(415, "unsupported_media_type", "a video cannot be text/plain: send the file's bytes"),
    ),
    422: ("The video, or a parameter of the query, cannot be used.", Refusal(422, "not_a_video", NO_VIDEO)),
    500: ("The server failed.", internal_error()),
    503: ("No model is loaded, too many videos are waiting, or there was no answer in time.", overloaded()),
}
"""For each status: what it means, and one such refusal."""
OIP_SENTENCES = {
    400: "inputs: Field required",
    422: f"clip 0: {NO_VIDEO}",
}
"""Sentences of the refusals for which the Open Inference Protocol has others."""

HEADERS = {
    "X-Request-ID": ("string", "the request's own id, or a new one; the server's log shows it too"),
    CODE_HEADER: ("string", "the refusal's name"),
    "Retry-After": ("integer", "seconds after which the same request may succeed"),
    "WWW-Authenticate": ("string", "how to send a key"),
    JSON_LENGTH: ("integer", "bytes of JSON; the tensors' bytes follow them"),
}

BINARY = {"type": "string", "format": "binary"}
VIDEOS = {
    "required": True,
    "description": "The bytes of a video, or a form with one or several videos.",
    "content": {
        "application/octet-stream": {"schema": BINARY},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FILE_FIELD],
                "properties": {FILE_FIELD: {"type": "array", "minItems": 1, "items": BINARY}},
                "additionalProperties": False,
            }
        },
    },
}
PREDICTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The classes of the video. If there are several files: one result each, in their order.",
        "content": {
            "application/json": {
                "examples": {
                    "one video": {"value": ANSWER},
                    "with explain=1": {"value": ANSWER | {"explanation": EXPLANATION}},
                    "several": {"value": {"results": [ANSWER, REFUSED]}},
                }
            }
        },
    }
}
INFERENCE = {
    "required": True,
    "description": f"JSON, or JSON followed by the tensor's bytes. `{JSON_LENGTH}` then says how long the JSON is.",
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/InferRequest"},
            "example": {
                "id": "42",
                "inputs": [{"name": "clips", "datatype": "BYTES", "shape": [1], "data": ["AAAAIGZ0eXBpc29t"]}],
                "outputs": [{"name": "probabilities"}],
            },
        },
        "application/octet-stream": {"schema": BINARY},
    },
}
INFERRED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": InferResponse,
        "description": "The answer for the batch. If the request asks for it, the tensors are bytes after the JSON.",
        "headers": {JSON_LENGTH: {"$ref": f"#/components/headers/{JSON_LENGTH}"}},
        "content": {"application/json": {"example": INFERENCE_ANSWER}, "application/octet-stream": {"schema": BINARY}},
    }
}


class DescribedApp(FastAPI):
    """An application whose `/openapi.json` is complete."""

    def openapi(self) -> dict[str, Any]:
        """Returns the description, which is made at the first call."""
        if self.openapi_schema is None:
            _complete(super().openapi())
        return super().openapi()


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the refusals that only some operations give, for FastAPI's `responses`."""
    return {status: {"description": REFUSALS[status][0]} for status in statuses}


def _complete(description: dict[str, Any]) -> None:
    _, definitions = models_json_schema(
        [(ErrorAnswer, "validation"), (OipError, "validation"), (InferRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    components = description["components"]
    components["schemas"].update(definitions["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "an API key"}}
    components["headers"] = {
        name: {"description": text, "required": name != JSON_LENGTH, "schema": {"type": kind}}
        for name, (kind, text) in HEADERS.items()
    }
    for path, operations in description["paths"].items():
        for operation in operations.values():
            _complete_operation(path, operation)


def _complete_operation(path: str, operation: dict[str, Any]) -> None:
    if names := re.findall(r"{(\w+)}", path):
        in_path = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
        operation["parameters"] = in_path + operation.get("parameters", [])
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]  # FastAPI adds it to every route with parameters, but these accept any text
    common = errors(403, 500)
    if path not in OPEN_PATHS:
        operation["security"] = [{"key": []}, {}]
        common |= errors(401)
    if path != "/healthz":
        common |= errors(503)
    responses |= {str(status): response for status, response in common.items()}
    operation["responses"] = dict(sorted(responses.items()))
    for status, response in responses.items():
        names = {"401": ["WWW-Authenticate"], "503": ["Retry-After"]}.get(status, [])
        names += [CODE_HEADER] if int(status) >= 400 else []
        headers = {name: {"$ref": f"#/components/headers/{name}"} for name in ["X-Request-ID", *names]}
        response["headers"] = headers | response.get("headers", {})
        if int(status) >= 400:
            response["content"] = {"application/json": _error_content(path, int(status))}


def _error_content(path: str, status: int) -> dict[str, Any]:
    _, refusal = REFUSALS[status]
    if is_oip(path):
        return {
            "schema": {"$ref": "#/components/schemas/OipError"},
            "example": {"error": OIP_SENTENCES.get(status, refusal.message)},
        }
    example = ErrorAnswer.of(refusal).model_dump()
    return {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}, "example": example}
