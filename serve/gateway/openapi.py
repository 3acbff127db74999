"""What `/openapi.json` tells beyond the types of the handlers: bodies, refusals, headers, the key, examples."""

import re
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from serve.gateway.auth import OPEN_PATHS
from serve.gateway.upload import FILE_FIELD
from serve.messages.schema import ErrorAnswer, OipError
from serve.messages.tensors import JSON_LENGTH, InferRequest, InferResponse
from serve.request.error_response import CODE_HEADER, is_oip

DESCRIPTION = """\
Send a video, get its classes:

    curl --data-binary @clip.mp4 'http://127.0.0.1:8000/v1/predict?top_k=3'

- A server with API keys wants one in `Authorization: Bearer KEY`; one without answers this machine's programs alone.
- Every refusal is `{"error": {"code", "message"}}`: a stable name for programs and a sentence for people. Under `/v2`
  it is `{"error": "sentence"}`, as the Open Inference Protocol has it; `X-Error-Code` holds the name there too.
- After a 503 the same request may succeed later: `Retry-After` says when to try.
- What a video is, is decided by its bytes, never by its name or type. No path and no address is ever opened.
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
    },
    "timing": {"decode_seconds": 0.031, "queue_seconds": 0.002, "model_seconds": 0.094},
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
        "The body is empty, or not a form or message that can be read.",
        "empty_body",
        f"the body is empty: send a video's bytes, or a form with the field `{FILE_FIELD}`",
    ),
    401: (
        "The server has API keys, and the request none of them.",
        "unauthorized",
        "this needs the header `Authorization: Bearer KEY` with a valid key",
    ),
    403: (
        "The server has no API key, and the request comes from elsewhere than this machine's own programs.",
        "foreign_host",
        "without an API key only requests to a loopback name are answered",
    ),
    404: ("Another model or version is served.", "unknown_model", "the model clipstream alone is served here"),
    408: ("The body did not arrive in time.", "request_timeout", "the body did not arrive within 60 seconds"),
    413: (
        "The body is larger than the server takes.",
        "too_large",
        "the body is larger than 67108864 bytes: send a smaller video",
    ),
    415: (
        "The body's type or encoding cannot be that of a video.",
        "unsupported_media_type",
        "a video cannot be text/plain: send the file's bytes",
    ),
    422: (
        "The video, or a parameter of the query, cannot be used.",
        "not_a_video",
        NO_VIDEO,
    ),
    500: ("The server failed.", "internal_error", "the server failed on this request; its log says why"),
    503: (
        "No model is loaded, too much waits already, or there is no answer in time.",
        "overloaded",
        "the server has all the videos it can take",
    ),
}
"""Status: what it means, and the code and sentence of one such refusal."""
OIP_SENTENCES = {
    400: "inputs: Field required",
    422: f"clip 0: {NO_VIDEO}",
}
"""Where the Open Inference Protocol's differ."""

HEADERS = {
    "X-Request-ID": ("string", "the request's own, else a new one; the server's log tells it too"),
    CODE_HEADER: ("string", "the refusal's name"),
    "Retry-After": ("integer", "seconds after which the same request may succeed"),
    "WWW-Authenticate": ("string", "how to show a key"),
    JSON_LENGTH: ("integer", "bytes of JSON; the tensors' bytes follow them"),
}

BINARY = {"type": "string", "format": "binary"}
VIDEOS = {
    "required": True,
    "description": "A video's own bytes, or a form with one or several.",
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
        "description": "The classes of the video; of several files one result each, in their order.",
        "content": {
            "application/json": {
                "examples": {"one video": {"value": ANSWER}, "several": {"value": {"results": [ANSWER, REFUSED]}}}
            }
        },
    }
}
INFERENCE = {
    "required": True,
    "description": f"JSON; or JSON and, after it, the tensor's bytes, and then `{JSON_LENGTH}` tells where they begin.",
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
        "description": "What the model says of the batch; tensors as bytes after the JSON where that was asked for.",
        "headers": {JSON_LENGTH: {"$ref": f"#/components/headers/{JSON_LENGTH}"}},
        "content": {"application/json": {"example": INFERENCE_ANSWER}, "application/octet-stream": {"schema": BINARY}},
    }
}


class DescribedApp(FastAPI):
    """An application whose `/openapi.json` is complete."""

    def openapi(self) -> dict[str, Any]:
        """Returns the description; it is made once."""
        if self.openapi_schema is None:
            _complete(super().openapi())
        return super().openapi()


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the refusals of an operation, beyond those that every one has, for FastAPI's `responses`."""
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
        del responses["422"]  # FastAPI's, of parameters that no text is wrong for
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
    _, code, message = REFUSALS[status]
    if is_oip(path):
        return {
            "schema": {"$ref": "#/components/schemas/OipError"},
            "example": {"error": OIP_SENTENCES.get(status, message)},
        }
    example = {"error": {"code": code, "message": message}}
    return {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}, "example": example}
