"""Messages of the Open Inference Protocol: a JSON object, with the tensors inside it or as bytes after it.

The one input, `clips`, holds frames as the model sees them, UINT8 [N, T, 3, S, S], or video files, BYTES [N], which
JSON carries as base64. The one output, `probabilities`, is FP32 [N, K]; with the parameter `classification` it holds
the k best classes instead.

Source: the protocol, https://github.com/kserve/open-inference-protocol, and its extensions for binary tensor data and
classification, https://github.com/triton-inference-server/server/tree/main/docs/protocol. OpenVINO Model Server also
accepts a BYTES tensor of files instead of pixels.
"""

import base64
import math
import re
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from serve.messages.refusal import Refusal
from serve.messages.schema import Clips, Scores

JSON_LENGTH = "Inference-Header-Content-Length"
MAX_JSON_VALUES = 2**21
"""Most values in a request's JSON. As Python objects they take up to 30 times the memory of their text."""
MAX_JSON_NAMES = 1000
"""Most names in a request's JSON. Two million different ones took 370 MB and kept the process busy for seconds."""

Parameters = dict[str, Any]
Size = Annotated[int, Field(ge=1, lt=2**31)]


class InputTensor(BaseModel):
    """The videos or clips to classify."""

    name: Literal["clips"]
    datatype: Literal["UINT8", "BYTES"] = Field(description="frames as the model sees them, or video files")
    shape: list[Size] = Field(
        min_length=1, max_length=5, description="[N, T, 3, S, S] for UINT8, RGB; [N] for BYTES", examples=[[1]]
    )
    parameters: Parameters = Field({}, description="`binary_data_size`: bytes of the tensor that follow the JSON")
    data: list[Any] | None = Field(None, description="the values, nested or flat; a file is a string in base64")


class RequestedOutput(BaseModel):
    """The form in which the client wants the output."""

    name: Literal["probabilities"]
    parameters: Parameters = Field(
        {},
        description="`classification`: how many of the best classes to return, each as 'probability:index:class'; "
        "`binary_data`: return the tensor as bytes after the JSON",
    )


class InferRequest(BaseModel):
    """A batch for the model."""

    id: str | None = Field(None, description="comes back in the answer")
    parameters: Parameters = Field({}, description="`binary_data_output`: the answer's tensors as bytes after the JSON")
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] = Field([], max_length=1)

    @property
    def output_parameters(self) -> Parameters:
        """The parameters of the one output; those of the request are its defaults."""
        binary = {"binary_data": self.parameters.get("binary_data_output", False)}
        return binary | (self.outputs[0].parameters if self.outputs else {})


class OutputTensor(BaseModel):
    """The probability of each class, in the order of `/v1/model`; with `classification` the best classes by name."""

    name: Literal["probabilities"] = "probabilities"
    datatype: Literal["FP32", "BYTES"]
    shape: list[int] = Field(examples=[[1, 2]])
    parameters: Parameters | None = None
    data: list[float] | list[str] | None = Field(None, examples=[[0.97, 0.03]])


class InferResponse(BaseModel):
    """The answer for a batch, all from one version of the model."""

    model_name: str = Field(examples=["clipstream"])
    model_version: str = Field(examples=["3"])
    id: str | None = None
    outputs: list[OutputTensor]


