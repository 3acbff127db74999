"""A batch, and the stage that gathers samples into batches.

A sample that is bad never shortens a batch: it keeps its row at weight 0, and its error travels with the batch.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.data import get_worker_info

from trainer.schedule.rows import Row
from trainer.stream.sample import BadSample, DecodedSample

FILL_VALUE = 128
"""Pixels of a row that has no clip, in a batch that has no good one to fill it with."""


@dataclass
class Batch:
    """One rank's part of a global batch."""

    step: int
    """Number of the step, counted from the schedule's start."""
    clips: torch.Tensor
    """`(B, T, 3, S, S) uint8 RGB`, laid out channels_last."""
    labels: torch.Tensor
    """`(B,) int64` class indices."""
    weights: torch.Tensor
    """`(B,) float32`; 0 for padding and for samples that could not be read."""
    rows: tuple[Row, ...]
    """Epoch and sample of each row."""
    errors: tuple[str, ...]
    """One sentence for each sample that could not be read; padding repeats samples and has none."""
    other_labels: torch.Tensor | None = None
    """`(B,) int64` classes of the clips that were mixed in; None: no clip is mixed."""
    shares: torch.Tensor | None = None
    """`(B,) float32` shares, 0 to 1, of the clips' own classes; the rest is the others'."""

    @property
    def targets(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Class and weight of each row, `(B,) int64` and `(B,) float32`; two such pairs if clips are mixed.

        Cross entropy is linear in its target, so a row of two classes is two rows that share its weight.
        """
        if self.other_labels is None or self.shares is None:
            return [(self.labels, self.weights)]
        own = self.weights * self.shares
        return [(self.labels, own), (self.other_labels, self.weights - own)]

    def pin_memory(self) -> "Batch":
        """Returns the batch in pinned memory, from which a copy to a GPU does not wait."""
        return replace(
            self,
            clips=self.clips.pin_memory(),
            labels=self.labels.pin_memory(),
            weights=self.weights.pin_memory(),
        )


def batch(
    samples: Iterable[DecodedSample | BadSample], *, num_frames: int, size_px: int, device: torch.device | None = None
) -> Iterator[Batch]:
    """Gathers the samples of each step into a batch; a step ends where its slots say so, never by counting samples.

    Args:
        samples: Without partners; those are mixed in already.
        num_frames: Frames of a clip, T.
        size_px: Side of a frame, S.
        device: Where the clips are put; None: in memory that a loader process hands over without a copy.
    """
    filling: _Filling | None = None
    for sample in samples:
        slot = sample.slot
        if filling is None:
            filling = _Filling(slot.step, (slot.num_rows, num_frames, size_px, size_px, 3), device)
        filling.add(sample)
        if slot.ends_step:
            yield filling.batch()
            filling = None


class _Filling:
    """A batch whose rows come in; each clip is copied at once, since the next one is decoded over it."""

    def __init__(self, step: int, shape_BTSSC: tuple[int, ...], device: torch.device | None) -> None:
        self._step = step
        # New memory for every batch: to reuse it would change batches that still wait in the queue.
        self._clips = torch.empty(shape_BTSSC, dtype=torch.uint8, device=device) if device else _empty(shape_BTSSC)
        self._labels = torch.zeros(shape_BTSSC[0], dtype=torch.int64)
        self._weights = torch.zeros(shape_BTSSC[0], dtype=torch.float32)
        self._other_labels = torch.zeros(shape_BTSSC[0], dtype=torch.int64)
        self._shares = torch.ones(shape_BTSSC[0], dtype=torch.float32)
        self._is_mixed = False
        self._rows: list[Row] = []
        self._bad: list[int] = []
        self._errors: list[str] = []

    def add(self, sample: DecodedSample | BadSample) -> None:
        place, row = sample.slot.place, sample.slot.row
        self._rows.append(row)
        if isinstance(sample, BadSample):
            self._bad.append(place)
            if row.weight:
                self._errors.append(sample.error)
            return
        self._clips[place] = sample.clip
        self._labels[place] = self._other_labels[place] = sample.label
        self._weights[place] = row.weight
        if sample.other_label is not None:
            self._other_labels[place], self._shares[place] = sample.other_label, sample.share
            self._is_mixed = True

    def batch(self) -> Batch:
        # Filled rows weigh nothing, but batch norm sees them: a real clip keeps its statistics, zeros would not.
        good = next((place for place in range(len(self._rows)) if place not in self._bad), None)
        for place in self._bad:
            self._clips[place] = FILL_VALUE if good is None else self._clips[good]
        return Batch(
            step=self._step,
            clips=self._clips.permute(0, 1, 4, 2, 3),
            labels=self._labels,
            weights=self._weights,
            rows=tuple(self._rows),
            errors=tuple(self._errors),
            other_labels=self._other_labels if self._is_mixed else None,
            shares=self._shares if self._is_mixed else None,
        )


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    """Returns an uninitialised uint8 tensor; in a loader process, in the shared memory that it is handed over in."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # Private, but torch's own default_collate does the same; without it the queue copies the batch once more.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
