"""The one exception behind every error answer, and the refusals that several places give."""

OVERLOADED = "overloaded"
"""Code of the refusal that a full server gives."""
OVERLOADED_SECONDS = 1
NO_MODEL_SECONDS = 10
UNAVAILABLE_SECONDS = 5


class Refusal(Exception):
    """A request, or one file of it, that gets an error answer.

    Args:
        status: HTTP status.
        code: Stable name of the reason, for programs.
        message: One sentence for people: the value, the rule, the way out.
        retry_after_seconds: When the same request may succeed; None if it never will.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_seconds: int | None = None) -> None:
        super().__init__(status, code, message, retry_after_seconds)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        """Returns the sentence for people."""
        return self.message


def overloaded() -> Refusal:
    """Returns the refusal of a full server."""
    return Refusal(503, OVERLOADED, "the server has all the videos it can take", OVERLOADED_SECONDS)


def no_model(problem: str | None) -> Refusal:
    """Returns the refusal of a server that has no model to answer with.

    Args:
        problem: Why it has none, as a sentence for clients.
    """
    return Refusal(503, "no_model", problem or "the model is being loaded", NO_MODEL_SECONDS)


def unavailable() -> Refusal:
    """Returns the refusal of a gateway that reaches no model replica."""
    return Refusal(503, "unavailable", "no model replica answers: it is starting or restarting", UNAVAILABLE_SECONDS)


def unknown_model(served: str) -> Refusal:
    """Returns the refusal of a request for another model than the served one."""
    return Refusal(404, "unknown_model", f"only the model {served} is served here")


def unknown_version(served: str) -> Refusal:
    """Returns the refusal of a request for another version than the served one."""
    return Refusal(404, "unknown_version", f"only version {served} is served now: the alias points at it")


def explains_nothing() -> Refusal:
    """Returns the refusal of a server that is not to explain its answers."""
    message = "explain: this server does not explain its answers: its operator can allow it by the option --explain"
    return Refusal(422, "not_explained", message)


def unknown_sample() -> Refusal:
    """Returns the refusal of a request for a sample video that the server does not offer."""
    return Refusal(404, "no_sample", "there is no such sample: /samples lists them, numbered from 0")


def internal_error() -> Refusal:
    """Returns the refusal of a request on which the server itself failed."""
    return Refusal(500, "internal_error", "the server failed on this request; its log says why")


def unauthorized() -> Refusal:
    """Returns the refusal of a request without a valid API key."""
    return Refusal(401, "unauthorized", "this needs the header `Authorization: Bearer KEY` with a valid key")


def foreign_host() -> Refusal:
    """Returns the refusal of a request to a name that is not this machine's, by a server without an API key."""
    return Refusal(403, "foreign_host", "the server has no API key, so it answers only requests to a loopback name")
