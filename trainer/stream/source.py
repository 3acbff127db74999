"""The source of the pipeline: this rank's samples, in the order of the schedule.

It yields ordinary WebDataset sample dicts, so WebDataset's own stages can follow it. A sample that cannot be read is
yielded too, with its error; nothing is skipped here.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial

from torch.utils.data import IterableDataset, get_worker_info

from packer.storage.files import read_many
from packer.storage.location import RemotePath
from trainer.schedule.schedule import Schedule
from trainer.stream.index import SampleError, SampleIndex
from trainer.stream.readers import ShardReader
from trainer.stream.sample import Slot, SourceSample

NUM_AHEAD = 64
"""Samples that a loader process reads ahead from an address: those of the next batches, some 10 MB."""


class RowSource(IterableDataset[SourceSample]):
    """This rank's samples, step by step.

    Loader worker w of W takes the steps w, w + W, ... counted from the schedule's start. DataLoader asks its workers in
    turn, so the batches come out in order and do not depend on W.

    Args:
        index: The split's samples.
        schedule: Which sample comes when.
        rank: This process's number.
        world_size: Number of processes that share each global batch.
        with_partners: Whether each row's partner, which is mixed into it, comes just before the row.
    """

    def __init__(
        self, index: SampleIndex, schedule: Schedule, rank: int, world_size: int, with_partners: bool = False
    ) -> None:
        super().__init__()
        self._index = index
        self._schedule = schedule
        self._rank = rank
        self._world_size = world_size
        self._with_partners = with_partners

    def __iter__(self) -> Iterator[SourceSample]:
        """Yields the samples of this process's steps."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        slots = self._slots(range(first, self._schedule.num_steps, stride))
        is_remote = isinstance(self._index.folder, RemotePath)
        with (
            closing(self._index.reader()) as reader,
            closing(read_many(partial(self._read, reader), slots, is_remote, NUM_AHEAD)) as samples,
        ):
            yield from samples

    def _slots(self, steps: Iterable[int]) -> Iterator[Slot]:
        for step in steps:
            share = (step, self._rank, self._world_size)
            rows = self._schedule.rows(*share)
            partners = self._schedule.partners(*share) if self._with_partners else (None,) * len(rows)
            for place, (row, partner) in enumerate(zip(rows, partners, strict=True)):
                if partner:
                    yield Slot(partner, step, place, len(rows), is_partner=True)
                yield Slot(row, step, place, len(rows))

    def _read(self, reader: ShardReader, slot: Slot) -> SourceSample:
        index = slot.row.index
        try:
            sample = self._index.read(reader, index)
        except SampleError as error:
            sample = {"__key__": f"sample-{index}", "__error__": str(error)}
        sample["__slot__"] = slot
        return sample
