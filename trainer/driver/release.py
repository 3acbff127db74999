"""Registers the best checkpoint of a run as a version of the model; the better version becomes the champion."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from packer.shards.manifest import Manifest, manifest_sha256, read_samples
from packer.storage.location import Location
from trainer.driver.code_version import code_version
from trainer.evaluation.model_card import as_description, write_card
from trainer.learning.evaluate import evaluate
from trainer.learning.ranks import Ranks
from trainer.model.contract import ModelContract
from trainer.tracking.registry import Promotion, Registry, answering
from trainer.tracking.run_log import RunLog
from trainer.worker.checkpoint import evaluated_weights
from trainer.worker.outcome import Outcome
from trainer.worker.parts import eval_loader, make_model, open_checkpoints
from trainer.worker.spec import JobSpec


@dataclass(frozen=True)
class Release:
    """A registered version."""

    version: str
    promotion: Promotion


def register_best(spec: JobSpec, manifest: Manifest, outcome: Outcome) -> Release:
    """Exports and registers the model of the best epoch, and promotes it if it is better than the champion.

    Args:
        spec: The run.
        manifest: What the run's shards hold.
        outcome: Of a training that was not stopped.

    Raises:
        RegistryError: MLflow refused or did not answer.
    """
    assert outcome.best_step is not None, "every epoch ends with an evaluation"
    state = open_checkpoints(spec).load(outcome.best_step)
    model = make_model(spec, manifest)
    model.load_state_dict(evaluated_weights(state))
    contract = ModelContract(
        class_names=manifest.class_names,
        clip=manifest.clip,
        view=spec.config.view,
        manifest_sha256=manifest_sha256(spec.shards),
        val_sha256=val_sha256(spec.shards, manifest),
        select_by=spec.config.select_by,
        val_metric=outcome.val[spec.config.select_by],
        code_version=code_version(),
    )
    registry = Registry(spec.tracking_uri, spec.config.registered_model)
    with answering(registry.uri):
        uri = registry.export(model.eval(), spec.run_id, contract)
        version = registry.register(uri, spec.run_id, contract)
        card = write_card(version, contract, spec.config, manifest, outcome.evaluations)
        log = RunLog(spec.tracking_uri, spec.run_id)
        log.artifact("model_card.md", card)
        log.note(as_description(card))
        log.close()
        registry.describe(version, card)
        evaluate = partial(evaluate_on_val, spec)
        return Release(version, registry.promote_if_better(version, contract, evaluate))


def evaluate_on_val(spec: JobSpec, model: nn.Module, contract: ModelContract) -> float:
    """Returns the run's own metric of another version's model on the run's val split.

    Args:
        spec: The run.
        model: The other version's model.
        contract: Its contract, whose view it is given.
    """
    config = spec.config.model_copy(update={"view": contract.view})
    loader = eval_loader(replace(spec, config=config), "val", Ranks())
    evaluation = evaluate(model, loader, len(contract.class_names), Ranks(), torch.device("cpu"))
    return evaluation.figures()[spec.config.select_by]


def val_sha256(shards: Location, manifest: Manifest) -> str:
    """Returns a digest of the val split's samples and classes: if two are equal, figures can be compared."""
    table = read_samples(shards, "val", columns=["key", "class_index", "source_sha256"])
    digest = hashlib.sha256("\0".join(manifest.class_names).encode())
    for row in sorted(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)):
        digest.update(repr(row).encode())
    return digest.hexdigest()
