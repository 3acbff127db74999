"""The stages between the source and the batch: generators that WebDataset's `DataPipeline` chains.

`decode` or `inspect` comes first; `augment` and `mix` follow, wherever the clips are decoded. `trainer.stream.sample`
describes what each takes and yields. Which samples are bad does not depend on who decodes: if a device does, the loader
processes still find the bad ones, before the weight sum of a batch is asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from packer.video.jpeg import decode_frames, frame_size
from trainer.schedule.rows import Row
from trainer.stream.index import SampleIndex
from trainer.stream.sample import BadSample, DecodedSample, JpegSample, Slot, SourceSample
from trainer.views.frames import Frames
from trainer.views.mixing import Mixing

Stage = Callable[[Iterable[Any]], Iterator[Any]]
"""Takes what the stage before it yields."""
View = Callable[[torch.Tensor, Row], torch.Tensor]
"""Gives what the model sees, `(T, S, S, 3) uint8`, of a stored clip, `(T, H, W, 3) uint8`, for one row; picklable."""


def decode(samples: Iterable[SourceSample], *, frames: Frames) -> Iterator[DecodedSample | BadSample]:
    """Decodes the frames that the model reads, and no others.

    A clip is valid until the next sample is asked for: frames of one size are decoded into one buffer, because a new
    buffer for each clip costs 0.5 ms of page faults.
    """
    buffer: NDArray[np.uint8] | None = None
    for sample in samples:
        slot = sample["__slot__"]
        if "__error__" in sample:
            yield BadSample(slot, sample["__error__"])
            continue
        try:
            buffer = decode_frames(_jpegs(sample, frames(slot.row)), buffer)
            decoded = DecodedSample(slot, torch.from_numpy(buffer), int(sample["cls"]))
        except ValueError as error:
            yield undecodable(slot, _name(sample), error)
        else:
            yield decoded


def inspect(samples: Iterable[SourceSample], *, frames: Frames, index: SampleIndex) -> Iterator[JpegSample | BadSample]:
    """Passes on the JPEGs that the model reads, for a device; finds the same samples bad as `decode` does.

    JPEGs whose checksum is right are as they were packed, so their headers are enough. An older pack has no checksums:
    its JPEGs are decoded to find out.
    """
    for sample in samples:
        slot = sample["__slot__"]
        if "__error__" in sample:
            yield BadSample(slot, sample["__error__"])
            continue
        try:
            jpegs = _jpegs(sample, frames(slot.row))
            if index.crcs[slot.row.index]:
                frame_size(jpegs)
            else:
                decode_frames(jpegs)
            inspected = JpegSample(slot, _name(sample), jpegs, int(sample["cls"]))
        except ValueError as error:
            yield undecodable(slot, _name(sample), error)
        else:
            yield inspected


def gather(samples: Iterable[JpegSample | BadSample]) -> Iterator[list[JpegSample | BadSample]]:
    """Gathers the samples of each step, which a loader process hands over together."""
    gathered: list[JpegSample | BadSample] = []
    for sample in samples:
        gathered.append(sample)
        if sample.slot.ends_step:
            yield gathered
            gathered = []


def augment(samples: Iterable[DecodedSample | BadSample], *, view: View) -> Iterator[DecodedSample | BadSample]:
    """Replaces each clip by the view of it that the model sees."""
    for sample in samples:
        if isinstance(sample, DecodedSample):
            sample.clip = view(sample.clip, sample.slot.row)
        yield sample


def mix(samples: Iterable[DecodedSample | BadSample], *, mixing: Mixing) -> Iterator[DecodedSample | BadSample]:
    """Mixes each clip with its partner, which comes before it; a partner that is bad leaves the clip as it is."""
    partner: DecodedSample | None = None
    for sample in samples:
        if sample.slot.is_partner:
            if isinstance(sample, DecodedSample):
                sample.clip = sample.clip.clone()  # the next clip is decoded over this one
                partner = sample
            continue
        if partner and isinstance(sample, DecodedSample):
            sample.clip, sample.share = mixing(sample.clip, partner.clip, sample.slot.row)
            sample.other_label = partner.label
        partner = None
        yield sample


def undecodable(slot: Slot, name: str, error: Exception) -> BadSample:
    """Returns a sample whose frames cannot be decoded.

    Args:
        slot: Where the sample belongs.
        name: Its key and shard.
        error: The reason.
    """
    return BadSample(slot, f"{name} cannot be decoded: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text: below it CUDA prints its stack."""
    return str(error).partition("\n")[0]


def _jpegs(sample: SourceSample, numbers: Sequence[int]) -> list[bytes]:
    members = cast(dict[str, bytes], sample)
    try:
        return [members[f"{number:03d}.jpg"] for number in numbers]
    except KeyError as error:
        raise ValueError(f"it has no {error.args[0]}") from error


def _name(sample: SourceSample) -> str:
    return f"{sample['__key__']} ({sample['__url__']})"
