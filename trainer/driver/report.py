"""The pictures and tables of a finished training, made by the driver.

The workers only return what the best model predicted for every sample. So no GPU waits for a drawing, and only the few
clips that are shown are read again.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from packer.shards.manifest import Manifest
from trainer.evaluation.contact_sheet import Strip, draw_sheet
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.plots import draw_balance, draw_calibration, draw_confusion
from trainer.evaluation.sources import sample_sources
from trainer.evaluation.tables import prediction_table
from trainer.learning.ranks import Ranks
from trainer.tracking.run_log import RunLog
from trainer.worker.parts import eval_loader
from trainer.worker.spec import JobSpec

MISTAKES_SHOWN = 12


def report(spec: JobSpec, manifest: Manifest, evaluations: Mapping[str, Evaluation]) -> None:
    """Puts the pictures and tables of a run's best model among the run's artifacts.

    Args:
        spec: The run.
        manifest: What the run's shards hold.
        evaluations: By split, what the model predicted.
    """
    names = manifest.class_names
    log = RunLog(spec.tracking_uri, spec.run_id)
    log.artifact("data/class_balance.png", draw_balance(manifest))
    for split, evaluation in evaluations.items():
        folder, figures = f"evaluation/{split}", evaluation.figures()
        log.artifact(f"{folder}/predictions.csv", prediction_table(evaluation, names, spec.shards, split))
        log.artifact(f"{folder}/worst_mistakes.png", draw_mistakes(spec, split, evaluation, names))
        title = f"{split}: {figures['top1']:.1%} of {evaluation.num_samples:,} clips are right"
        log.artifact(f"{folder}/confusion.png", draw_confusion(evaluation, names, title))
        title = f"{split}: off by {figures['ece']:.1%} on average (ECE)"
        log.artifact(f"{folder}/calibration.png", draw_calibration(evaluation, title))
    log.close()


def draw_mistakes(spec: JobSpec, split: str, evaluation: Evaluation, class_names: tuple[str, ...]) -> bytes:
    """Returns a sheet of the clips of a split that the model was most surely wrong about, as it saw them."""
    num_wrong = evaluation.num_samples - int(np.trace(evaluation.confusion))
    head = f"{split}: {num_wrong:,} of {evaluation.num_samples:,} clips are wrong"
    if not num_wrong:
        return draw_sheet(head, [])
    worst = evaluation.worst_mistakes(MISTAKES_SHOWN)
    sources = sample_sources(spec.shards, split, worst["sample"].tolist())
    few = spec.config.model_copy(update={"global_batch": len(worst), "loader_workers": 0})
    (batch,) = eval_loader(replace(spec, config=few), split, Ranks(), worst["sample"].tolist())
    clips_BTHWC = batch.clips.permute(0, 1, 3, 4, 2).numpy()
    strips = [
        Strip(_mistake(record, class_names), source, clip)
        for record, source, clip, weight in zip(worst, sources, clips_BTHWC, batch.weights.tolist(), strict=True)
        if weight > 0  # 0: it can no longer be read
    ]
    return draw_sheet(f"{head}; the {len(strips)} surest of them", strips)


def _mistake(record: NDArray[np.void], class_names: tuple[str, ...]) -> str:
    label, predicted = class_names[record["label"]], class_names[record["predicted"]]
    return f"predicted {predicted} ({record['probability']:.1%}), true class {label} ({np.exp(-record['loss']):.1%})"
