"""From the best checkpoint of a run to a registered version, which becomes the champion if it is better."""

import hashlib
import logging
from typing import Any

import torch
from torch import nn

from packer.shards.manifest import Manifest, manifest_sha256, read_samples
from packer.storage.location import Location
from trainer.driver.run_folder import code_version
from trainer.evaluation.model_card import write_card
from trainer.learning.evaluate import evaluate
from trainer.learning.ranks import Ranks
from trainer.model.contract import ModelContract
from trainer.tracking.registry import Registry, answering
from trainer.tracking.run_log import RunLog
from trainer.worker.checkpoint import judged_weights
from trainer.worker.spec import JobSpec

logger = logging.getLogger(__name__)


def register_best(spec: JobSpec, manifest: Manifest, outcome: dict[str, Any]) -> str:
    """Exports and registers the model of the best epoch, crowns it if it is better, and returns its version.

    Args:
        spec: The run.
        manifest: What the run's shards hold.
        outcome: What `Training.run` returned.

    Raises:
        RegistryError: MLflow refused or did not answer.
    """
    state = spec.checkpoints.load(outcome["best_step"])
    model = spec.make_model(manifest)
    model.load_state_dict(judged_weights(state))
    contract = ModelContract(
        class_names=manifest.class_names,
        clip=manifest.clip,
        view=spec.config.view,
        manifest_sha256=manifest_sha256(spec.shards),
        val_sha256=val_sha256(spec.shards, manifest),
        select_by=spec.config.select_by,
        val_metric=outcome["val"][spec.config.select_by],
        code_version=code_version(),
    )
    registry = Registry(spec.tracking_uri, spec.config.registered_model)
    with answering(registry.uri):
        uri = registry.export(model.eval(), spec.run_id, contract)
        version = registry.register(uri, spec.run_id, contract)
        logger.info("registered model=%s version=%s", registry.name, version)
        card = write_card(version, contract, spec.config, manifest, outcome["evaluations"])
        log = RunLog(spec.tracking_uri, spec.run_id)
        log.artifact("model_card.md", card)
        log.close()
        registry.describe(version, card)
        registry.promote_if_better(version, contract, lambda model, held: judge(spec, model, held))
    return version


def judge(spec: JobSpec, model: nn.Module, contract: ModelContract) -> float:
    """Returns an exported model's figure, by the run's own metric, on the run's val split."""
    view = spec.config.model_copy(update={"view": contract.view})
    loader = JobSpec(view, spec.shards, spec.run_folder, spec.run_id, spec.tracking_uri, 1).eval_loader("val", Ranks())
    evaluation = evaluate(model, loader, len(contract.class_names), Ranks(), torch.device("cpu"))
    return evaluation.figures()[spec.config.select_by]


def val_sha256(shards: Location, manifest: Manifest) -> str:
    """Returns a digest of the val split's samples and classes: equal digests make figures comparable."""
    table = read_samples(shards, "val", columns=["key", "class_index", "source_sha256"])
    digest = hashlib.sha256("\0".join(manifest.class_names).encode())
    for row in sorted(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)):
        digest.update(repr(row).encode())
    return digest.hexdigest()
