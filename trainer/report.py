"""What people look at after a training: pictures and tables, made by the driver.

The workers only hand over what the best model said of every sample. So no GPU waits for a drawing, and pixels are read
again for the few clips that are shown.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from packer.manifest import Manifest
from trainer.augment import EvalView
from trainer.index import Sample, SampleError, SampleIndex
from trainer.metrics import Evaluation
from trainer.pictures import draw_balance, draw_calibration, draw_confusion
from trainer.schedule import Row
from trainer.sheet import Strip, draw_sheet
from trainer.spec import JobSpec
from trainer.stream import augment, decode
from trainer.tables import prediction_table
from trainer.tracking import RunLog

MISTAKES_SHOWN = 12


def report(spec: JobSpec, manifest: Manifest, evaluations: Mapping[str, Evaluation]) -> None:
    """Puts the pictures and tables of a run's best model among the run's artifacts.

    Args:
        spec: The run.
        manifest: What the run's shards hold.
        evaluations: What the model said of each split.
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
    """Returns a sheet of the clips of a split that the model was most surely wrong about."""
    worst = evaluation.worst_mistakes(MISTAKES_SHOWN)
    clips = {sample["__row__"].index: sample for sample in _read_clips(spec, split, worst["sample"].tolist())}
    strips = [
        _strip(record, clips[int(record["sample"])], class_names) for record in worst if record["sample"] in clips
    ]
    num_wrong = evaluation.num_samples - int(np.trace(evaluation.confusion))
    head = f"{split}: {num_wrong:,} of {evaluation.num_samples:,} clips are wrong"
    return draw_sheet(f"{head}; the {len(strips)} surest of them" if strips else head, strips)


def _strip(record: NDArray[np.void], sample: Sample, class_names: tuple[str, ...]) -> Strip:
    label, predicted = class_names[record["label"]], class_names[record["predicted"]]
    title = f"predicted {predicted} ({record['probability']:.1%}), true class {label} ({np.exp(-record['loss']):.1%})"
    return Strip(title, sample["__key__"], sample["clip"])


def _read_clips(spec: JobSpec, split: str, numbers: Iterable[int]) -> Iterator[Sample]:
    """Yields samples of a split with `clip` as evaluation sees it; those that can no longer be read are left out."""
    index = SampleIndex.open(spec.shards, split)

    def read() -> Iterator[Sample]:
        with closing(index.reader()) as reader:
            for number in numbers:
                try:
                    yield {**index.read(reader, number), "__row__": Row(0, number, 1.0)}
                except SampleError:
                    continue

    for sample in augment(decode(read(), num_frames=index.num_frames), view=EvalView(spec.config.view)):
        if "__error__" not in sample:
            # The next clip is decoded over this one.
            yield {**sample, "clip": sample["clip"].copy()}
