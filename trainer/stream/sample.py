"""What travels through the stream: one type for each stretch of the pipeline.

    source -> SourceSample -> decode  -> DecodedSample -> augment -> mix -> batch -> Batch
    source -> SourceSample -> inspect -> JpegSample -> gather -> DeviceDecoder -> DecodedSample -> ... -> Batch

The second line is the pipeline of a run whose device decodes. A sample that cannot be read or decoded is never dropped:
from `decode` or `inspect` on it travels as a `BadSample`. These types hold values and do no work.
"""

from dataclasses import dataclass
from typing import TypedDict

import torch

from trainer.schedule.rows import Row


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a sample belongs: a row of this rank's batch at one step."""

    row: Row
    """The sample, its epoch and its weight."""
    step: int
    """Number of the step, counted from the schedule's start."""
    place: int
    """Number of the row among this rank's rows of the step, from 0."""
    num_rows: int
    """This rank's rows of the step."""
    is_partner: bool = False
    """Whether the sample comes only to be mixed into the next one, whose step and place these are."""

    @property
    def ends_step(self) -> bool:
        """Whether this is the last sample of its step; a partner comes before its row."""
        return not self.is_partner and self.place == self.num_rows - 1


class SourceSample(TypedDict, total=False):
    """A sample as the source yields it: WebDataset's dict of a sample's members, and two keys of our own.

    The JPEGs are keys too, `000.jpg`, `001.jpg` and so on, as bytes; a TypedDict cannot name them all. A sample that
    cannot be read has `__error__` instead of members. WebDataset's own stages ignore keys that begin with `__`.
    """

    __key__: str
    """The sample's key, which its members' names begin with."""
    __url__: str
    """Path or address of its shard."""
    cls: bytes
    """Class index as text."""
    json: bytes
    """The sample's metadata."""
    __slot__: Slot
    """Where it belongs."""
    __error__: str
    """One sentence that says why it cannot be read."""


@dataclass(slots=True)
class JpegSample:
    """A sample whose JPEGs a device is to decode."""

    slot: Slot
    name: str
    """Key and shard, for messages."""
    jpegs: list[bytes]
    """The T frames that the model reads."""
    label: int
    """Class index."""


@dataclass(slots=True)
class DecodedSample:
    """A sample as pixels; the stages after decoding change it in place."""

    slot: Slot
    clip: torch.Tensor
    """`(T, H, W, 3) uint8 RGB`: as stored, then as the model sees it. Valid until the next sample is asked for."""
    label: int
    """Class index."""
    other_label: int | None = None
    """Class index of the clip that was mixed in; None: nothing was."""
    share: float = 1.0
    """Share, 0 to 1, of the sample's own class; the rest is the other's."""


@dataclass(slots=True)
class BadSample:
    """A sample that cannot be read or decoded."""

    slot: Slot
    error: str
    """One sentence that says why."""
