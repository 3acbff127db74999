"""The two errors of a model, which the processes of a replica tell one another. It imports nothing."""

NOT_LOADED = "the version that the alias points at cannot be loaded: see the server's log"
"""What clients read if a version fails in a way that is not theirs to know."""


class ModelDied(Exception):
    """The process of the served model was killed or has crashed."""


class ModelUnavailable(Exception):
    """A model cannot be found or loaded; the text is one sentence for clients, without paths or addresses."""
