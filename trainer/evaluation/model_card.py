"""The model card: what a registered version does, how good it is and where its limits are.

It says what a training run can know; intended use and ethics are for people to add.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from configs.section import flatten
from configs.train import TrainConfig
from packer.proportion import LEVEL, wilson_interval
from packer.shards.manifest import Manifest
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.tables import class_counts
from trainer.model.contract import ModelContract

NUM_NAMED = 10
"""Most classes and confusions that a card names; the tables beside it hold all."""
MAX_DESCRIPTION_CHARACTERS = 5000
"""What MLflow's tables hold as a version's description; PostgreSQL refuses more. For a run's it takes 8,000."""


def write_card(
    version: str,
    contract: ModelContract,
    config: TrainConfig,
    manifest: Manifest,
    evaluations: Mapping[str, Evaluation],
) -> str:
    """Returns the card of a registered version, as Markdown.

    Args:
        version: Its number in the registry.
        contract: What the model itself carries.
        config: How it was trained.
        manifest: Of the pack that it was trained on.
        evaluations: Its predictions on each split that was measured, val among them.
    """
    # No choice depended on the test split; without one, val must do.
    evaluated_on = "test" if "test" in evaluations else "val"
    sections = [
        [f"# {config.registered_model} version {version}", "", _headline(evaluated_on, evaluations[evaluated_on])],
        _purpose(contract, config),
        ["## How good it is", "", *_figures(evaluations)],
        [f"## Where it is weak ({evaluated_on})", "", *_weak_points(evaluations[evaluated_on], contract.class_names)],
        ["## What it was trained on", "", *_data(contract, config, manifest)],
        ["## Limits", "", *_limits(contract)],
        ["## How to use it", "", *_usage(version, contract, config)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def as_description(card: str) -> str:
    """Returns a card in the form in which MLflow's page shows it well and its tables take it.

    The page leaves no room between the columns of a table, nor below it. A card that is too long is cut at the end of a
    line.
    """
    lines = [_spaced(line) if line.startswith("| ") else line for line in card.split("\n")]
    below = [f"{line}\n\n&nbsp;" if line[:1] == "|" != after[:1] else line for line, after in pairwise([*lines, ""])]
    text = "\n".join(below)
    if len(text) <= MAX_DESCRIPTION_CHARACTERS:
        return text
    ending = "\n\nThe rest is in model_card.md among the run's artifacts.\n"
    return text[: MAX_DESCRIPTION_CHARACTERS - len(ending)].rpartition("\n")[0] + ending


def _spaced(row: str) -> str:
    return row if row.startswith("| ---") else row.replace(" | ", "&emsp; | ")


def _headline(split: str, evaluation: Evaluation) -> str:
    num_samples, right = evaluation.num_samples, int(np.trace(evaluation.confusion))
    low, high = wilson_interval(right / num_samples, num_samples)
    return (
        f"**{right / num_samples:.1%} of {num_samples:,} {split} clips are right** ({LEVEL:.0%} interval {low:.1%} to "
        f"{high:.1%})."
    )


def _purpose(contract: ModelContract, config: TrainConfig) -> list[str]:
    view = contract.view
    model = ", ".join(f"{name} {value}" for name, value in flatten(config.model.model_dump()).items())
    cut = "its centre square" if view.mode == "crop" else "the whole picture squashed to a square"
    return [
        f"It tells which of {len(contract.class_names)} classes a video shows. It sees {contract.num_frames} frames, "
        f"equally spaced from the first to the last, each as {cut} of {view.size_px} px. It hears no sound.",
        "",
        f"Network: {model}.",
        "",
        f"Run {config.run} trained it with code {contract.code_version}. Every setting is in the run's config.yaml.",
    ]


def _figures(evaluations: Mapping[str, Evaluation]) -> list[str]:
    used_for = {"val": "chose the epoch, so it is optimistic", "test": "chose nothing"}
    rows = []
    for split, evaluation in evaluations.items():
        figures = evaluation.figures()
        shown = [f"{figures[name]:.1%}" for name in ("top1", "top5", "mean_class_accuracy", "macro_f1", "ece")]
        rows.append([f"{split} ({used_for[split]})", f"{evaluation.num_samples:,}", *shown])
    names = ["split", "clips", "top 1", "top 5", "mean class accuracy", "macro F1", "calibration error"]
    return _table(names, rows)


def _weak_points(evaluation: Evaluation, class_names: Sequence[str]) -> list[str]:
    figures = evaluation.per_class()
    present = np.flatnonzero(figures.support)
    weakest = present[np.argsort(figures.f1[present], kind="stable")][:NUM_NAMED]
    rows = [
        [class_names[at], str(figures.support[at]), *(f"{column[at]:.1%}" for column in figures[:3])] for at in weakest
    ]
    lines = _table(["class", "clips", "precision", "recall", "F1"], rows)
    wrong = evaluation.confusion - np.diag(np.diag(evaluation.confusion))
    pairs = np.argwhere(wrong)
    most = pairs[np.argsort(-wrong[tuple(pairs.T)], kind="stable")][:NUM_NAMED]
    confused = [f"{class_names[row]} called {class_names[column]} ({wrong[row, column]})" for row, column in most]
    return [*lines, "", f"Most frequent mistakes: {', '.join(confused) or 'none'}."]


def _data(contract: ModelContract, config: TrainConfig, manifest: Manifest) -> list[str]:
    counts = class_counts(manifest)
    shown = [[name, *map(str, of_splits)] for name, of_splits in list(counts.items())[:NUM_NAMED]]
    totals = [f"{split.num_samples:,}" for split in manifest.splits.values()]
    more = len(counts) - len(shown)
    rest = [[f"and {more} more: data/class_balance.csv", *("" for _ in totals)]] if more else []
    return [
        f"Shards {config.shards}, manifest {contract.manifest_sha256[:12]}. Of {config.epochs} epochs the one with the "
        f"best val {config.select_by} was kept.",
        "",
        *_table(["class", *manifest.splits], [*shown, *rest, ["**all**", *totals]]),
    ]


def _limits(contract: ModelContract) -> list[str]:
    return [
        f"- It knows these {len(contract.class_names)} classes and no others: a video of something else gets one of "
        "them too, sometimes with a high probability.",
        f"- {contract.num_frames} frames stand for the whole video: in a long video it misses what happens between two "
        "of them. Cut long videos to the action first.",
        "- Its figures hold for videos like those it was measured on. Other cameras, places and light were not tried.",
        "- A probability is the model's own estimate; the calibration error above says how far off it is on average.",
    ]


def _usage(version: str, contract: ModelContract, config: TrainConfig) -> list[str]:
    shape = f"(B, {contract.num_frames}, 3, {contract.view.size_px}, {contract.view.size_px})"
    return [
        "```",
        f"python -m serve --registered-model {config.registered_model}    # serves the version with the alias champion",
        "curl --data-binary @video.mp4 'http://127.0.0.1:8000/v1/predict?top_k=5'",
        "```",
        "",
        f'In Python, `mlflow.pytorch.load_model("models:/{config.registered_model}/{version}")` maps uint8 RGB '
        f"`{shape}` to logits. The model normalises the pixels itself; its metadata list the classes in order.",
    ]


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [names, ["---", *("---:" for _ in names[1:])], *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
