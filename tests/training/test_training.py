"""One rank's training: a run that is stopped and resumed anywhere equals a run that was not stopped."""

import logging
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from packer.shards.manifest import read_samples
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.runs import CPU, EPOCH_ENDS, NUM_STEPS, MakeSpec, assert_as_whole, curve, newest, train
from trainer.learning.evaluate import evaluate
from trainer.learning.ranks import Ranks
from trainer.schedule.rows import dropout_seed
from trainer.stream.batch import Batch
from trainer.worker.events import Began, EventReader, Halted
from trainer.worker.outcome import Outcome
from trainer.worker.parts import eval_loader, open_checkpoints
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training, TrainingError

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]


def test_an_uninterrupted_run(whole_run: tuple[JobSpec, Outcome]) -> None:
    spec, outcome = whole_run
    state = newest(spec)
    assert (state["global_step"], state["position"], state["num_bad"]) == (NUM_STEPS, 3 * 21, 0)
    assert outcome.stopped is False
    for name in ("train_loss", "train_top1", "learning_rate", "grad_norm", "clips_per_second", "data_wait_share"):
        points = curve(spec, name)
        assert [step for step, _ in points] == list(range(1, NUM_STEPS + 1))
        assert all(math.isfinite(value) for _, value in points)
    assert curve(spec, "epoch") == [(step, epoch) for epoch, step in enumerate(EPOCH_ENDS, start=1)]
    assert [step for step, _ in curve(spec, "test_top1")] == [NUM_STEPS]
    rates = [value for _, value in curve(spec, "learning_rate")]
    assert max(rates) <= 1e-2
    assert rates[0] < rates[1]
    assert rates[-1] < rates[-2] < rates[3]


def test_the_best_epoch_is_the_one_of_the_metric_and_is_tested(whole_run: tuple[JobSpec, Outcome]) -> None:
    spec, outcome = whole_run
    metrics = dict(curve(spec, "val_macro_f1"))
    losses = dict(curve(spec, "val_loss"))
    best = max(EPOCH_ENDS, key=lambda step: (metrics[step], -losses[step]))
    assert outcome.best_step == best
    assert outcome.val["macro_f1"] == metrics[best]
    assert set(open_checkpoints(spec).steps()) == {best, *EPOCH_ENDS[-2:]}
    training = Training(spec, Ranks(), CPU)
    training.model.load_state_dict(open_checkpoints(spec).load(best)["model"])
    figures = evaluate(training.model.eval(), eval_loader(spec, "test", Ranks()), 2, Ranks(), CPU).figures()
    assert outcome.test == figures
    assert {name: value for name, value in figures.items() if curve(spec, f"test_{name}") != [(16, value)]} == {}


@pytest.mark.parametrize(("ahead", "loss", "stays"), [(0.1, 9.0, True), (0.0, 0.0, True), (0.0, 9.0, False)])
@pytest.mark.parametrize("metric", ["macro_f1", "top1"])
def test_a_later_epoch_is_the_best_only_if_it_is_better(
    make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome], metric: str, ahead: float, loss: float, stays: bool
) -> None:
    """An epoch as good by the metric is better if its loss is lower."""
    spec = make_spec(select_by=metric)
    reached = max(value for step, value in curve(whole_run[0], f"val_{metric}") if step > EPOCH_ENDS[0])
    spec.stop_file.touch()
    for _ in range(EPOCH_ENDS[0] + 1):  # a start that finds an evaluation due does it first
        train(spec)
    spec.stop_file.unlink()
    state = open_checkpoints(spec).load(EPOCH_ENDS[0])
    assert state["best_step"] == EPOCH_ENDS[0]
    state["best_figures"] = {"macro_f1": 0.0, "top1": 0.0, metric: reached + ahead, "loss": loss}
    open_checkpoints(spec).save(state, EPOCH_ENDS[0], EPOCH_ENDS[0])
    outcome = train(spec)
    assert (outcome.best_step == EPOCH_ENDS[0]) is stays
    assert (EPOCH_ENDS[0] in open_checkpoints(spec).steps()) is stays
    assert outcome.val[metric] == reached + ahead


def test_a_run_stopped_after_every_step_is_the_whole_run(
    make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome]
) -> None:
    spec = make_spec()
    spec.stop_file.touch()
    positions = []
    while (outcome := train(spec)).stopped:
        assert outcome.test == {}
        positions.append(newest(spec)["position"])
    assert positions == [min(4 * step, 63) for step in range(1, NUM_STEPS + 1)]
    assert_as_whole(spec, whole_run, outcome)


