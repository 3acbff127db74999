"""What there is to look at after a training: the right clips are shown, tables and card say what was measured."""

import csv
import io
import math
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from numpy.typing import NDArray
from PIL import Image

from configs.model import ModelConfig
from configs.train import TrainConfig, ViewConfig
from packer.shards.manifest import manifest_sha256, read_manifest, read_samples
from tests.support.registry import MLFLOW_WARNINGS, contract, store_uri
from trainer.driver.release import register_best
from trainer.driver.report import draw_mistakes, report
from trainer.evaluation.contact_sheet import Strip, draw_sheet
from trainer.evaluation.metrics import PREDICTION, Evaluation
from trainer.evaluation.model_card import MAX_DESCRIPTION_CHARACTERS, as_description, write_card
from trainer.evaluation.tables import prediction_table
from trainer.learning.ranks import Ranks
from trainer.model.contract import prediction_columns
from trainer.tracking.registry import Registry
from trainer.tracking.runs import open_run
from trainer.worker.outcome import Outcome
from trainer.worker.parts import eval_loader, train_loader
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]

CONFIG = TrainConfig(
    run="one",
    epochs=1,
    global_batch=8,
    loader_workers=0,
    log_every_steps=1,
    view=ViewConfig(short_side_px=32, size_px=24),
    model=ModelConfig(backbone="narrow", width=8, weights="none", hidden_size=8),
)
NUM_FRAMES = 4
SCALE = 4  # 24 px are shown as 96
HEAD_PX, TEXT_PX, SIDE_PX, MARGIN_PX, GAP_PX = 34, 38, 96, 12, 2


