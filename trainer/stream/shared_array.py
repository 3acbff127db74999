"""Arrays that a process and those that it starts hold once, together."""

import mmap
import os
import tempfile
from multiprocessing import context, reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MappedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array to be read, in a file without a name that vanishes with the last process which has it.

    A process that is started with it maps the file too; pickled to anywhere else, or cut, it is copied like any array.
    """

    _descriptor: int | None = None

    def __reduce__(self) -> Any:
        """Returns how another process comes by it."""
        if self._descriptor is None or context.get_spawning_popen() is None:
            return super().__reduce__()
        return _arrive, (reduction.DupFd(self._descriptor), self.dtype)

    def __del__(self) -> None:
        """Lets go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)


def mapped(values: NDArray[Any]) -> NDArray[Any]:
    """Returns the same values, `(N,)`, as an array that processes share."""
    if not len(values):
        return values
    with tempfile.TemporaryFile() as file:
        values.tofile(file)
        return _map(os.dup(file.fileno()), values.dtype)


def _arrive(descriptor: Any, dtype: np.dtype[Any]) -> MappedArray:
    return _map(descriptor.detach(), dtype)


def _map(descriptor: int, dtype: np.dtype[Any]) -> MappedArray:
    values = np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), dtype).view(MappedArray)
    values._descriptor = descriptor
    return values
