"""Batches on their way to the device: the next one's clips are copied while the present one is computed on.

A thread waits for the loader and copies on a stream of its own, so neither holds up the steps: these wait for the
device several times each, and could not copy meanwhile themselves. What was fetched ahead is no part of a run's state:
a batch counts once its step was taken, so a run that is stopped fetches it again.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from trainer.stream.batch import Batch


def on_device(batches: Iterable[Batch], device: torch.device, ahead: bool | None = None) -> Iterator[Batch]:
    """Yields the batches, on CUDA with their clips there; labels and weights stay where the CPU reads them.

    A batch is copied whole, however small the micro-batches: its pixels take less than a hundredth of the memory that
    a forward pass of them does.

    Args:
        batches: In pinned memory where they are to be copied, else the copy waits for the computation.
        device: Where the model is.
        ahead: Whether one batch is fetched ahead; by default on CUDA alone, elsewhere nothing is to be copied.
    """
    is_cuda = device.type == "cuda"
    if not (is_cuda if ahead is None else ahead):
        yield from batches
        return
    streams = torch.get_device_module(device)  # of the CPU it has the same names, which do nothing
    side, source = streams.Stream(device) if is_cuda else streams.Stream(), iter(batches)

    def fetch() -> Batch | None:
        with streams.stream(side):  # each thread has a current stream of its own
            batch = next(source, None)
            return batch and replace(batch, clips=batch.clips.to(device, non_blocking=True))

    with ThreadPoolExecutor(1, thread_name_prefix="transfer") as thread:
        coming = thread.submit(fetch)
        while batch := coming.result():
            present = streams.current_stream(device)
            present.wait_stream(side)  # before the next copy is queued there, for which nobody need wait yet
            coming = thread.submit(fetch)
            if is_cuda:
                batch.clips.record_stream(present)  # its memory is the side stream's, which may else reuse it too soon
            yield batch
