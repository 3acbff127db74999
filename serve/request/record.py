"""What the server records of each request and of the classifier's work, for the log and the metrics."""

from contextvars import ContextVar
from dataclasses import dataclass, field

from serve.messages.refusal import Refusal
from serve.messages.schema import Answer, Scores, Timing

CLIENT_GONE = 499
"""Status of a request whose client left before its answer. Source: nginx."""


@dataclass
class RequestRecord:
    """What is known of one request so far."""

    method: str
    path: str
    route: str = "other"
    """Pattern of the path, so that clients cannot make new ones; `other`: the request reached none of our routes."""
    status: int = CLIENT_GONE
    num_bytes: int = 0
    """Bytes of the body that were read."""
    seconds: float = 0.0
    """From the request's headers to the end of its answer."""
    versions: set[str] = field(default_factory=set)
    """Versions of the model that gave the answers."""
    timings: list[Timing] = field(default_factory=list)
    """One per video of `/v1/predict` that got an answer."""
    refusals: list[str] = field(default_factory=list)
    """Codes of the refusals, of the request or of single files."""


class RequestObserver:
    """Is told of every request that has ended. This one ignores them."""

    def request(self, record: RequestRecord) -> None:
        """Takes the record of a request."""


class ClassifierObserver:
    """Is told of what a classifier does. This one ignores it."""

    def answered(self, timing: Timing) -> None:
        """Takes the timing of a video that got an answer."""

    def batch(self, num_clips: int) -> None:
        """Takes the size of a batch that goes to the model."""

    def serves(self, name: str, version: str) -> None:
        """Takes the version that is served from now on; called in any thread."""


REQUEST_RECORD: ContextVar[RequestRecord] = ContextVar("request_record")
"""Record of the current request."""


def note_answer(answer: Answer | Scores) -> None:
    """Adds the answer for a video or a batch to the record of the current request."""
    record = REQUEST_RECORD.get()
    record.versions.add(answer.model.version)
    if isinstance(answer, Answer):
        record.timings.append(answer.timing)


def note_refusal(refusal: Refusal) -> None:
    """Adds a refusal to the record of the current request."""
    REQUEST_RECORD.get().refusals.append(refusal.code)