def test_a_stop_during_an_evaluation_is_seen_at_its_next_batch(
    make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome]
) -> None:
    spec = make_spec()
    spec.events_file.touch()
    training = Training(spec, Ranks(), CPU)
    seen = []

    def stopped_on_the_way(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            seen.append(batch)
            spec.stop_file.touch()
            yield batch

    training.val_loader = stopped_on_the_way(training.val_loader)
    assert training.run().stopped
    assert len(seen) == 1
    state = newest(spec)
    assert (state["global_step"], state["is_evaluation_due"], state["best_step"]) == (EPOCH_ENDS[0], True, None)
    assert EventReader(spec.events_file).read()[-1] == Halted(EPOCH_ENDS[0], is_saved=True)
    spec.stop_file.unlink()
    assert_as_whole(spec, whole_run, train(spec))


@pytest.mark.parametrize("lost", [1, 2])
def test_steps_that_were_lost_are_taken_again_and_logged_once(
    make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome], lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a kill -9: the curves are ahead of the checkpoints, of which the newest may be torn."""
    spec = make_spec(checkpoint_interval_seconds=1e-9)
    train(spec)
    steps = open_checkpoints(spec).steps()
    assert steps[:2] == [16, 15]
    if steps[-1] in (15, 16):  # the best was among the newest two: leave one to start from
        lost = 1
    for step in steps[:lost]:
        (spec.run_folder / f"checkpoints/step-{step:010d}/state.pt").write_bytes(b"torn")
    spec.events_file.touch()
    outcome = train(spec)
    assert EventReader(spec.events_file).read()[0] == Began(steps[lost], steps[lost] * 4 / 21)
    assert caplog.text.count("checkpoint ignored") >= lost
    assert_as_whole(spec, whole_run, outcome)


def test_dropout_differs_by_seed_step_and_rank_and_never_changes() -> None:
    seeds = [dropout_seed(*key) for key in product(range(3), range(100), range(4))]
    assert len(set(seeds)) == len(seeds)
    assert dropout_seed(0, 0, 0) == 16732062099500631801


def test_a_run_is_prolonged_by_more_epochs(make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome]) -> None:
    spec = make_spec()
    shutil.copytree(whole_run[0].run_folder / "checkpoints", spec.run_folder / "checkpoints")
    longer = replace(spec, config=spec.config.model_copy(update={"epochs": 4}))
    train(longer)
    # The padded last batch of the third epoch is not used again.
    assert [step for step, _ in curve(longer, "train_loss")] == list(range(17, 23))
    assert newest(longer)["position"] == 84


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # however few cores there are
def test_loader_workers_change_nothing(make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome]) -> None:
    spec = make_spec(loader_workers=2)
    assert_as_whole(spec, whole_run, train(spec))


def test_points_are_means_over_the_steps_between_them(make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome]) -> None:
    spec = make_spec(log_every_steps=5, epochs=3)
    train(spec)
    every = dict(curve(whole_run[0], "train_loss"))
    points = curve(spec, "train_loss")
    assert [step for step, _ in points] == [5, 10, 15]
    assert points[0][1] == pytest.approx(sum(every[step] for step in range(1, 6)) / 5)


def break_samples(shards: Path, numbers: list[int]) -> None:
    rows = read_samples(shards, "train").to_pylist()
    for row in (rows[number] for number in numbers):
        with (shards / row["shard"]).open("r+b") as file:
            file.seek(row["offset"] + row["member_offsets"][1])
            file.write(bytes(8))


def test_too_many_unreadable_samples_stop_the_run(make_spec: MakeSpec, packed: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    break_samples(shards, [0, 7, 13, 14])
    spec = make_spec(shards, max_bad_fraction=0.05)
    message = (
        r"2 samples could not be read, more than max_bad_fraction \(0.05\) of the split: check the shards with "
        "`python -m packer verify`"
    )
    with pytest.raises(TrainingError, match=message):
        train(spec)


def test_a_few_unreadable_samples_are_counted_and_named(
    make_spec: MakeSpec, packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    break_samples(shards, [0, 7])
    spec = make_spec(shards, max_bad_fraction=0.1)
    train(spec)
    assert newest(spec)["num_bad"] == 2 * 3
    assert curve(spec, "num_bad_samples")[-1] == (16, 6)
    skipped = [record.getMessage() for record in caplog.records if "sample skipped" in record.getMessage()]
    assert len(skipped) == 6
    for row in (read_samples(shards, "train").to_pylist()[number] for number in (0, 7)):
        assert sum(row["key"] in message and row["shard"] in message for message in skipped) == 3


class Repair(logging.Handler):
    """Repairs the storage after the log has said so many times that a checkpoint could not be written."""

    def __init__(self, spec: JobSpec, num_failures: int) -> None:
        super().__init__()
        self.checkpoints = open_checkpoints(spec).folder
        self.checkpoints.touch()  # a file where the folder should be
        self.num_failures = num_failures
        self.num_seen = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("checkpoint not written, will be tried again reason="):
            self.num_seen += 1
            if self.num_seen == self.num_failures:
                self.checkpoints.unlink()


@pytest.mark.parametrize("num_failures", [1, 2, 8])
def test_a_storage_that_fails_for_a_while_costs_nothing(
    make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome], num_failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-epoch the training goes on; at the end of an epoch, here after five failures, it waits."""
    monkeypatch.setattr("trainer.worker.checkpoint.RETRY_SECONDS", 0.01)
    spec = make_spec(checkpoint_interval_seconds=1e-9)
    repair = Repair(spec, num_failures)
    logging.getLogger("trainer.worker.checkpoint").addHandler(repair)
    outcome = train(spec)
    logging.getLogger("trainer.worker.checkpoint").removeHandler(repair)
    assert repair.num_seen == num_failures
    assert_as_whole(spec, whole_run, outcome)


def test_a_storage_that_fails_for_long_ends_the_run_at_the_end_of_an_epoch(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.worker.checkpoint.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("trainer.worker.training.NUM_STORAGE_TRIES", 3)
    spec = make_spec()
    open_checkpoints(spec).folder.touch()
    with pytest.raises(OSError, match="took no checkpoint in 3 tries at the end of an epoch"):
        train(spec)
    assert caplog.text.count("checkpoint not written") == 1 + 3