def parse_request(body: bytes, json_length: str | None, max_clips: int) -> tuple[InferRequest, Clips]:
    """Returns a request and its clips: `(T, C, H, W) uint8` frames of each clip, or the bytes of each video.

    Args:
        body: The request's body.
        json_length: The header `Inference-Header-Content-Length`: bytes of JSON, if a tensor's bytes follow it.
        max_clips: Most clips of one request.

    Raises:
        Refusal: The body is not a request of the protocol, or its tensor does not match its JSON (400).
    """
    header, binary = _parts(body, json_length)
    if sum(header.count(mark) for mark in b",[{") > MAX_JSON_VALUES:
        raise _bad(f"the JSON holds more than {MAX_JSON_VALUES} values: send the tensor as binary data")
    if header.count(b":") > MAX_JSON_NAMES:
        raise _bad(
            f"the JSON holds more than {MAX_JSON_NAMES} names: the protocol has only a few, beside your own parameters"
        )
    try:
        request = InferRequest.model_validate_json(header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _bad(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")) from error
    tensor = request.inputs[0]
    if tensor.shape[:1] > [max_clips]:
        raise _bad(f"{tensor.shape[0]} clips: one request may hold at most {max_clips}")
    size = tensor.parameters.get("binary_data_size")
    if (size or 0) != len(binary) or (size is None) == (tensor.data is None):
        raise _bad(
            f"the input needs either `data`, or `binary_data_size` and that many bytes after the JSON: {len(binary)} "
            "were sent"
        )
    return request, _frames(tensor, binary) if tensor.datatype == "UINT8" else _files(tensor, binary)


def render_response(request: InferRequest, scores: Scores) -> tuple[bytes, bytes]:
    """Returns the JSON of an answer and the bytes that follow it.

    Raises:
        Refusal: `classification` is not a number of classes (400).
    """
    parameters = request.output_parameters
    values = np.array(scores.probabilities, np.float32)
    output = OutputTensor(datatype="FP32", shape=list(values.shape), data=values.ravel().tolist())
    binary = values.astype("<f4").tobytes()
    if "classification" in parameters:
        output, binary = _classified(values, scores.class_names, parameters["classification"])
    if parameters["binary_data"] is True:
        output.data, output.parameters = None, {"binary_data_size": len(binary)}
    else:
        binary = b""
    response = InferResponse(
        model_name=scores.model.name, model_version=scores.model.version, id=request.id, outputs=[output]
    )
    return response.model_dump_json(exclude_none=True).encode(), binary


def _parts(body: bytes, json_length: str | None) -> tuple[bytes, memoryview]:
    if json_length is None:
        return body, memoryview(b"")
    if not re.fullmatch("[0-9]{1,10}", json_length) or int(json_length) > len(body):
        raise _bad(
            f"{JSON_LENGTH} ({json_length[:20]}) must be a number from 0 to {len(body)}, the bytes that were sent"
        )
    return body[: int(json_length)], memoryview(body)[int(json_length) :]


def _frames(tensor: InputTensor, binary: memoryview) -> list[NDArray[np.uint8]]:
    try:
        pixels = binary if tensor.data is None else bytes(_flat(tensor.data))
    except (TypeError, ValueError) as error:
        raise _bad("the data of UINT8 frames must be whole numbers from 0 to 255") from error
    if len(tensor.shape) != 5 or math.prod(tensor.shape) != len(pixels):
        raise _bad(f"shape ({tensor.shape}) must be [N, T, 3, S, S] and fit the {len(pixels)} values that were sent")
    return list(np.frombuffer(pixels, np.uint8).reshape(tensor.shape))


def _files(tensor: InputTensor, binary: memoryview) -> list[bytes]:
    num_files = tensor.shape[0]
    if len(tensor.shape) != 1 or (tensor.data is not None and len(tensor.data) != num_files):
        raise _bad(f"shape ({tensor.shape}) must be [N], the number of videos that were sent")
    try:
        if tensor.data is None:
            return _split(binary, num_files)
        return [base64.b64decode(text, validate=True) for text in tensor.data]
    except (TypeError, ValueError) as error:
        raise _bad("each video must be a string in base64, or bytes after their length in four bytes") from error


def _flat(values: list[Any]) -> list[Any]:
    while values and isinstance(values[0], list):
        values = list(chain.from_iterable(values))
    return values


def _split(binary: memoryview, num_elements: int) -> list[bytes]:
    """Returns the elements of a BYTES tensor, which holds the length of each in four little-endian bytes before it."""
    elements, end = [], 0
    for _ in range(num_elements):
        start = end + 4
        end = start + int.from_bytes(binary[end:start], "little")
        elements.append(bytes(binary[start:end]))
    if end != len(binary):
        raise ValueError("the elements do not fill the tensor")
    return elements


def _classified(values: NDArray[np.float32], class_names: list[str], num_best: object) -> tuple[OutputTensor, bytes]:
    if type(num_best) is not int or num_best < 1:
        raise _bad("classification must be a number of classes, 1 or more")
    order = np.argsort(-values, axis=1, kind="stable")[:, :num_best]
    words = [f"{values[row, k]!s}:{k}:{class_names[k]}" for row, best in enumerate(order) for k in best]
    encoded = [word.encode() for word in words]
    binary = b"".join(len(word).to_bytes(4, "little") + word for word in encoded)
    return OutputTensor(datatype="BYTES", shape=list(order.shape), data=words), binary


def _bad(message: str) -> Refusal:
    return Refusal(400, "bad_inference_request", message)
