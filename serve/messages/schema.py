"""The JSON of the server's answers, as `/openapi.json` describes it, and the protocol of a classifier of videos."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from serve.messages.refusal import Refusal, no_model

Clips = Sequence[bytes | NDArray[np.uint8]]
"""A batch. Each item is a video file, or the frames as the model sees them, `(T, 3, S, S) uint8 RGB`."""


@dataclass(frozen=True)
class Wanted:
    """What the answer for a video is to hold."""

    top_k: int
    """Classes, the most probable ones."""
    frames: bool = False
    """The frames of the clip, too."""
    view: bool = False
    """The frames as they enter the model, too."""
    explain: bool = False
    """How much each frame decided, too."""


class ModelName(BaseModel):
    """The registered model that gave an answer."""

    name: str = Field(examples=["clipstream"])
    version: str = Field(examples=["3"])


class ClassProbability(BaseModel):
    """A class and the probability that the model gives it."""

    model_config = ConfigDict(serialize_by_alias=True)

    class_name: str = Field(alias="class", examples=["wave"])
    probability: float = Field(ge=0, le=1, examples=[0.97])


class ClipInfo(BaseModel):
    """What the server saw of the video."""

    num_frames: int = Field(description="frames that the video decodes to", examples=[120])
    frame_indices: list[int] = Field(description="frames that the model saw, in display order, from 0")
    fps: float = Field(examples=[30.0])
    duration_seconds: float = Field(examples=[4.0])
    width_px: int = Field(examples=[640])
    height_px: int = Field(examples=[360])
    decode_road: str = Field(
        description="the decode path: `full`, or `needed` if only the packets that the clip needs were decoded",
        examples=["needed"],
    )
    damage: list[str] = Field(
        description="what is wrong with the file: bad_packets, concealed_frames, missing_frames, cut_off, "
        "goes_on_in_another_track; empty for an undamaged video",
        examples=[[]],
    )


class Timing(BaseModel):
    """Where the time of one video went, from the moment that the server had all of it."""

    decode_seconds: float = Field(ge=0, description="decoding, and making the view", examples=[0.021])
    queue_seconds: float = Field(ge=0, description="waiting for a free decoder and for the model", examples=[0.004])
    model_seconds: float = Field(ge=0, description="the forward pass of its batch", examples=[0.035])


class Explanation(BaseModel):
    """How much each frame decided: what happens to the answer when the model does not see it."""

    model_config = ConfigDict(serialize_by_alias=True)

    class_name: str = Field(alias="class", description="the most probable class", examples=["wave"])
    against: str = Field(description="the second most probable class", examples=["clap"])
    lead: float = Field(ge=0, description="logit of `class` minus that of `against`", examples=[3.9])
    frame_weights: list[float] = Field(
        description="one per frame of `frame_indices`: by how many logits the lead falls if the frame has the clip's "
        "mean colour instead. Negative: it speaks for `against`. Above `lead`: without it the answer is another one",
        examples=[[2.1, 0.3, -0.2]],
    )
    method: Literal["occlusion of single frames"] = "occlusion of single frames"
    seconds: float = Field(ge=0, description="what the explanation took after the answer, waiting included")


class Answer(BaseModel):
    """The classes of one video, most probable first. The probabilities of all classes sum to 1."""

    model: ModelName
    predictions: list[ClassProbability]
    clip: ClipInfo
    timing: Timing
    frames: list[str] | None = Field(None, description="with `?frames=1`: the frames that the model saw, base64 JPEGs")
    view: list[str] | None = Field(
        None, description="with `?view=1`: the same frames as they enter the model, in its size and crop, base64 PNGs"
    )
    explanation: Explanation | None = Field(None, description="with `?explain=1`: which frames decided")


class ErrorDetail(BaseModel):
    """Why a request or a file was refused."""

    code: str = Field(description="stable name of the reason", examples=["not_a_video"])
    message: str = Field(description="one sentence for people")


class ErrorAnswer(BaseModel):
    """The answer to a refused request, and the result of a refused file."""

    error: ErrorDetail

    @classmethod
    def of(cls, refusal: Refusal) -> "ErrorAnswer":
        """Returns the answer that reports a refusal."""
        return cls(error=ErrorDetail(code=refusal.code, message=refusal.message))


class OipError(BaseModel):
    """The answer of the Open Inference Protocol to a refused request."""

    error: str = Field(description="one sentence for people", examples=["clip 0: the file is not a video"])


class Results(BaseModel):
    """One result per file, in the order of the files."""

    results: list[Answer | ErrorAnswer]


class ModelInfo(ModelName):
    """The model that is served now."""

    alias: str = Field(examples=["champion"])
    class_names: list[str] = Field(description="in the order of the logits")
    num_frames: int = Field(description="frames that the model sees of a video", examples=[16])
    size_px: int = Field(description="side of the square frame that the model sees", examples=[112])
    select_by: str = Field(description="the val metric that chose this model", examples=["macro_f1"])
    val_metric: float = Field(examples=[0.91])
    code_version: str = Field(description="version of the code that trained it")
    explains: bool = Field(description="whether the server takes `?explain=1`")


class ModelStatus(BaseModel):
    """Whether a model is served, and why the newest one is not."""

    model: ModelInfo | None = None
    problem: str | None = None

    def served_model(self) -> ModelInfo:
        """Returns the model that is served.

        Raises:
            Refusal: No model is served (503).
        """
        if self.model is None:
            raise no_model(self.problem)
        return self.model


class Scores(BaseModel):
    """The probabilities of a batch, all from one version of the model."""

    model: ModelName
    class_names: list[str]
    probabilities: list[list[float]] = Field(description="one row per clip, one column per class")


class VideoClassifier(Protocol):
    """What the routes ask: a `serve.replica.classifier.Classifier` in this process, or a Ray deployment of it."""

    async def classify(self, video: bytes, wanted: Wanted) -> Answer:
        """Returns the answer for one video, or raises Refusal."""

    async def infer(self, clips: Clips) -> Scores:
        """Returns the probabilities of a batch, or raises Refusal."""

    async def status(self) -> ModelStatus:
        """Returns whether a model is served, or raises Refusal."""


class Health(BaseModel):
    """State of the server."""

    status: str = Field(examples=["ready"])
    problem: str | None = Field(None, description="why an older model is served instead of the newest one")
