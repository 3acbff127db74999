"""Arrays that processes share: one file without a name and no copy; wherever that is impossible, plain arrays."""

import pickle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from trainer.stream.index import SampleIndex
from trainer.stream.loader import PRELOADED
from trainer.stream.shared_array import share


def tell(sender: Connection, index: SampleIndex) -> None:
    """Sends what a process that was started with an index sees of its arrays: values and file."""
    arrays = (index.shard_of, index.offsets, index.num_bytes, index.labels)
    sender.send([(array.tolist(), file_of(array)) for array in arrays])


def file_of(array: np.ndarray) -> str:
    """Returns device and inode of the file that this process maps where the array's values lie."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, device, inode, *path = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        if start <= array.ctypes.data < end:
            assert path[-1] == "(deleted)"  # it has no name
            return f"{device} {inode}"
    raise AssertionError("the array lies in no mapping")


def test_a_process_that_is_started_with_an_index_maps_its_files(packed: Path) -> None:
    index = SampleIndex.open(packed, "train")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(sender, index))
    process.start()
    told = receiver.recv()
    process.join()
    assert told == [
        (array.tolist(), file_of(array)) for array in (index.shard_of, index.offsets, index.num_bytes, index.labels)
    ]


@pytest.mark.parametrize("num_values", [0, 1, 5, 3000])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_values_are_the_same_however_they_are_handed_over(num_values: int, dtype: type) -> None:
    values = np.arange(num_values).astype(dtype)
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    array = share(values)
    for copy in (array, pickle.loads(pickle.dumps(array, 5)), array[:], array[np.arange(num_values)], array * 1):
        assert copy.dtype == dtype
        assert copy.tolist() == values.tolist()
        assert pickle.loads(pickle.dumps(copy[1:3])).tolist() == values[1:3].tolist()
    if num_values:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    del array, copy
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open
