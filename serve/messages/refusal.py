"""The one exception behind every error answer: what is raised anywhere in `serve` to refuse a request or a file."""

OVERLOADED = "overloaded"
"""Code of a refusal for want of room alone."""
OVERLOADED_SECONDS = 1
"""When to try again then."""


class Refusal(Exception):
    """A request, or one file of it, that gets an error answer.

    Args:
        status: HTTP status.
        code: Stable name of the reason, for programs.
        message: One sentence for people: the value, the rule, the way out.
        retry_after_seconds: Set where the same request may succeed later.
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
    """Returns the refusal of what is too much."""
    return Refusal(503, OVERLOADED, "the server has all the videos it can take", OVERLOADED_SECONDS)
