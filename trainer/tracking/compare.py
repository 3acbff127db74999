"""Two runs side by side: which settings differ, which figures they reached, and whether the difference could be chance.

MLflow's page shows settings and curves next to each other. It cannot tell whether one run gets more clips right by luck
alone. The predictions that each run keeps can tell, if both runs were measured on the same clips. Nothing is written.
"""

import csv
import io
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from configs.section import UsageError
from trainer.tracking.errors import store_answers
from trainer.tracking.pages import comparison_page
from trainer.tracking.store import check_store

logger = logging.getLogger(__name__)

NUM_CLASSES_SHOWN = 10
"""Most classes whose gains are listed, the largest first."""
SURE_BELOW = 0.05
"""A difference that chance makes more rarely than this counts as one."""
SPLITS = ("val", "test")
FIGURES = ("top1", "top5", "macro_f1", "mean_class_accuracy", "loss", "ece")
"""In the order in which they are shown; others follow."""
_OWN_PARAMS = {"run", "runs"}
"""Params that differ between any two runs."""

Predictions = Mapping[str, tuple[str, str]]
"""(True class, predicted class) by the sample's key."""


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs."""

    run: Run
    predictions: Mapping[str, Predictions]
    """By split; empty for a run that did not reach its end."""
    figures: Mapping[str, str]
    """Of the best epoch, whose model is kept."""

    @property
    def settings(self) -> dict[str, str]:
        """The run's params, and the versions of its code and its data."""
        params = {name: value for name, value in self.run.data.params.items() if name not in _OWN_PARAMS}
        datasets = self.run.inputs.dataset_inputs if self.run.inputs else []
        digests = [f"{one.dataset.name} {one.dataset.digest[:12]}" for one in datasets]
        return params | {"code": self.run.data.tags.get("code_version", ""), "data": ", ".join(digests)}


def compare(uri: str, names: Sequence[str]) -> str:
    """Returns the comparison of two runs as text.

    Args:
        uri: MLflow's store.
        names: Names or ids of the two runs.

    Raises:
        UsageError: There is no store, it does not answer, or a name fits no run or several.
    """
    check_store(uri)
    client = MlflowClient(tracking_uri=uri)
    with store_answers(uri):
        one, other = (_open(client, _find(client, name)) for name in names)
    lines = [
        *_side_by_side("settings that differ", names, one.settings, other.settings, differing_only=True),
        *_side_by_side("figures of the epoch that was kept", names, one.figures, other.figures),
    ]
    for split in SPLITS:
        lines += _compare(split, names, one.predictions.get(split, {}), other.predictions.get(split, {}))
    page = comparison_page(uri, [one.run.info, other.run.info])
    return "\n".join([*lines, f"curves: {'' if uri.startswith('http') else '`python -m trainer ui`, then '}{page}"])


def verdict(probability: float) -> str:
    """Says in words what a probability of `mcnemar` means."""
    return "is hardly chance" if probability < SURE_BELOW else "may be chance"


def mcnemar(num_only_one: int, num_only_other: int) -> float:
    """Returns how probable it is that two equally good runs differ at least this much (exact McNemar test, two-sided).

    10 clips against 2 give 0.039.

    Args:
        num_only_one: Clips that only the first run gets right.
        num_only_other: Clips that only the second run gets right.

    Source: McNemar 1947; exact by the binomial distribution.
    """
    total = num_only_one + num_only_other
    tail = sum(math.comb(total, count) for count in range(min(num_only_one, num_only_other) + 1))
    return min(1.0, 2 * tail / (1 << total))


@dataclass(frozen=True)
class Paired:
    """How two runs did on the same clips of one split."""

    split: str
    num_clips: int
    num_only_one: int
    """Clips that only the first run gets right."""
    num_only_other: int

    @property
    def chance(self) -> float:
        """How probable at least such a difference is if both are equally good; see `mcnemar`."""
        return mcnemar(self.num_only_one, self.num_only_other)


def paired(uri: str, run_ids: Sequence[str]) -> Paired | None:
    """Returns how two runs did on the test split, otherwise on val.

    Args:
        uri: MLflow's store.
        run_ids: Ids of the two runs.

    Returns:
        None if they share the clips of neither split, or if the store does not have both runs and their files.
    """
    client = MlflowClient(tracking_uri=uri)
    try:
        runs = [_open(client, client.get_run(run_id)) for run_id in run_ids]
    except (MlflowException, OSError) as error:
        logger.info("runs not compared reason=%s", error)
        return None
    for split in ("test", "val"):
        one, other = (run.predictions.get(split, {}) for run in runs)
        if one and _are_same_clips(one, other):
            only_one, only_other = _right_in_one(one, other)
            return Paired(split, len(one), len(only_one), len(only_other))
    return None


def _are_same_clips(one: Predictions, other: Predictions) -> bool:
    return {key: true for key, (true, _) in one.items()} == {key: true for key, (true, _) in other.items()}


