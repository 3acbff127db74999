"""The weights that a backbone starts from: torchvision's by name, or a local file with a state_dict of its network.

Weights are checked against the backbone before they are used, and no file may run code. A network is only needed for
torchvision's weights, and only once.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from configs.home import resolve
from configs.model import ModelConfig
from configs.section import UsageError
from trainer.model.backbone import make_backbone, make_network, split_names

PUBLISHED = {"imagenet": "IMAGENET1K_V1", "kinetics400": "KINETICS400_V1"}
"""Torchvision's names of the weights that it publishes, by ours."""


def load_backbone_weights(config: ModelConfig) -> dict[str, Tensor] | None:
    """Returns the backbone's first weights as `CnnRnn.backbone` names them, or None for random ones.

    Torchvision's weights are downloaded once and kept in torch's hub folder; a local file holds a state_dict of the
    torchvision model, with or without its classifier.

    Raises:
        UsageError: The weights cannot be read or downloaded, or do not fit the backbone.
    """
    if config.weights == "none":
        return None
    if config.weights not in PUBLISHED:
        return _match(_read_state_dict(resolve(config.weights)), config)
    published = _published(config.backbone)
    if config.weights not in published:
        raise UsageError(
            f"model.weights ({config.weights}) does not exist for model.backbone {config.backbone}: give "
            f"--model.weights {' or '.join([*published, 'none'])}, or a file"
        )
    return _match(_download(published[config.weights], config.weights), config)


def _published(backbone: str) -> dict[str, WeightsEnum]:
    members = {} if backbone == "narrow" else torchvision.models.get_model_weights(backbone).__members__
    return {name: members[theirs] for name, theirs in PUBLISHED.items() if theirs in members}


def _download(weights: WeightsEnum, name: str) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: the digest is wrong
        raise UsageError(
            f"model.weights ({name}) could not be downloaded ({error}): give --config configs/small.yaml, which needs "
            "none, --model.weights none to start from random weights, or the path of a file that holds torchvision's "
            "state_dict"
        ) from error
    return state


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        names = ", ".join(PUBLISHED)
        raise UsageError(f"model.weights ({path}) does not exist: give {names}, none, or a state_dict file") from error
    except Exception as error:  # torch.load raises whatever the bytes lead to
        raise UsageError(
            f"model.weights ({path}) is not a state_dict that torch can load without running code from it: give one "
            "that was written by torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(state, Mapping):
        raise UsageError(f"model.weights ({path}) holds a {type(state).__name__}: it must hold a state_dict")
    return state


def _match(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Returns torchvision's weights under this backbone's names: `layer1.0.conv1.weight` becomes `4.0.conv1.weight`."""
    renamed = dict(state)
    with torch.device("meta"):
        wanted = make_backbone(config)[0].state_dict()
        if config.backbone != "narrow":
            trunk, classifier = split_names(make_network(config.backbone))
            places = {name: str(number) for number, name in enumerate(trunk)}
            renamed = {
                ".".join([places.get(name.partition(".")[0], "?"), name.partition(".")[2]]): value
                for name, value in state.items()
                if name.partition(".")[0] not in classifier
            }
    wrong = sorted(
        name
        for name in wanted.keys() | renamed.keys()
        if name not in wanted or name not in renamed or wanted[name].shape != renamed[name].shape
        # Torchvision's ImageNet files are older than this counter, which torch then starts at 0.
        if name in renamed or not name.endswith(".num_batches_tracked")
    )
    if wrong:
        raise UsageError(
            f"model.weights ({config.weights}) does not fit model.backbone {config.backbone}: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, the first {wrong[0]}"
        )
    return renamed
