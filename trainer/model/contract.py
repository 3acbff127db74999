"""What a registered model promises about its input and output; stored with each registered version.

It imports neither torch nor MLflow, so every process of the server can afford it.
"""

from collections.abc import Sequence
from typing import Literal

from configs.pack import ClipConfig
from configs.section import Section
from configs.train import ViewConfig

METADATA_KEY = "clipstream"
"""Key of the contract in a registered model's MLflow metadata."""


def prediction_columns(class_names: Sequence[str]) -> list[str]:
    """Returns the first columns of every table of predictions, in a run and of `python -m serve score` alike.

    `source` is the video's path relative to its data folder, for a segment with its time range; `true_class` and
    `predicted` are classes; `probability` is that of `predicted`, and `p_<class>` that of each class. The names are a
    stored format: they never change.

    Args:
        class_names: In the order of the logits.
    """
    return ["source", "true_class", "predicted", "probability", *(f"p_{name}" for name in class_names)]


class ModelContract(Section):
    """What a registered model carries as metadata: enough to prepare a video exactly as in training.

    The trainer writes it into the MLflow model's metadata under `METADATA_KEY`; the server reads it.
    """

    format_version: Literal[1] = 1
    """Goes up when a field changes its meaning; a server refuses a version that it does not know."""
    class_names: tuple[str, ...]
    """Class names in the order of the logits."""
    clip: ClipConfig
    """How frames were picked, resized and compressed."""
    view: ViewConfig
    """How a stored frame becomes what the model sees."""
    manifest_sha256: str
    """Digest of the manifest of the pack that the model was trained on."""
    val_sha256: str
    """Digest of the val split that `val_metric` was measured on."""
    select_by: str
    """Name of the metric that chose this model."""
    val_metric: float
    """Its value on the val split."""
    code_version: str
    """Git commit (with `-dirty` if files were changed), or a digest of the package's sources."""

    @property
    def num_frames(self) -> int:
        """Frames that the model reads, T."""
        return self.view.num_frames_of(self.clip.num_frames)
