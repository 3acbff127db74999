"""What is noted of requests and of the classifier's work, for the log and the metrics."""

from contextvars import ContextVar
from dataclasses import dataclass, field

from serve.messages.refusal import Refusal
from serve.messages.schema import Answer, Scores, Timing

CLIENT_GONE = 499
"""Status of a request whose client left before its answer. Source: nginx."""


@dataclass
class RequestFacts:
    """One request, as far as it has come."""

    method: str
    path: str
    route: str = "other"
    """The path's pattern, which no client can multiply; `other`: no route of ours was reached."""
    status: int = CLIENT_GONE
    num_bytes: int = 0
    """Bytes of the body that were read."""
    seconds: float = 0.0
    """From the request's headers to the end of its answer."""
    versions: set[str] = field(default_factory=set)
    """Of the model that gave the answers."""
    timings: list[Timing] = field(default_factory=list)
    """One per video that was answered by itself."""
    refusals: list[str] = field(default_factory=list)
    """Codes of the refusals, of the request or of single files."""


class RequestObserver:
    """Told of every request that has ended; this one lets them pass."""

    def request(self, facts: RequestFacts) -> None:
        """Takes what was noted of a request."""


class ClassifierObserver:
    """Told of what a classifier does; this one lets it pass."""

    def answered(self, timing: Timing) -> None:
        """Takes where the time of a video went."""

    def batch(self, num_clips: int) -> None:
        """Takes the size of a batch that the model is given."""

    def serves(self, name: str, version: str) -> None:
        """Takes the version that is served from now on; called in any thread."""


FACTS: ContextVar[RequestFacts] = ContextVar("facts")
"""Of the request at hand."""


def note_answer(answer: Answer | Scores) -> None:
    """Adds the answer of a video, or of a batch, to the request at hand."""
    facts = FACTS.get()
    facts.versions.add(answer.model.version)
    if isinstance(answer, Answer):
        facts.timings.append(answer.timing)


def note_refusal(refusal: Refusal) -> None:
    """Adds a refusal to the request at hand."""
    FACTS.get().refusals.append(refusal.code)
