"""Configuration of the model: a CNN that sees frames, or short clips, and an RNN that reads them in order."""

from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section


class ModelConfig(Section):
    """A CNN that sees frames, or short clips, and an RNN that reads them in order."""

    backbone: str = "resnet18"
    """Name of a torchvision CNN: resnet*, mobilenet_v3_*, efficientnet_*, convnext_*; of a 3-D CNN, which sees motion
    itself: r3d_18, mc3_18, r2plus1d_18; or `narrow`: a ResNet-10 of `width` channels for CPUs."""
    width: int = Field(16, ge=8)
    """Channels of the first stage of the `narrow` backbone."""
    weights: str = "imagenet"
    """First weights of the backbone. imagenet or, for 3-D CNNs, kinetics400: torchvision's, downloaded once; none:
    random; or the path of a local state_dict."""
    freeze_epochs: int = Field(0, ge=0)
    """Epochs in which the backbone's weights and statistics stay as they were loaded. As many as `epochs`: it is never
    trained, which is fast and suits few clips."""
    unfreeze_stage_epochs: int = Field(0, ge=0)
    """After freeze_epochs, train one more stage of the backbone every so many epochs, the last stage first, so that the
    first stages keep longer what they were pretrained to do; 0: train all stages at once."""
    batch_norm: Literal["train", "frozen", "sync"] = "train"
    """train: statistics of each worker's clips; frozen: the statistics that were loaded with the weights, so results do
    not depend on the number of workers; sync: statistics of all workers' clips, on GPUs only."""
    temporal_shift: bool = False
    """Let each block of the backbone see the frames before and after (TSM): motion is learnt from far fewer clips."""
    differences: bool = False
    """Also show the CNN what changed since the frame before: where things move is learnt from far fewer clips."""
    grid: int = Field(1, ge=1, le=8)
    """Average frame features to grid x grid places; 1: one average over the whole frame."""
    feature_size: int = Field(256, ge=8)
    """Features per frame that the RNN reads; used if grid > 1."""
    rnn: Literal["lstm", "gru", "none"] = "lstm"
    """Kind of recurrence; none: the frames' features are pooled directly. A 3-D CNN gives features for every frame
    (mc3_18) or for every eighth frame."""
    hidden_size: int = Field(256, ge=1)
    """Width of the RNN's state."""
    num_layers: int = Field(1, ge=1)
    """Layers of the RNN."""
    bidirectional: bool = False
    """Read the clip in both directions."""
    pooling: Literal["last", "mean", "attention"] = "last"
    """What the classifier sees: the last step of the RNN, the mean over its steps, or a mean with learnt weights."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of features dropped before the classifier, and between the RNN's layers."""

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        if self.rnn == "none" and self.pooling == "last":
            raise ValueError("pooling (last) of rnn (none) would see the last frame alone: choose mean or attention")
        if self.rnn == "none" and (self.bidirectional or self.num_layers > 1):
            raise ValueError("rnn (none) has neither directions nor layers: leave bidirectional and num_layers out")
        if self.freeze_epochs and self.weights == "none":
            raise ValueError(f"freeze_epochs ({self.freeze_epochs}) would keep random weights: choose other weights")
        if self.unfreeze_stage_epochs and not self.freeze_epochs:
            raise ValueError(
                f"unfreeze_stage_epochs ({self.unfreeze_stage_epochs}) counts from the end of freeze_epochs (0): give "
                "that 1 or more, or leave it out"
            )
        return self

    def num_frozen_stages(self, epoch: int, num_stages: int) -> int:
        """Returns how many of the backbone's first stages are frozen in an epoch; epochs count from 0.

        With freeze_epochs 2, unfreeze_stage_epochs 3 and 5 stages: 5 in epochs 0 and 1, 4 in 2 to 4, 3 in 5 to 7.

        Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning", gradual unfreezing.
        """
        if epoch < self.freeze_epochs:
            return num_stages
        if not self.unfreeze_stage_epochs:
            return 0
        return max(0, num_stages - 1 - (epoch - self.freeze_epochs) // self.unfreeze_stage_epochs)
