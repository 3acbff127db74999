"""Arrays that a process shares with the processes that it starts: the values are in memory once for all of them.

They lie in a file without a name, which is deleted when the last process that has it ends. They are read-only.
"""

import mmap
import os
import tempfile

# Not documented, but what multiprocessing itself hands open files over with: a descriptor goes to a process that is
# being started, and only then.
from multiprocessing import context, reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array that stays shared when it is handed to a process that is being started.

    Pickled for anything else it is copied like any array, and so is a slice of it.
    """

    _descriptor: int | None = None

    def __reduce__(self) -> Any:
        """Returns how it is pickled: as the open file for a process that is being started, otherwise as its values."""
        if self._descriptor is None or context.get_spawning_popen() is None:
            return super().__reduce__()
        return _arrive, (reduction.DupFd(self._descriptor), self.dtype)

    def __del__(self) -> None:
        """Closes the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)


def share(values: NDArray[Any]) -> NDArray[Any]:
    """Returns the same values, `(N,)`, as an array that processes share."""
    if not len(values):
        return values
    with tempfile.TemporaryFile() as file:
        values.tofile(file)
        return _map(os.dup(file.fileno()), values.dtype)


def _arrive(descriptor: Any, dtype: np.dtype[Any]) -> SharedArray:
    return _map(descriptor.detach(), dtype)


def _map(descriptor: int, dtype: np.dtype[Any]) -> SharedArray:
    values = np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), dtype).view(SharedArray)
    values._descriptor = descriptor
    return values
