"""A loaded model: from the frames of a clip to class probabilities.

A clip goes through the trainer's own JPEG decoder and view, and the model itself normalises. So a served video is
treated exactly as a sample is in evaluation.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from packer.video.jpeg import decode_frames
from trainer.model.contract import ModelContract
from trainer.views.eval_view import eval_view
from trainer.views.frames import eval_frames

if TYPE_CHECKING:
    from packer.video.clip import Clip  # brings the decoder of videos, which a model does not need

FramesTHWC = NDArray[np.uint8]
ProbabilitiesK = NDArray[np.float64]

BATCH_TOLERANCE = 1e-2
"""How far the logits of a clip alone and of the same clip in a batch may differ: other kernels round differently."""


class ModelView:
    """How a model sees a clip.

    Args:
        contract: What the model was trained on.
    """

    def __init__(self, contract: ModelContract) -> None:
        self.contract = contract
        size_px = contract.view.size_px
        self.frames_shape = (contract.num_frames, size_px, size_px, 3)

    def pick(self, clip: "Clip") -> "Clip":
        """Returns a clip with only those of its frames that the model reads, as in evaluation."""
        numbers = eval_frames(len(clip.jpegs), self.contract.num_frames).numbers
        jpegs = tuple(clip.jpegs[number] for number in numbers)
        return replace(clip, jpegs=jpegs, frame_indices=tuple(clip.frame_indices[number] for number in numbers))

    def view(self, clip: "Clip") -> FramesTHWC:
        """Returns what the model sees of a clip from `pick`, `(T, S, S, 3) uint8 RGB`.

        Raises:
            ValueError: A frame cannot be read, or is too small for the view.
        """
        # One frame at a time: a clip of 65,000 x 128 pixels takes 400 MB, and the model sees little of it.
        frames = np.concatenate([self._view_frame(jpeg) for jpeg in clip.jpegs])
        if frames.shape != self.frames_shape:
            raise ValueError(f"a clip of shape {frames.shape} does not fit the model's {self.frames_shape}")
        return frames

    def _view_frame(self, jpeg: bytes) -> FramesTHWC:
        # A copy, because a view of a part of the frame would keep the whole frame in memory.
        return np.ascontiguousarray(eval_view(torch.from_numpy(decode_frames([jpeg])), self.contract.view).numpy())

    def take(self, frames_TCHW: NDArray[np.uint8]) -> FramesTHWC:
        """Returns frames that are already as the model sees them, with the axes in the order of `view`.

        Raises:
            ValueError: The frames have another shape.
        """
        frames = frames_TCHW.transpose(0, 2, 3, 1)
        if frames.shape != self.frames_shape:
            num_frames, size_px, _, _ = self.frames_shape
            model_shape = [num_frames, 3, size_px, size_px]
            raise ValueError(f"a clip of shape {list(frames_TCHW.shape)} does not fit the model's {model_shape}")
        return frames


class Predictor(ModelView):
    """A model that was checked against its contract.

    Args:
        module: Maps `(B, T, 3, S, S) uint8` to `(B, K) float32` logits.
        contract: What the model was trained on.
        device: Where the model runs.
        num_threads: Torch threads of a forward pass on the CPU.

    Raises:
        ValueError: The module does not do what the contract says.
    """

    def __init__(self, module: torch.nn.Module, contract: ModelContract, device: str, num_threads: int) -> None:
        super().__init__(contract)
        self._module = module.to(device)
        self._device = device
        self._num_threads = num_threads
        self._check()

    def predict(self, clips: Sequence[FramesTHWC]) -> list[ProbabilitiesK]:
        """Returns one `(K,) float64` array of class probabilities per clip of `view`; each sums to 1."""
        return list(self.predict_batch(np.stack(clips)))

    def predict_batch(self, frames_BTHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Returns the class probabilities of a batch, `(B, K) float64`."""
        return torch.softmax(self._logits(frames_BTHWC).double(), dim=1).numpy()

    def close(self) -> None:
        """Does nothing: the last reference frees the memory."""

    def _logits(self, frames_BTHWC: NDArray[np.uint8]) -> torch.Tensor:
        torch.set_num_threads(self._num_threads)  # here, because OpenMP keeps the number per calling thread
        frames_BTCHW = torch.from_numpy(frames_BTHWC).permute(0, 1, 4, 2, 3).contiguous()
        with torch.inference_mode():
            logits_BK: torch.Tensor = self._module(frames_BTCHW.to(self._device))
        return logits_BK.float().cpu()

    def _check(self) -> None:
        """Runs batches of 1 and 3, which also warms the model up."""
        frames = np.random.default_rng(0).integers(0, 256, (3, *self.frames_shape), dtype=np.uint8)
        alone, together = self._logits(frames[:1]), self._logits(frames)
        num_classes = len(self.contract.class_names)
        if alone.shape != (1, num_classes) or together.shape != (3, num_classes):
            raise ValueError(
                f"the model's logits have the shapes {tuple(alone.shape)} and {tuple(together.shape)} for batches of "
                f"1 and 3: its contract names {num_classes} classes"
            )
        if not torch.isfinite(together).all():
            raise ValueError("the model's logits are not finite")
        difference = float((alone[0] - together[0]).abs().max())
        if difference > BATCH_TOLERANCE:
            raise ValueError(f"the logits of a clip alone and in a batch differ by {difference:.3g}")
