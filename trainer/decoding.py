"""From a sample's JPEGs to its pixels: in the loader processes, or on the device that the model is on.

On the device (nvJPEG on CUDA, libjpeg-turbo on the CPU) the loader processes only read, and the training process
decodes and goes through the same further stages there. Which samples are bad does not depend on it: the loader
processes find that out, before a batch's mass is known. Evaluation is left to them: the server decodes as they do.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packer.jpeg import decode_frames, encode, frame_size
from trainer.index import Sample, SampleIndex


class DecoderError(RuntimeError):
    """A device that decodes no JPEG."""


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
                sample["__error__"] = _undecoded(sample, error)
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
            yield {**left, "__error__": _undecoded(sample, error)}


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


@dataclass(frozen=True)
class DeviceDecoder:
    """Decodes what `inspect` left of the samples on a device, and takes them through the stages that follow.

    Raises:
        DecoderError: The device decodes no JPEG at all; else each of them would be counted as bad.
    """

    steps: Iterable[list[Sample]]
    """What `gather` gathered."""
    device: torch.device
    stages: Sequence[Stage]

    def __post_init__(self) -> None:
        """Decodes one picture to see."""
        luma, chroma = (np.full((side, side), 128, np.uint8) for side in (16, 8))
        grey = encode((luma, chroma, chroma), 90)
        (clip,) = self._clips([[grey]])
        if isinstance(clip, RuntimeError):
            raise DecoderError(
                f"decode_on (device): {self.device} decodes no JPEG ({_line(clip)}): give --decode-on loader"
            )

    def __iter__(self) -> Iterator[Any]:
        """Yields what the last stage does."""
        samples: Iterator[Any] = chain.from_iterable(self._decoded(step) for step in self.steps)
        for stage in self.stages:
            samples = stage(samples)
        return samples

    def _decoded(self, samples: list[Sample]) -> list[Sample]:
        good = [sample for sample in samples if "__error__" not in sample]
        clips = self._clips([sample.pop("jpegs") for sample in good])
        for sample, clip in zip(good, clips, strict=True):
            if isinstance(clip, RuntimeError):
                sample["__error__"] = _undecoded(sample, clip)
            else:
                sample["clip"] = clip
        return samples

    def _clips(self, clips: list[list[bytes]]) -> list[torch.Tensor | RuntimeError]:
        """Returns the frames of each clip, `(T, H, W, 3) uint8`, or why it has none."""
        from torchvision.io import ImageReadMode, decode_jpeg  # here, not above: loader processes need no torchvision

        jpegs = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for clip in clips for jpeg in clip]
        try:
            if self.device.type == "cuda":
                # nvJPEG writes on a stream of its own into memory that work queued on this one may still read.
                torch.cuda.current_stream(self.device).synchronize()
            frames = iter(decode_jpeg(jpegs, ImageReadMode.RGB, self.device) if jpegs else [])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # which of them it was is not said
            return [self._clips([clip])[0] for clip in clips] if len(clips) > 1 else [error]
        return [torch.stack([next(frames) for _ in clip]).permute(0, 2, 3, 1) for clip in clips]


def _jpegs(sample: Sample, num_frames: int) -> list[bytes]:
    return [sample[f"{number:03d}.jpg"] for number in range(num_frames)]


def _undecoded(sample: Sample, error: Exception) -> str:
    return f"{sample['__key__']} ({sample['__url__']}) cannot be decoded: {_line(error)}"


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]  # CUDA tells its stack below