def _right_in_one(one: Predictions, other: Predictions) -> tuple[list[str], list[str]]:
    """Returns the keys of the clips that only the first run gets right, and of those that only the second does."""
    only_one, only_other = (
        [key for key in one if _is_right(first[key]) and not _is_right(second[key])]
        for first, second in ((one, other), (other, one))
    )
    return only_one, only_other


def _find(client: MlflowClient, name: str) -> Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    filters = (f"attributes.{field} = '{name}'" for field in ("run_name", "run_id"))
    runs = [run for condition in filters for run in client.search_runs(experiments, condition)]
    if not runs:
        raise UsageError(f"there is no run {name} in {client.tracking_uri}: `python -m trainer ui` shows them all")
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs)
        raise UsageError(f"{len(runs)} runs are called {name}: give one of the ids {ids}")
    return runs[0]


def name_of_run(uri: str, name: str) -> str:
    """Returns the name of the run that has a name or an id.

    Args:
        uri: MLflow's store.
        name: Name or id.

    Raises:
        UsageError: There is no store, it does not answer, or the name fits no run or several.
    """
    check_store(uri)
    with store_answers(uri):
        found: str = _find(MlflowClient(tracking_uri=uri), name).info.run_name
    return found


def _open(client: MlflowClient, run: Run) -> ComparedRun:
    predictions = {}
    for split in SPLITS:
        path = f"evaluation/{split}/predictions.csv"
        if path in {file.path for file in client.list_artifacts(run.info.run_id, f"evaluation/{split}")}:
            with TemporaryDirectory() as folder:
                text = Path(client.download_artifacts(run.info.run_id, path, folder)).read_text(encoding="utf-8")
            rows = csv.DictReader(io.StringIO(text, newline=""))
            # Runs from before `python -m serve score` had the same columns call the second one `true`.
            predictions[split] = {row["key"]: (row.get("true_class") or row["true"], row["predicted"]) for row in rows}
    return ComparedRun(run, predictions, _figures(client, run))


def _figures(client: MlflowClient, run: Run) -> dict[str, str]:
    """Returns the figures of the epoch whose model was kept; on test only that one was measured."""
    split_of = {name: split for split in SPLITS for name in run.data.metrics if name.startswith(f"{split}_")}
    curves = [name for name, split in split_of.items() if split == "val"]
    by_step = {
        name: {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        for name in ("epoch", *curves)
    }
    # The step at the end of the best epoch, found as the training finds it: the first of the best rank.
    rank, losses = by_step.get(f"val_{run.data.params.get('select_by', '')}", {}), by_step.get("val_loss", {})
    kept = max(sorted(rank), key=lambda step: (rank[step], -losses.get(step, math.inf)), default=-1)
    epochs = {"epoch": f"{by_step['epoch'][kept]:.0f} of {run.data.params.get('epochs')}"} if by_step["epoch"] else {}
    names = sorted(split_of, key=lambda name: _place(name, split_of[name]))
    return epochs | {name: f"{by_step.get(name, {}).get(kept, run.data.metrics[name]):.4f}" for name in names}


def _place(name: str, split: str) -> tuple[int, int, str]:
    """Returns a key that sorts figures as people read them: by split, the most asked for first."""
    figure = name.removeprefix(f"{split}_")
    return SPLITS.index(split), FIGURES.index(figure) if figure in FIGURES else len(FIGURES), figure


def _side_by_side(
    head: str, names: Sequence[str], one: Mapping[str, str], other: Mapping[str, str], differing_only: bool = False
) -> list[str]:
    fields = [name for name in {**one, **other} if not differing_only or one.get(name) != other.get(name)]
    rows = [(f"  {field}", one.get(field, "-"), other.get(field, "-")) for field in fields]
    return [*_columns([(head, *names), *rows]), *([] if rows else ["  none"]), ""]


def _compare(split: str, names: Sequence[str], one: Predictions, other: Predictions) -> list[str]:
    if not one or not other:
        return []
    if not _are_same_clips(one, other):
        return [f"{split}: the two runs were measured on different clips, so their figures cannot be compared", ""]
    only_one, only_other = _right_in_one(one, other)
    probability = mcnemar(len(only_one), len(only_other))
    lines = [
        f"{split}, {len(one)} clips: right in {names[0]} only: {len(only_one)}, in {names[1]} only: {len(only_other)}",
        f"  that {verdict(probability)}: two equally good runs differ at least this much with probability "
        f"{probability:.2g}",
    ]
    gains = {true: 0 for true, _ in one.values()}
    for keys, step in ((only_one, -1), (only_other, 1)):
        for key in keys:
            gains[one[key][0]] += step
    most = sorted((name for name in gains if gains[name]), key=lambda name: -abs(gains[name]))[:NUM_CLASSES_SHOWN]
    changes = ", ".join(f"{name} {gains[name]:+d}" for name in most)
    return [
        *lines,
        *([f"  right in {names[1]}, more or fewer than in {names[0]}, by class: {changes}"] if changes else []),
        "",
    ]


def _is_right(classes: tuple[str, str]) -> bool:
    true, predicted = classes
    return true == predicted


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
