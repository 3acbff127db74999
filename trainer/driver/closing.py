"""What the user reads when a training has ended: how good the model is, what to try, where to look, what is next."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from configs.train import REGISTERED_MODEL, TrainConfig
from packer.proportion import LEVEL, wilson_interval
from packer.shards.manifest import Manifest
from trainer.driver.release import Release
from trainer.evaluation.metrics import Evaluation
from trainer.tracking.compare import Paired, verdict
from trainer.worker.epoch import EpochFigures
from trainer.worker.outcome import Outcome

NUM_LAST_EPOCHS = 3
"""Epochs over which the end of a curve is averaged."""
LEAST_FALL = 0.03
"""A fall of the val metric after its best epoch that is worth a word, if it is also more than chance."""
LEAST_GAP = 0.15
"""The same for the train accuracy above val."""
GOOD_ENOUGH = 0.95
"""From this val metric on, more epochs are not proposed."""


@dataclass(frozen=True)
class Closing:
    """What the closing words are about."""

    config: TrainConfig
    manifest: Manifest
    outcome: Outcome
    address: str
    """Where to look at the run."""
    release: Release | None
    """The registered version; None in a cross-validation."""
    paired: Paired | None
    """The former champion's run and this one on the same clips; None: there are no such clips."""

    def lines(self) -> list[str]:
        """Returns the closing words, at most a dozen lines."""
        return [*self._course(), *self._accuracy(), *self._hints(), *self._fate(), *self._next()]

    def _course(self) -> Iterator[str]:
        config, history, best = self.config, self.outcome.history, self._best
        if best is None:
            yield f"run {config.run} is done: val {config.select_by} {self.outcome.val[config.select_by]:.3f}"
            return
        figure = f"val {config.select_by} {best.val[config.select_by]:.3f}"
        early = ""
        if history[-1].epoch < config.epochs:
            early = f"; ended early: no better one for {config.patience_epochs} epochs (patience_epochs)"
        yield f"run {config.run} is done: epoch {best.epoch} of {history[-1].epoch} was the best, {figure}{early}"

    def _accuracy(self) -> Iterator[str]:
        split = "test" if "test" in self.outcome.evaluations else "val"
        evaluation = self.outcome.evaluations[split]
        num_right, num_clips = int(evaluation.confusion.trace()), evaluation.num_samples
        low, high = wilson_interval(num_right / num_clips, num_clips)
        guess, name = self._guess(evaluation)
        yield (
            f"{split} accuracy: {num_right / num_clips:.1%} of {num_clips:,} clips, {LEVEL:.0%} interval {low:.1%} to "
            f"{high:.1%}; always answering {name}, the commonest there: {guess:.1%}"
        )
        if split == "val":
            yield "  val chose the best epoch, so this is optimistic: pack a test split for a figure to rely on"
        if self.outcome.test_averaged:
            yield f"  with averaged views: {self.outcome.test_averaged['top1']:.1%}"
        if low <= guess:
            yield (
                "  not surely better than guessing: look at the labels, at data/train_clips.png in the run, and at "
                "the number of clips"
            )

    def _guess(self, evaluation: Evaluation) -> tuple[float, str]:
        """Returns the share that is right if every answer is the split's own commonest class, and its name."""
        counts = evaluation.confusion.sum(axis=1)
        return float(counts.max() / counts.sum()), self.manifest.class_names[int(counts.argmax())]

    def _hints(self) -> Iterator[str]:
        history, best = self.outcome.history, self._best
        if best is None:
            return
        config, metric = self.config, self.config.select_by
        num_val = self.outcome.evaluations["val"].num_samples
        last = [epoch.val[metric] for epoch in history if epoch.epoch > best.epoch][-NUM_LAST_EPOCHS:]
        end = sum(last) / NUM_LAST_EPOCHS if len(last) == NUM_LAST_EPOCHS else best.val[metric]
        if best.val[metric] - end > max(LEAST_FALL, 2 * _standard_error(best.val[metric], num_val)):
            yield (
                f"val {metric} fell after epoch {best.epoch}, to {end:.3f}; the best epoch is kept. "
                f"Try {self._against_fall()}"
            )
        elif best is history[-1] and best.epoch == config.epochs and best.val[metric] < GOOD_ENOUGH:
            yield f"the last epoch was the best, so more may help: --epochs {2 * config.epochs}, as a new run"
        gap = best.train_top1 - best.val["top1"]
        if gap > max(LEAST_GAP, 2 * _standard_error(best.val["top1"], num_val)):
            yield (
                f"train accuracy, {best.train_top1:.1%}, is far above val, {best.val['top1']:.1%}: clips are learnt by "
                "heart"
            )
            yield f"  more clips help most; otherwise try {self._against_heart()}"

    def _against_fall(self) -> str:
        return " or ".join(
            ["a lower --optimizer.learning-rate", *([] if self.config.patience_epochs else ["--patience-epochs 10"])]
        )

    def _against_heart(self) -> str:
        """Returns options that hold the network back and that the run did not use."""
        config = self.config
        unused = {
            "--augment.min-scale 0.7": config.augment.min_scale == 1,
            "--augment.mixup 0.2": not config.augment.mixup and not config.augment.cutmix,
            "--model.dropout 0.5": config.model.dropout < 0.5,
            "--optimizer.label-smoothing 0.1": not config.optimizer.label_smoothing,
            "pretrained weights (--model.weights)": config.model.weights == "none",
        }
        options = [option for option, is_unused in unused.items() if is_unused]
        return ", ".join(options[:3]) or "a smaller network"

    def _fate(self) -> Iterator[str]:
        if self.release is None:
            return
        config, promotion, version = self.config, self.release.promotion, self.release.version
        head = f"registered {config.registered_model} version {version}: "
        former = promotion.former
        if former is None:
            yield f"{head}it is @champion, as the first one"
            return
        if promotion.former_value is None:
            option = (
                "" if config.registered_model == REGISTERED_MODEL else f" --registered-model {config.registered_model}"
            )
            yield (
                f"{head}@champion stays version {former.version}, which cannot be compared: {promotion.obstacle}; to "
                f"change it by hand: python -m trainer promote {version}{option}"
            )
            return
        fate = (
            f"@champion moves to it from version {former.version}"
            if promotion.moved
            else (f"@champion stays version {former.version}")
        )
        value = self.outcome.val[config.select_by]
        former_value = f"{promotion.former_value:.3f} of version {former.version}"
        yield f"{head}{fate} (val {config.select_by} {value:.3f}, against {former_value})"
        if promotion.is_measured_anew:
            yield (
                f"  version {former.version} was measured on this pack's val split for this: its figure is too good if "
                "it was trained on any of these clips"
            )
        if self.paired:
            pair = self.paired
            yield (
                f"  of the same {pair.num_clips:,} {pair.split} clips, {pair.num_only_other} are right in version "
                f"{version} only, {pair.num_only_one} in version {former.version} only: that {verdict(pair.chance)} "
                f"(p = {pair.chance:.2g})"
            )

    def _next(self) -> Iterator[str]:
        yield f"look: {self.address}"
        if self.release:
            model = self.config.registered_model
            option = "" if model == REGISTERED_MODEL else f" --registered-model {model}"
            yield f"serve @champion: python -m serve{option}"

    @property
    def _best(self) -> EpochFigures | None:
        """The best epoch; None if an older version trained it, which kept no history."""
        best_step = self.outcome.best_step
        return next((epoch for epoch in self.outcome.history if epoch.global_step == best_step), None)


def _standard_error(share: float, num_clips: int) -> float:
    """Returns how far a share of clips is typically off by chance."""
    return math.sqrt(max(share * (1 - share), 0.01) / num_clips)
