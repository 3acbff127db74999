"""The model card: what a registered version is, how good it is and where it ends, for whoever finds it later.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting", in as far as a training run can know it.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from configs.section import flatten
from configs.train import TrainConfig
from packer.shards.manifest import Manifest
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.tables import class_counts
from trainer.model.contract import ModelContract

NUM_NAMED = 10
"""Most classes and confusions that a card names; the tables beside it hold all."""


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
        manifest: What it was trained on.
        evaluations: What it said of each split that was measured.
    """
    # The test split chose nothing; where there is none, val must do.
    judged_on = "test" if "test" in evaluations else "val"
    sections = [
        [f"# {config.registered_model} version {version}", "", *_purpose(contract, config)],
        ["## How good it is", "", *_figures(evaluations)],
        [f"## Where it is weak ({judged_on})", "", *_weak_points(evaluations[judged_on], contract.class_names)],
        ["## What it learned from", "", *_data(contract, config, manifest)],
        ["## Limits", "", *_limits(contract)],
        ["## How to ask it", "", *_usage(version, contract, config)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _purpose(contract: ModelContract, config: TrainConfig) -> list[str]:
    view = contract.view
    model = ", ".join(f"{name} {value}" for name, value in flatten(config.model.model_dump()).items())
    cut = "its centre square" if view.mode == "crop" else "the whole picture squashed to a square"
    return [
        f"Tells which of {len(contract.class_names)} classes a video shows. It sees {contract.num_frames} frames, "
        f"equally spaced from the first to the last, of each {cut} of {view.size_px} px, and no sound.",
        "",
        f"Network: {model}.",
        "",
        f"Trained by run {config.run}, code {contract.code_version}; every setting is in the run's config.yaml.",
    ]


def _figures(evaluations: Mapping[str, Evaluation]) -> list[str]:
    used_for = {"val": "chose the epoch, so it flatters", "test": "chose nothing"}
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
    confused = [f"{class_names[row]} for {class_names[column]} ({wrong[row, column]})" for row, column in most]
    return [*lines, "", f"Most often taken: {', '.join(confused) or 'nothing for anything else'}."]


def _data(contract: ModelContract, config: TrainConfig, manifest: Manifest) -> list[str]:
    counts = class_counts(manifest)
    shown = [[name, *map(str, of_splits)] for name, of_splits in list(counts.items())[:NUM_NAMED]]
    totals = [f"{split.num_samples:,}" for split in manifest.splits.values()]
    more = len(counts) - len(shown)
    rest = [[f"and {more} more: data/class_balance.csv", *("" for _ in totals)]] if more else []
    return [
        f"Shards {config.shards}, manifest {contract.manifest_sha256[:12]}; of {config.epochs} epochs the best by val "
        f"{config.select_by} was kept.",
        "",
        *_table(["class", *manifest.splits], [*shown, *rest, ["**all**", *totals]]),
    ]


def _limits(contract: ModelContract) -> list[str]:
    return [
        f"- It knows these {len(contract.class_names)} classes and no other: a video of something else gets one of "
        "them too, at times with a high probability.",
        f"- {contract.num_frames} frames stand for the whole video: what happens between two of them in a long "
        "one is not seen. Cut long videos to the action first.",
        "- Its figures hold for videos like those it was measured on: other cameras, places and light were not tried.",
        "- A probability is the model's own opinion; the calibration error above says how far off it is on average.",
    ]


def _usage(version: str, contract: ModelContract, config: TrainConfig) -> list[str]:
    shape = f"(B, {contract.num_frames}, 3, {contract.view.size_px}, {contract.view.size_px})"
    return [
        "```",
        f"python -m serve --registered-model {config.registered_model}    # the version that carries @champion",
        "curl --data-binary @video.mp4 'http://127.0.0.1:8000/v1/predict?top_k=5'",
        "```",
        "",
        f'In Python, `mlflow.pytorch.load_model("models:/{config.registered_model}/{version}")` maps uint8 RGB '
        f"`{shape}` to logits; the model normalises by itself, and its metadata hold the classes in their order.",
    ]


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [names, ["---", *("---:" for _ in names[1:])], *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
