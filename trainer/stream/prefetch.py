"""Batches on their way to the device: the next batch's clips are copied while the present one is computed on.

A thread waits for the loader and copies on a CUDA stream of its own, so that neither holds up the steps. A batch that
was fetched ahead is not part of a run's state: it counts only after its step, so a stopped run fetches it again.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from trainer.stream.batch import Batch


def on_device(batches: Iterable[Batch], device: torch.device, ahead: bool | None = None) -> Iterator[Batch]:
    """Yields the batches, on CUDA with their clips there; labels and weights stay where the CPU reads them.

    A batch is copied whole, however small the micro-batches: its pixels take less than a hundredth of the memory that
    a forward pass of them takes.

    Args:
        batches: In pinned memory if they are to be copied; otherwise the copy waits for the computation.
        device: Where the model is.
        ahead: Whether one batch is fetched ahead; None: on CUDA only, since elsewhere there is nothing to copy.
    """
    is_cuda = device.type == "cuda"
    if not (is_cuda if ahead is None else ahead):
        yield from batches
        return
    streams = torch.get_device_module(device)  # the CPU's module has the same names, which do nothing
    side, source = streams.Stream(device) if is_cuda else streams.Stream(), iter(batches)

    def fetch() -> Batch | None:
        with streams.stream(side):  # each thread has a current stream of its own
            batch = next(source, None)
            return batch and replace(batch, clips=batch.clips.to(device, non_blocking=True))

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(fetch)
        while batch := coming.result():
            present = streams.current_stream(device)
            present.wait_stream(side)  # now, so that it waits for this batch's copy and not for the next one's
            coming = thread.submit(fetch)
            if is_cuda:
                # The side stream allocated this memory, and would otherwise reuse it too soon.
                batch.clips.record_stream(present)
            yield batch
