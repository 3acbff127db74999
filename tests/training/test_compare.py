"""Two runs side by side, in a real MLflow store."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from scipy.stats import binomtest

from configs.section import UsageError
from configs.train import OptimizerConfig, TrainConfig
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from trainer.__main__ import main
from trainer.tracking.compare import compare, mcnemar
from trainer.tracking.run_log import RunLog
from trainer.tracking.runs import open_run

pytestmark = MLFLOW_WARNINGS

Rows = list[tuple[str, str, str]]
"""Key, true class and predicted class of each clip."""


def table(rows: Rows) -> str:
    lines = [f'"clips/{key}, one.mp4",{true},{predicted},0.9,{key}' for key, true, predicted in rows]
    return "\n".join(["source,true_class,predicted,probability,key", *lines, ""])


def older_table(rows: Rows) -> str:
    """The same as runs have it from before the tables of runs and of `python -m serve score` had the same columns."""
    lines = [f"{key},s,{true},{predicted}" for key, true, predicted in rows]
    return "\n".join(["key,source,true,predicted", *lines, ""])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


def add_run(
    store: Path, name: str, learning_rate: float, predictions: str | None, top1: float = 0.5, best: str = "best/"
) -> str:
    config = TrainConfig(run=name, optimizer=OptimizerConfig(learning_rate=learning_rate))
    run_id = open_run(store_uri(store), config, store / "artifacts")
    log = RunLog(store_uri(store), run_id)
    log.metrics({"test_top1": top1, "train_loss": 1.0}, 3)
    if predictions is not None:
        log.artifact("evaluation/test/predictions.csv", predictions)
    log.close()
    return run_id


def test_settings_figures_and_clips_are_compared(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = add_run(store, "one", 0.1, older_table([("k1", "a", "a"), ("k2", "a", "b"), ("k3", "b", "b")]), 2 / 3)
    other = add_run(store, "other", 0.2, table([("k1", "a", "a"), ("k2", "a", "a"), ("k3", "b", "a")]), 2 / 3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(store))
    capsys.readouterr()
    assert main(["compare", "one", other]) == 0
    text, other_output = capsys.readouterr()
    assert other_output == ""
    settings, figures = text.split("\n\n")[:2]
    assert settings.splitlines()[1].split() == ["optimizer.learning_rate", "0.1", "0.2"]
    assert len(settings.splitlines()) == 2
    assert figures.splitlines()[1].split() == ["test_top1", "0.6667", "0.6667"]
    assert len(figures.splitlines()) == 2
    assert f"test, 3 clips: right in one only: 1, in {other} only: 1\n" in text
    assert "  that may be chance: two equally good runs differ at least this much with probability 1\n" in text
    assert f"right in {other}, more or fewer than in one, by class: a +1, b -1" in text
    assert unquote(text.strip()).endswith(f'runs=["{one}","{other}"]&experiments=["1"]&workflowType=machine_learning')


def shrunk(line: str) -> str:
    return re.sub("  +", "  ", line.strip())


def test_val_figures_are_those_of_the_epoch_that_is_kept(store: Path) -> None:
    for name in ("curve", "flat"):
        log = RunLog(store_uri(store), add_run(store, name, 0.1, None))
        epochs = [(0.4, 0.9, 0.3), (0.8, 0.6, 0.7), (0.8, 0.5, 0.6), (0.8, 0.5, 0.1), (0.5, 0.1, 0.9)]
        for epoch, (macro_f1, loss, top1) in enumerate(epochs, 1):
            figures = {"val_macro_f1": macro_f1, "val_loss": loss, "val_top1": top1, "epoch": epoch}
            log.metrics(figures, 10 * epoch)
        log.close()
    text = compare(store_uri(store), ["curve", "flat"])
    lines = text.partition("figures of the epoch that was kept")[2].partition("\n\n")[0].splitlines()[1:]
    assert [line.split("  ")[:3] for line in map(shrunk, lines)] == [
        ["epoch", "3 of 20", "3 of 20"],
        ["val_top1", "0.6000", "0.6000"],
        ["val_macro_f1", "0.8000", "0.8000"],
        ["val_loss", "0.5000", "0.5000"],
        ["test_top1", "0.5000", "0.5000"],
    ]


def test_equal_runs_without_predictions_have_nothing_to_compare(store: Path) -> None:
    add_run(store, "finished", 0.1, table([("k1", "a", "a")]))
    add_run(store, "unfinished", 0.1, None)
    text = compare(store_uri(store), ["finished", "unfinished"])
    assert "  none\n" in text
    assert "right in" not in text


def test_figures_of_other_clips_do_not_compare(store: Path) -> None:
    add_run(store, "k1", 0.1, table([("k1", "a", "a")]))
    add_run(store, "k2", 0.1, table([("k2", "a", "a")]))
    text = compare(store_uri(store), ["k1", "k2"])
    assert "test: the two runs were measured on different clips, so their figures cannot be compared" in text


def test_unknown_and_ambiguous_names_are_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [add_run(store, "twice", 0.1, None) for _ in range(2)]
    with pytest.raises(UsageError, match="there is no run absent in sqlite"):
        compare(store_uri(store), ["absent", ids[0]])
    with pytest.raises(UsageError, match="2 runs are called twice: give one of the ids") as refused:
        compare(store_uri(store), [ids[0], "twice"])
    assert all(one in str(refused.value) for one in ids)
    assert "  none\n" in compare(store_uri(store), ids)
    for option in ("-h", "--help"):
        assert main(["compare", option]) == 0
        assert "usage: python -m trainer compare RUN_A RUN_B\n" in capsys.readouterr().out
    assert main(["compare", "one"]) == 2
    assert "compare needs two runs by name or id" in capsys.readouterr().err


def test_chance_is_that_of_the_binomial_test() -> None:
    for one in range(12):
        for other in range(12):
            wanted = binomtest(one, one + other).pvalue if one + other else 1.0
            assert mcnemar(one, other) == pytest.approx(wanted)
