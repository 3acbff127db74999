"""What a training tells its user: a line per epoch, and closing words that hold for what was measured."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion

from configs.model import ModelConfig
from configs.train import AugmentConfig, TrainConfig
from packer.shards.manifest import Manifest, read_manifest
from trainer.driver.closing import Closing
from trainer.driver.epoch_lines import EpochLines, duration
from trainer.driver.release import Release
from trainer.evaluation.metrics import PREDICTION, Evaluation
from trainer.tracking.compare import Paired
from trainer.tracking.registry import Promotion
from trainer.tracking.store import without_password
from trainer.worker.epoch import EpochFigures, EpochSums
from trainer.worker.events import Began, EpochEnded, EpochsDone, Event, EventReader, Halted, Stepped, tell
from trainer.worker.outcome import Outcome

CONFIG = TrainConfig(run="one", epochs=10, patience_epochs=3)


def epoch(number: int, macro_f1: float, train_top1: float = 0.8) -> EpochFigures:
    val = {"macro_f1": macro_f1, "top1": macro_f1, "top5": 0.9, "loss": 1 - macro_f1}
    return EpochFigures(number, 7 * number, 0.5, train_top1, val)


def evaluation(num_right: int, num_clips: int) -> Evaluation:
    """Returns an evaluation of 2 classes; three clips of four are of the second one."""
    records = np.zeros(num_clips, PREDICTION)
    records["label"] = np.arange(num_clips) % 4 > 0
    records["predicted"] = records["label"]
    records["predicted"][num_right:] = 1 - records["label"][num_right:]
    return Evaluation(records, 2)


@pytest.fixture(scope="module")
def manifest(packed: Path) -> Manifest:
    """17 clips of class a, 14 of class b."""
    return read_manifest(packed)


def closing(
    manifest: Manifest, *history: EpochFigures, best: int, test: Evaluation | None = None, num_val: int = 400
) -> Closing:
    evaluations = {"val": evaluation(num_val // 2, num_val)} | ({"test": test} if test else {})
    outcome = Outcome(False, 7 * best, history[best - 1].val, {}, evaluations, history=history)
    return Closing(CONFIG, manifest, outcome, "make ui", release=None, paired=None)


def test_events_arrive_whole_and_in_order(tmp_path: Path) -> None:
    events: list[Event] = [
        Began(0, 0.0),
        Stepped(10, 0.5, 1.25, 80.0),
        EpochEnded(epoch(1, 0.5), is_best=True, seconds=3.5, share=1.0),
        EpochsDone(),
        Halted(12, is_saved=False),
    ]
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    tell(path, events[0])
    assert not path.exists()  # the driver creates it
    assert reader.read() == []
    path.touch()
    for event in events:
        tell(path, event)
        assert reader.read() == [event]
    with path.open("ab") as file:
        file.write(b'{"event": "EpochsDo')
        file.flush()
        assert reader.read() == []
        file.write(b'ne"}\n')
    assert reader.read() == [EpochsDone()]
    assert EventReader(path).read() == [*events, EpochsDone()]


def test_sums_of_two_ranks_are_those_of_one() -> None:
    sums = EpochSums()
    sums.add(0.5, 8, 4)
    sums.add(1.5, 8, 8)
    assert (sums.train_loss, sums.train_top1) == (1.0, 0.75)
    assert (EpochSums().train_loss, EpochSums().train_top1) == (0.0, 0.0)


def shown(num_classes: int, *events: Event, config: TrainConfig = CONFIG) -> list[str]:
    stream = io.StringIO()
    lines = EpochLines(config, num_classes, 56, stream)
    for event in events:
        lines.show(event)
    return stream.getvalue().splitlines()


def test_an_epoch_is_one_line_that_fits_a_terminal() -> None:
    lines = shown(
        10,
        Began(0, 0.0),
        EpochEnded(epoch(1, 0.5), is_best=True, seconds=30.0, share=1.0),
        EpochEnded(epoch(2, 0.4), is_best=False, seconds=40.0, share=1.0),
        Began(17, 2.43),
        EpochEnded(epoch(3, 0.6), is_best=True, seconds=9.0, share=0.5),
        EpochEnded(epoch(10, 0.6), is_best=False, seconds=9.0, share=1.0),
    )
    assert lines == [
        "training: 10 epochs of 56 clips, 32 per step",
        "epoch  1/10  loss 0.500  val macro_f1 0.500 best  top1 0.500  30.0 s  4 min left",
        "epoch  2/10  loss 0.500  val macro_f1 0.400       top1 0.400  40.0 s  5 min left",
        "resumed at step 17: 2.43 of 10 epochs are done",
        "epoch  3/10  loss 0.500  val macro_f1 0.600 best  top1 0.600  9.0 s  4 min left",
        "epoch 10/10  loss 0.500  val macro_f1 0.600       top1 0.600  9.0 s",
    ]
    assert max(map(len, lines)) <= 80


def test_top5_is_shown_of_many_classes_only() -> None:
    ended = EpochEnded(epoch(1, 0.5), is_best=True, seconds=1.0, share=1.0)
    assert ["top5 0.900" in shown(number, ended)[0] for number in (2, 10, 11, 400)] == [False, False, True, True]
    (line,) = shown(2, ended, config=CONFIG.model_copy(update={"select_by": "top1"}))
    assert line.count("top1") == 1


def test_lines_within_an_epoch_come_only_if_it_takes_long() -> None:
    now = [100.0]
    stream = io.StringIO()
    lines = EpochLines(CONFIG, 2, 56, stream, clock=lambda: now[0])
    for seconds, position in ((5, 0.02), (35, 0.05), (40, 0.12), (45, 0.3), (69, 0.39), (71, 0.4)):
        now[0] = 100.0 + seconds
        lines.show(Stepped(1, position, 0.5, 4.0))
    assert stream.getvalue().splitlines() == [
        "epoch  1/10   12% done  loss 0.500  4 clips/s  12 s to its end",
        "epoch  1/10   40% done  loss 0.500  4 clips/s  8 s to its end",
    ]


@pytest.mark.parametrize(("seconds", "words"), [(7, "7 s"), (89, "89 s"), (91, "2 min"), (7500, "2 h 5 min")])
def test_a_duration_is_told_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_good_run_is_told_in_a_few_lines(manifest: Manifest) -> None:
    assert closing(manifest, epoch(1, 0.5), epoch(2, 0.96), best=2, test=evaluation(38, 40)).lines() == [
        "run one is done: epoch 2 of 2 was the best, val macro_f1 0.960; ended early: no better one for 3 epochs "
        "(patience_epochs)",
        "test accuracy: 95.0% of 40 clips, 95% interval 83.5% to 98.6%; always answering b, the commonest there: 75.0%",
        "look: make ui",
    ]


def test_a_figure_that_guessing_reaches_is_told_as_such(manifest: Manifest) -> None:
    lines = closing(manifest, epoch(1, 0.5), best=1, test=evaluation(3, 8)).lines()
    assert any(line.startswith("  not surely better than guessing") for line in lines)


def test_val_stands_in_for_a_test_split_and_says_so(manifest: Manifest) -> None:
    lines = closing(manifest, epoch(1, 0.5), best=1).lines()
    assert lines[1].startswith("val accuracy: 50.0% of 400 clips")
    assert "optimistic" in lines[2]


@pytest.mark.parametrize(
    ("values", "num_val", "hint"),
    [
        ([0.5, 0.9, 0.7, 0.7, 0.7], 400, "val macro_f1 fell after epoch 2, to 0.700; the best epoch is kept"),
        ([0.5, 0.9, 0.88, 0.88, 0.88], 400, ""),
        ([0.5, 0.9, 0.8, 0.8, 0.8], 20, ""),  # may be chance: two of twenty clips
    ],
)
def test_a_fall_after_the_best_epoch_is_told(manifest: Manifest, values: list[float], num_val: int, hint: str) -> None:
    history = [epoch(number, value) for number, value in enumerate(values, start=1)]
    lines = closing(manifest, *history, best=2, num_val=num_val).lines()
    assert [line for line in lines if " fell " in line] == (
        [f"{hint}. Try a lower --optimizer.learning-rate"] if hint else []
    )


def test_clips_learnt_by_heart_are_told_with_options_that_are_not_used_yet(manifest: Manifest) -> None:
    made = closing(manifest, epoch(1, 0.7, train_top1=0.99), best=1)
    (line,) = [line for line in made.lines() if line.startswith("  more clips help most")]
    assert line.endswith("otherwise try --augment.min-scale 0.7, --augment.mixup 0.2, --model.dropout 0.5")
    used = {"augment": AugmentConfig(min_scale=0.7, mixup=0.2), "model": ModelConfig(dropout=0.5)}
    made = replace(made, config=CONFIG.model_copy(update=used))
    (line,) = [line for line in made.lines() if line.startswith("  more clips help most")]
    assert line.endswith("otherwise try --optimizer.label-smoothing 0.1")
    assert not any("by heart" in line for line in closing(manifest, epoch(1, 0.7, train_top1=0.8), best=1).lines())


def test_the_last_epoch_as_the_best_asks_for_more(manifest: Manifest) -> None:
    history = [epoch(number, number / 20) for number in range(1, 11)]
    (line,) = [line for line in closing(manifest, *history, best=10).lines() if "--epochs" in line]
    assert line == "the last epoch was the best, so more may help: --epochs 20, as a new run"


FORMER = ModelVersion("clipstream", "2", 0, run_id="r")


@pytest.mark.parametrize(
    ("promotion", "paired", "told"),
    [
        (Promotion(True, None), None, ["registered clipstream version 3: it is @champion, as the first one"]),
        (
            Promotion(True, FORMER, 0.4),
            Paired("test", 45, 3, 5),
            [
                "registered clipstream version 3: @champion moves to it from version 2 (val macro_f1 0.500, against "
                "0.400 of version 2)",
                "  of the same 45 test clips, 5 are right in version 3 only, 3 in version 2 only: that may be chance "
                "(p = 0.73)",
            ],
        ),
        (
            Promotion(True, FORMER, 0.4, is_measured_anew=True),
            None,
            [
                "registered clipstream version 3: @champion moves to it from version 2 (val macro_f1 0.500, against "
                "0.400 of version 2)",
                "  version 2 was measured on this pack's val split for this: its figure is too good if it was trained "
                "on any of these clips",
            ],
        ),
        (
            Promotion(False, FORMER, 0.6),
            Paired("test", 45, 12, 1),
            [
                "registered clipstream version 3: @champion stays version 2 (val macro_f1 0.500, against 0.600 of "
                "version 2)",
                "  of the same 45 test clips, 1 are right in version 3 only, 12 in version 2 only: that is hardly "
                "chance (p = 0.0034)",
            ],
        ),
        (
            Promotion(False, FORMER, None, "it has other classes"),
            None,
            [
                "registered clipstream version 3: @champion stays version 2, which cannot be compared: it has other "
                "classes; to change it by hand: python -m trainer promote 3"
            ],
        ),
    ],
)
def test_the_champions_fate_is_told(
    manifest: Manifest, promotion: Promotion, paired: Paired | None, told: list[str]
) -> None:
    made = closing(manifest, epoch(1, 0.5), best=1, test=evaluation(38, 40))
    lines = replace(made, release=Release("3", promotion), paired=paired).lines()
    assert lines[-2 - len(told) : -2] == told
    assert lines[-2:] == ["look: make ui", "serve @champion: python -m serve"]
    assert len(lines) <= 12


def test_an_address_is_shown_without_its_password() -> None:
    assert without_password("https://user:secret@tracking:5000/x") == "https://tracking:5000/x"
    assert without_password("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"