@pytest.fixture(scope="module")
def reported(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[JobSpec, Outcome, Path]:
    """A run that was trained and reported, what it gave, and its artifacts."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reported")
    run_id = open_run(store_uri(folder), CONFIG, folder / "artifacts")
    spec = JobSpec(CONFIG, packed, folder, run_id, store_uri(folder), num_workers=1)
    outcome = Training(spec, Ranks(), torch.device("cpu")).run()
    report(spec, read_manifest(packed), outcome.evaluations)
    register_best(spec, read_manifest(packed), outcome)
    torch.set_num_threads(num_threads)
    return spec, outcome, Path(MlflowClient(spec.tracking_uri).download_artifacts(run_id, ""))


def shown(png: Path | bytes, number: int) -> NDArray[np.uint8]:
    """The frames of a sheet's clip, `(T, 24, 24, 3)`."""
    picture = np.asarray(Image.open(png if isinstance(png, Path) else io.BytesIO(png)))
    top = MARGIN_PX + HEAD_PX + number * (TEXT_PX + SIDE_PX + MARGIN_PX) + TEXT_PX
    lefts = [MARGIN_PX + place * (SIDE_PX + GAP_PX) for place in range(NUM_FRAMES)]
    return np.stack([picture[top : top + SIDE_PX : SCALE, left : left + SIDE_PX : SCALE] for left in lefts])


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_training_clips_are_shown_as_the_model_got_them(reported: tuple[JobSpec, Outcome, Path]) -> None:
    spec, _, folder = reported
    index = Training(spec, Ranks(), torch.device("cpu")).index
    _, loader = train_loader(spec.config, index, 0, Ranks(), torch.device("cpu"))
    clips = next(iter(loader)).clips.permute(0, 1, 3, 4, 2).numpy()
    for number, clip in enumerate(clips):
        assert (shown(folder / "data" / "train_clips.png", number) == clip).all()


def test_mistakes_are_shown_worst_first_as_evaluation_sees_them(
    reported: tuple[JobSpec, Outcome, Path],
) -> None:
    spec, _, _ = reported
    clips = torch.cat([batch.clips[batch.weights > 0] for batch in eval_loader(spec, "val", Ranks())])
    predictions = np.zeros(4, PREDICTION)
    predictions["sample"] = range(4)
    predictions["label"] = [0, 0, 1, 1]
    predictions["predicted"] = [1, 0, 0, 0]
    predictions["probability"] = [0.6, 0.99, 0.9, 0.8]
    png = draw_mistakes(spec, "val", Evaluation(predictions, 2), ("a", "b"))
    for place, sample in enumerate([2, 3, 0]):
        assert (shown(png, place) == clips[sample].permute(0, 2, 3, 1).numpy()).all()
    predictions["predicted"] = predictions["label"]
    sheet = Image.open(io.BytesIO(draw_mistakes(spec, "val", Evaluation(predictions, 2), ("a", "b"))))
    assert sheet.height == MARGIN_PX + HEAD_PX


def test_a_clip_that_can_no_longer_be_read_is_left_out(reported: tuple[JobSpec, Outcome, Path], tmp_path: Path) -> None:
    spec, outcome, _ = reported
    shards = shutil.copytree(spec.shards, tmp_path / "shards")
    predictions = outcome.evaluations["val"].predictions[:3].copy()
    predictions["predicted"] = 1 - predictions["label"]
    predictions["probability"] = 0.9
    whole = draw_mistakes(spec, "val", Evaluation(predictions, 2), ("a", "b"))
    row = read_samples(shards, "val").to_pylist()[1]
    with (shards / row["shard"]).open("r+b") as file:
        file.seek(row["offset"])
        file.write(bytes(512))
    without = draw_mistakes(replace(spec, shards=shards), "val", Evaluation(predictions, 2), ("a", "b"))
    assert [(shown(without, 0) == shown(whole, 0)).all(), (shown(without, 1) == shown(whole, 2)).all()] == [True, True]


def test_every_prediction_is_in_the_table(reported: tuple[JobSpec, Outcome, Path]) -> None:
    spec, outcome, folder = reported
    for split, figures in (("val", outcome.val), ("test", outcome.test)):
        rows = rows_of((folder / "evaluation" / split / "predictions.csv").read_text())
        index = read_samples(spec.shards, split).to_pylist()
        assert [(row["key"], row["source"], row["true_class"]) for row in rows] == [
            (row["key"], row["source"], row["class_name"]) for row in index
        ]
        right = [row["true_class"] == row["predicted"] for row in rows]
        assert sum(right) / len(rows) == pytest.approx(figures["top1"])
        for row, known in zip(rows, index, strict=True):
            of_classes = {name: float(row[f"p_{name}"]) for name in ("a", "b")}
            assert sum(of_classes.values()) == pytest.approx(1, abs=2e-6)
            assert row["predicted"] == max(of_classes, key=of_classes.__getitem__)
            assert float(row["probability"]) == of_classes[row["predicted"]]
            assert math.exp(-float(row["loss"])) == pytest.approx(of_classes[row["true_class"]], abs=1e-4)
            assert (row["num_frames"], row["duration_seconds"]) == (
                str(known["num_frames"]),
                str(known["duration_seconds"]),
            )
        per_class = rows_of((folder / "evaluation" / split / "per_class.csv").read_text())
        assert sum(float(row["f1"]) for row in per_class) / 2 == pytest.approx(figures["macro_f1"], abs=1e-4)


def test_tables_survive_names_with_commas_and_quotes(reported: tuple[JobSpec, Outcome, Path]) -> None:
    spec, outcome, _ = reported
    names = ("run, fast", 'say "hi"')
    evaluation = outcome.evaluations["val"]
    rows = rows_of(prediction_table(evaluation, names, spec.shards, "val"))
    assert {row["true_class"] for row in rows} == set(names)
    assert list(rows[0])[:6] == prediction_columns(names)


def test_a_split_with_too_many_probabilities_keeps_the_highest(reported: tuple[JobSpec, Outcome, Path]) -> None:
    spec, outcome, _ = reported
    names = read_manifest(spec.shards).class_names
    whole = outcome.evaluations["val"]
    rows, all_rows = (
        rows_of(prediction_table(evaluation, names, spec.shards, "val"))
        for evaluation in (replace(whole, probabilities=None), whole)
    )
    assert [name for name in all_rows[0] if name not in rows[0]] == ["p_a", "p_b"]
    assert rows == [{name: row[name] for name in rows[0]} for row in all_rows]


def test_data_and_machine_are_described(reported: tuple[JobSpec, Outcome, Path]) -> None:
    spec, _, folder = reported
    environment = yaml.safe_load((folder / "environment.yaml").read_text())
    assert environment["packages"]["torch"] == version("torch")
    assert environment["num_workers"] == 1
    client = MlflowClient(spec.tracking_uri)
    metrics = client.get_run(spec.run_id).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert 0 < metrics["system/worker_memory_usage_megabytes"] < metrics["system/system_memory_usage_megabytes"]


def test_the_card_is_with_the_version_and_says_what_was_measured(
    reported: tuple[JobSpec, Outcome, Path],
) -> None:
    spec, outcome, folder = reported
    card = (folder / "model_card.md").read_text()
    registry = Registry(spec.tracking_uri, CONFIG.registered_model)
    assert registry.client.get_model_version("clipstream", "1").description == as_description(card)
    assert MlflowClient(spec.tracking_uri).get_run(spec.run_id).data.tags["mlflow.note.content"] == as_description(card)
    assert card.startswith("# clipstream version 1\n")
    for fact in [
        f"**{outcome.test['top1']:.1%} of {outcome.evaluations['test'].num_samples} test clips are right** (95% ",
        f"{outcome.val['macro_f1']:.1%}",
        manifest_sha256(spec.shards)[:12],
        "4 frames",
        "(B, 4, 3, 24, 24)",
        'mlflow.pytorch.load_model("models:/clipstream/1")',
    ]:
        assert fact in card
    registry.describe("1", card * 9)
    shortened = registry.client.get_model_version("clipstream", "1").description
    assert len(shortened) <= MAX_DESCRIPTION_CHARACTERS
    assert shortened.endswith("The rest is in model_card.md among the run's artifacts.\n")


def test_a_card_of_many_classes_fits_the_registry(packed: Path) -> None:
    names = tuple(f"a class with a rather long name {number}" for number in range(400))
    split = read_manifest(packed).splits["val"].model_copy(update={"num_per_class": dict.fromkeys(names, 3)})
    manifest = read_manifest(packed).model_copy(update={"class_names": names, "splits": {"train": split, "val": split}})
    predictions = np.zeros(1200, PREDICTION)
    predictions["label"], predictions["predicted"] = np.arange(1200) % 400, np.arange(1200) // 3
    card = write_card("7", contract(names), CONFIG, manifest, {"val": Evaluation(predictions, 400)})
    assert len(card) < MAX_DESCRIPTION_CHARACTERS
    assert "and 390 more" in card
    assert "## Where it is weak (val)" in card


@pytest.mark.parametrize(("size_px", "side_px"), [(24, 96), (64, 128), (112, 112), (224, 160)])
def test_frames_are_shown_as_they_are_or_in_whole_multiples(size_px: int, side_px: int) -> None:
    frames = np.full((16, size_px, size_px, 3), 7, np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(draw_sheet("head", [Strip("title", "note", frames)]))))
    assert (picture == 7).all(axis=2).sum() == 8 * side_px**2
