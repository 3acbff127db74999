"""Decodes training clips on the device that the model is on: by nvJPEG on CUDA, by libjpeg-turbo on the CPU.

The loader processes then only read, and the training process decodes, crops and mixes. Evaluation never comes here: its
clips are decoded by the loader processes, as the server decodes them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from packer.video.jpeg import encode
from trainer.stream.sample import BadSample, DecodedSample, JpegSample
from trainer.stream.stages import Stage, first_line, undecodable


class DecoderError(RuntimeError):
    """A device that decodes no JPEG."""


@dataclass(frozen=True)
class DeviceDecoder:
    """Decodes on a device and takes the clips through the stages that follow.

    Raises:
        DecoderError: The device decodes no JPEG at all; otherwise every sample would be counted as bad.
    """

    steps: Iterable[list[JpegSample | BadSample]]
    """The samples of each step, as `gather` yields them."""
    device: torch.device
    stages: Sequence[Stage]

    def __post_init__(self) -> None:
        """Decodes one picture to see whether the device can."""
        luma, chroma = (np.full((side, side), 128, np.uint8) for side in (16, 8))
        grey = encode((luma, chroma, chroma), 90)
        (clip,) = self._clips([[grey]])
        if isinstance(clip, RuntimeError):
            raise DecoderError(
                f"decode_on (device): {self.device} decodes no JPEG ({first_line(clip)}): give --decode-on loader"
            )

    def __iter__(self) -> Iterator[Any]:
        """Yields what the last stage yields."""
        samples: Iterator[Any] = chain.from_iterable(self._decoded(step) for step in self.steps)
        for stage in self.stages:
            samples = stage(samples)
        return samples

    def _decoded(self, samples: list[JpegSample | BadSample]) -> Iterator[DecodedSample | BadSample]:
        clips = iter(self._clips([sample.jpegs for sample in samples if isinstance(sample, JpegSample)]))
        for sample in samples:
            if isinstance(sample, BadSample):
                yield sample
            elif isinstance(clip := next(clips), RuntimeError):
                yield undecodable(sample.slot, sample.name, clip)
            else:
                yield DecodedSample(sample.slot, clip, sample.label)

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
        except RuntimeError as error:  # it does not tell which JPEG is bad: decode the clips one by one
            return [self._clips([clip])[0] for clip in clips] if len(clips) > 1 else [error]
        return [torch.stack([next(frames) for _ in clip]).permute(0, 2, 3, 1) for clip in clips]
