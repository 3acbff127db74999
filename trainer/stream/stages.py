"""From a sample's JPEGs to its pixels: in the loader processes, or on the device that the model is on.

On the device (nvJPEG on CUDA, libjpeg-turbo on the CPU) the loader processes only read, and the training process
decodes and goes through the same further stages there. Which samples are bad does not depend on it: the loader
processes find that out, before a batch's mass is known. Evaluation is left to them: the server decodes as they do.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packer.video.jpeg import decode_frames, frame_size
from trainer.schedule.rows import Row
from trainer.stream.index import Sample, SampleIndex
from trainer.views.frames import Frames
from trainer.views.mixing import Mixing

View = Callable[[torch.Tensor, Row], torch.Tensor]


Stage = Callable[[Iterable[Sample]], Iterator[Any]]


def decode(samples: Iterable[Sample], *, num_frames: int) -> Iterator[Sample]:
    """Turns each sample's JPEGs into `clip`, `(T, H, W, 3) uint8 RGB`, and its `cls` into `label`.

    A clip is good until the next sample is asked for: the frames of one size are decoded into one buffer, since a new
    one for each clip costs 0.5 ms of page faults.
    """
    buffer: NDArray[np.uint8] | None = None
    for sample in samples:
        if "__error__" not in sample:
            try:
                buffer = decode_frames(_jpegs(sample, num_frames), buffer)
                sample["clip"] = torch.from_numpy(buffer)
                sample["label"] = int(sample["cls"])
            except (KeyError, ValueError) as error:
                sample["__error__"] = not_decoded(sample, error)
        yield sample


def inspect(samples: Iterable[Sample], *, index: SampleIndex, num_frames: int) -> Iterator[Sample]:
    """Leaves of each sample `jpegs` and `label` for a device, unless `decode` would find them bad.

    JPEGs whose checksum is right are as they were packed, so their headers are enough; where an older pack has none,
    they are decoded to see.
    """
    for sample in samples:
        if "__error__" in sample:
            yield sample
            continue
        left = {name: value for name, value in sample.items() if name.startswith("__")}
        try:
            jpegs = _jpegs(sample, num_frames)
            if index.crcs[sample["__row__"].index]:
                frame_size(jpegs)
            else:
                decode_frames(jpegs)
            yield {**left, "jpegs": jpegs, "label": int(sample["cls"])}
        except (KeyError, ValueError) as error:
            yield {**left, "__error__": not_decoded(sample, error)}


def gather(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Gathers the samples of each step, which a loader process hands over together."""
    gathered: list[Sample] = []
    for sample in samples:
        gathered.append(sample)
        if ends_step(sample):
            yield gathered
            gathered = []


def ends_step(sample: Sample) -> bool:
    """Whether a sample is the last one of its step; a partner to be mixed in comes before its row."""
    return "__partner__" not in sample and sample["__place__"] == sample["__num_rows__"] - 1


def _jpegs(sample: Sample, num_frames: int) -> list[bytes]:
    return [sample[f"{number:03d}.jpg"] for number in range(num_frames)]


def not_decoded(sample: Sample, error: Exception) -> str:
    """Returns the sentence for a sample whose frames cannot be decoded."""
    return f"{sample['__key__']} ({sample['__url__']}) cannot be decoded: {first_line(error)}"


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text; CUDA prints its stack below."""
    return str(error).partition("\n")[0]


def pick(samples: Iterable[Sample], *, frames: Frames) -> Iterator[Sample]:
    """Leaves the packed frames that the model reads, named anew from `000.jpg` on, so that no other is decoded."""
    for sample in samples:
        if "__error__" not in sample:
            packed = {name: sample.pop(name) for name in list(sample) if name.endswith(".jpg")}
            names = [f"{number:03d}.jpg" for number in frames(sample["__row__"])]
            sample |= {f"{place:03d}.jpg": packed[name] for place, name in enumerate(names) if name in packed}
        yield sample


def mix(samples: Iterable[Sample], *, mixing: Mixing) -> Iterator[Sample]:
    """Mixes each clip with its partner, and adds `other_label` and `share`; an unreadable partner leaves it alone."""
    partner: Sample | None = None
    for sample in samples:
        if "__partner__" in sample:
            # A copy: the next clip is decoded over this one.
            partner = None if "__error__" in sample else {**sample, "clip": sample["clip"].clone()}
            continue
        if partner and "__error__" not in sample:
            sample["clip"], sample["share"] = mixing(sample["clip"], partner["clip"], sample["__row__"])
            sample["other_label"] = partner["label"]
        partner = None
        yield sample


def augment(samples: Iterable[Sample], *, view: View) -> Iterator[Sample]:
    """Replaces each `clip` by the view of it that the model sees."""
    for sample in samples:
        if "__error__" not in sample:
            sample["clip"] = view(sample["clip"], sample["__row__"])
        yield sample
