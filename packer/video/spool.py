"""Objects on disk that are needed again soon: frames and clips of long videos, which memory would not hold."""

import pickle
import tempfile
import weakref
from types import TracebackType
from typing import Any

_MEMORY_BYTES = 8 * 2**20


class Spool:
    """Keeps any number of objects in a temporary file without a name, so none outlives its process.

    Up to 8 MiB stay in memory.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115 - closed by `close`
        self._close = weakref.finalize(self, self._file.close)  # clips that nobody asks for any more are not read

    def add(self, item: object) -> int:
        """Takes an object and returns its place.

        Raises:
            OSError: The disk is full.
        """
        place = self._file.seek(0, 2)
        pickle.dump(item, self._file, pickle.HIGHEST_PROTOCOL)
        return place

    def read(self, place: int) -> Any:
        """Returns the object at a place."""
        self._file.seek(place)
        return pickle.load(self._file)  # this process wrote it

    def close(self) -> None:
        """Deletes the objects."""
        self._close()

    def __enter__(self) -> "Spool":
        """Returns the spool, which is closed when the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the spool."""
        self.close()
