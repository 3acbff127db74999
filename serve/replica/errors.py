"""The two errors of a model, which the processes of a replica tell one another. It imports nothing."""

NOT_LOADED = "the version that the alias points at cannot be loaded: see the server's log"
"""What clients read if a version fails in a way that is not theirs to know."""


class ModelDied(Exception):
    """The process of the served model was killed or has crashed."""


class ModelUnavailable(Exception):
    """A model cannot be found or loaded; the text is one sentence for clients, without paths or addresses.

    Args:
        for_clients: That sentence.
        for_operators: The same for whoever runs the command, with paths and reasons; by default it says no more.
    """

    def __init__(self, for_clients: str, for_operators: str = "") -> None:
        super().__init__(for_clients, for_operators)  # both, so that another process gets both
        self.for_operators = for_operators or for_clients

    def __str__(self) -> str:
        """Returns the sentence for clients."""
        return str(self.args[0])
