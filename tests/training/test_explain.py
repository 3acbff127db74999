"""Explanations point to what the class really hangs on, and labels that are wrong are found and taken back."""

import csv
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from torch import nn

from configs.model import ModelConfig
from configs.section import UsageError
from configs.train import OptimizerConfig, ViewConfig
from packer.__main__ import main as packer
from packer.shards.manifest import manifest_sha256, read_manifest, read_samples
from tests.support.clues import COLOURS, NUM_FRAMES, SIDE_PX, draw_clip, number_of, place_of, write_clues
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.runs import spec_maker, train_on_one_thread
from trainer.__main__ import main as trainer
from trainer.driver.run_folder import new_record, read_record, save_config
from trainer.explain.answers import contrasted, explain_clips, worst_mistakes
from trainer.explain.attribution import Attribution, attribute
from trainer.explain.clips import find_clip
from trainer.explain.finished_run import FinishedRun, find_folder, load_run, trainings_of
from trainer.explain.suspicion import suspected_classes, suspicion
from trainer.model.cnn_rnn import CnnRnn
from trainer.worker.spec import JobSpec

pytestmark = MLFLOW_WARNINGS

NUM_PER_CLASS = 40
NUM_FLIPPED = 3
"""Clips of test whose label says the other class."""
CNN_RNN = ModelConfig(backbone="narrow", width=8, weights="none", hidden_size=16, dropout=0.0)
NAMES = list(COLOURS)


def other_class(name: str) -> str:
    return NAMES[1 - NAMES.index(name)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clues(tmp_path_factory.mktemp("clues") / "data", NUM_PER_CLASS)


@pytest.fixture(scope="module")
def shards(data: Path) -> Path:
    """A pack of the clues, in which some labels of test are wrong."""
    folder = data.parent / "shards"
    options = ["--workers=1", f"--clip.num-frames={NUM_FRAMES}", f"--clip.short-side-px={SIDE_PX}"]
    assert packer([str(data), str(folder), *options]) == 0
    lines = [f"{source},{other_class(number_of(source)[0])}" for source in sources(folder, "test")[:NUM_FLIPPED]]
    table = data.parent / "wrong.csv"
    table.write_text("\n".join(["path,label", *lines]))
    assert packer(["relabel", str(folder), "--labels", str(table)]) == 0
    return folder


@pytest.fixture(scope="module")
def spec(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """A finished training on the clues, with all that a driver leaves in its folder."""
    make = spec_maker(tmp_path_factory.mktemp("runs"), shards)
    spec = make(
        shards,
        epochs=16,
        global_batch=8,
        micro_batch=0,
        view=ViewConfig(short_side_px=SIDE_PX, size_px=SIDE_PX),
        model=CNN_RNN,
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    spec = replace(spec, config=spec.config.model_copy(update={"shards": str(shards)}))
    train_on_one_thread(spec)
    save_config(spec.run_folder, spec.config)
    record = new_record(spec.config, manifest_sha256(shards))
    record.model_copy(update={"run_id": spec.run_id, "tracking_uri": spec.tracking_uri}).save(spec.run_folder)
    return spec


@pytest.fixture
def run(spec: JobSpec, one_thread: None) -> FinishedRun:
    return load_run(spec.run_folder)


def sources(folder: Path, split: str) -> list[str]:
    found: list[str] = read_samples(folder, split)["source"].to_pylist()
    return found


def assert_points_to_the_clue(model: nn.Module, num_clips: int) -> None:
    """The evidence for the right class lies in the frames and the corner of the patch."""
    in_frames, in_corner, hits = [], [], []
    for number in range(1000, 1000 + num_clips):  # the training saw none of these
        class_name = NAMES[number % 2]
        target = NAMES.index(class_name)
        found = attribute(model, draw_clip(class_name, number), target, 1 - target, num_steps=16)
        place = place_of(class_name, number)
        in_frames.append(float(np.abs(found.shares[place[0]]).sum()))
        evidence = found.maps.clip(min=0)
        in_corner.append(float(evidence[place].sum() / evidence.sum()))
        corner = np.zeros(evidence.shape, bool)
        corner[place] = True
        hits.append(bool(corner.flat[evidence.argmax()]))
    assert np.mean(in_frames) > 0.8  # by chance 0.5
    assert np.mean(in_corner) > 0.5  # by chance 0.04
    assert np.mean(hits) > 0.9


def test_evidence_lies_where_and_when_the_class_is_shown(run: FinishedRun) -> None:
    assert_points_to_the_clue(run.model, 12)


def small_3d_cnn() -> CnnRnn:
    """A model with a 3-D CNN that has one moment left of eight frames, as torchvision's have, trained on the clues.

    Torchvision's own take minutes to learn even these; where their features come from makes no difference.
    """
    torch.manual_seed(0)
    model = CnnRnn(
        ModelConfig(backbone="r3d_18", weights="none", rnn="none", pooling="mean", dropout=0.0), 2, NUM_FRAMES
    )
    channels = (3, 8, 16, 512)
    model.backbone = nn.Sequential(
        *(
            layer
            for inside, outside in pairwise(channels)
            for layer in (nn.Conv3d(inside, outside, 3, stride=2, padding=1), nn.BatchNorm3d(outside), nn.ReLU())
        )
    )
    model = model.channels_last()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        numbers = range(8 * step, 8 * step + 8)
        clips_BTHWC = torch.from_numpy(np.stack([draw_clip(NAMES[number % 2], number) for number in numbers]))
        labels_B = torch.tensor([number % 2 for number in numbers])
        loss = nn.functional.cross_entropy(model(clips_BTHWC.permute(0, 1, 4, 2, 3)), labels_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_evidence_of_a_3d_cnn_lies_there_too(one_thread: None) -> None:
    assert_points_to_the_clue(small_3d_cnn(), 6)


def test_evidence_adds_up_to_what_the_clip_changes(run: FinishedRun) -> None:
    clip = draw_clip("red", 2000)
    found = attribute(run.model, clip, 1, 0, num_steps=64)
    plain = np.broadcast_to(clip.mean(axis=(0, 1, 2)), clip.shape)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([clip, plain]).astype(np.float32)).permute(0, 1, 4, 2, 3)
        preferences = run.model(pixels) @ torch.tensor([-1.0, 1.0])
    assert found.weights.sum() == pytest.approx(float(preferences[0] - preferences[1]), rel=0.05)
    assert found.maps.sum(axis=(1, 2)) == pytest.approx(found.weights, rel=0.2, abs=0.1)
    assert np.abs(found.shares).sum() == pytest.approx(1)


def test_a_clip_without_any_evidence_has_no_shares() -> None:
    nothing = Attribution(0, 1, np.zeros((2, 4, 4), np.float32), np.zeros(2, np.float32))
    assert nothing.shares.tolist() == [0, 0]


def test_a_prediction_is_compared_with_the_label_or_the_second_class() -> None:
    probabilities = np.array([0.2, 0.5, 0.3])
    assert contrasted(probabilities, None) == (1, 2)
    assert contrasted(probabilities, 1) == (1, 2)
    assert contrasted(probabilities, 0) == (1, 0)


def test_nearest_train_clips_are_of_the_class_that_is_shown(run: FinishedRun) -> None:
    clips = [find_clip(run, source) for split in ("train", "test") for source in sources(run.spec.shards, split)[:4]]
    for explained in explain_clips(run, clips, num_nearest=5, num_steps=4):
        similarities = [one.similarity for one in explained.neighbours]
        assert similarities == sorted(similarities, reverse=True)
        assert explained.clip.source not in {one.source for one in explained.neighbours}
        shown = NAMES.index(number_of(explained.clip.source)[0])
        assert [one.label for one in explained.neighbours].count(shown) >= 4


def test_features_of_the_train_split_are_computed_once(run: FinishedRun) -> None:
    clips = [find_clip(run, sources(run.spec.shards, "test")[0])]
    first = next(explain_clips(run, clips, num_nearest=1, num_steps=4))
    (features,) = (run.spec.run_folder / "explain").glob("train-features-*.npy")
    written = features.stat().st_mtime_ns
    again = next(explain_clips(run, clips, num_nearest=1, num_steps=4))
    assert features.stat().st_mtime_ns == written
    assert again.neighbours[0].source == first.neighbours[0].source
    assert not [path for path in features.parent.iterdir() if path.name.startswith(".")]
    other = replace(run, weights_sha256="of other weights")
    next(explain_clips(other, clips, num_nearest=1, num_steps=4))
    assert [*features.parent.glob("train-features-*.npy")] != [features]  # they took its place
    assert not features.exists()


def test_a_clip_is_found_by_source_key_name_or_file(run: FinishedRun, data: Path, tmp_path: Path) -> None:
    row = read_samples(run.spec.shards, "train").to_pylist()[3]
    copy = shutil.copy(data / row["source"], tmp_path / "copy.mp4")
    names = (row["source"], row["key"], Path(row["source"]).name, str(data / row["source"]), str(copy))
    clips = [find_clip(run, name) for name in names]
    for clip in clips:
        assert (clip.source, clip.split, clip.sample, clip.label) == (row["source"], "train", 3, row["class_index"])
        assert np.array_equal(clip.frames, clips[0].frames)


def test_a_file_that_was_never_packed_is_seen_as_if_it_were(run: FinishedRun, data: Path, tmp_path: Path) -> None:
    packed = find_clip(run, sources(run.spec.shards, "test")[2])
    path = tmp_path / "new.mp4"
    empty_box = b"\0\0\0\x08free"  # another digest, the same frames
    path.write_bytes((data / packed.source).read_bytes() + empty_box)
    clip = find_clip(run, str(path))
    assert (clip.split, clip.sample, clip.label, clip.source) == ("", -1, None, str(path))
    assert np.array_equal(clip.frames, packed.frames)


def test_what_is_no_clip_is_told(run: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.mp4 is neither a clip of .* nor a file: .*/nowhere\.mp4 does"):
        find_clip(run, "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UsageError, match=r"text\.mp4 gives no clip: "):
        find_clip(run, str(tmp_path / "text.mp4"))


def test_the_worst_mistakes_are_the_labels_that_are_wrong(run: FinishedRun) -> None:
    wrong = worst_mistakes(run, "auto", 12)
    assert {clip.source for clip in wrong[:NUM_FLIPPED]} == set(sources(run.spec.shards, "test")[:NUM_FLIPPED])
    assert {clip.split for clip in wrong} == {"test"}
    with pytest.raises(UsageError, match=r"no clip of the val split of .* is wrong"):
        worst_mistakes(run, "val", 1)
    with pytest.raises(UsageError, match="has no sample in its other split"):
        worst_mistakes(run, "other", 1)


def test_the_command_leaves_a_page_in_the_folder_and_in_mlflow(
    spec: JobSpec, one_thread: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", spec.tracking_uri)
    options = ["--runs", str(spec.run_folder.parent), "--worst", "1", "--steps", "4", "--nearest", "2"]
    assert trainer(["explain", spec.run_id, *options]) == 0
    shown = capsys.readouterr().out
    source, answer, frames, nearest, page = shown.splitlines()
    label = other_class(number_of(source)[0])
    assert answer.startswith(f"  wrong: predicted {number_of(source)[0]} ")
    assert f"label {label} " in answer
    assert frames.startswith("  frames that spoke most for ")
    assert nearest.startswith("  nearest train clips: 2 ")
    path = Path(page.removeprefix("  page: "))
    assert path.parent == spec.run_folder / "explain"
    with Image.open(path) as image:
        assert image.width > 1300
        assert image.height <= 2000
    artifacts = MlflowClient(spec.tracking_uri).list_artifacts(spec.run_id, "explain")
    assert [file.path for file in artifacts] == [f"explain/{path.name}"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["explain", "nowhere"], "there is no run nowhere in"),
        (["explain", "{name}", "--shards", "{other}"], "is not the pack that run {name} was trained on (manifest "),
        (["review", "{name}", "--shards", "a,b"], "shards (a,b) names 2 packs, but there are 1 trainings: one each"),
        (
            ["explain", "{name}", "--clip", "a.mp4", "--runs", "{empty}"],
            "does not hold run {name} (run.json is missing)",
        ),
    ],
)
def test_what_cannot_be_done_is_told(
    spec: JobSpec,
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", spec.tracking_uri)
    monkeypatch.setenv("CLIPSTREAM_TRAIN_RUNS", str(spec.run_folder.parent))
    names = {"name": spec.run_folder.name, "other": packed, "empty": tmp_path}
    assert trainer([argument.format(**names) for argument in command]) == 2
    assert message.format(**names) in capsys.readouterr().err


def test_suspicious_is_what_is_as_probable_as_clips_of_that_class_are() -> None:
    of_class_1 = np.array([0.1, 0.9, 0.8, 0.6])
    probabilities, labels = np.stack([1 - of_class_1, of_class_1], axis=1), np.array([0, 0, 1, 1])
    assert suspected_classes(probabilities, labels).tolist() == [-1, 1, -1, -1]
    assert suspicion(probabilities, labels) == pytest.approx([0.1, 0.9, 0.2, 0.4])
    # A class that no label names here cannot be suspected, however probable it is.
    three = np.array([[0.2, 0.1, 0.7], [0.3, 0.6, 0.1]])
    assert suspected_classes(three, np.array([0, 1])).tolist() == [-1, -1]


def test_wrong_labels_are_listed_first_and_taken_back(
    spec: JobSpec, shards: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user does it: review, correct the column label, relabel."""
    table = tmp_path / "review.csv"
    options = ["--runs", str(spec.run_folder.parent), "--out", str(table)]
    assert trainer(["review", spec.run_folder.name, *options]) == 0
    shown = capsys.readouterr().out
    rows = list(csv.DictReader(table.read_text().splitlines()))
    flipped = set(sources(shards, "test")[:NUM_FLIPPED])
    assert {row["path"] for row in rows[: len(flipped)]} == flipped
    for row in rows[: len(flipped)]:
        assert row["predicted"] == number_of(row["path"])[0] != row["label"]
        assert float(row["suspicion"]) > 0.8
    num_val, num_test = (read_manifest(shards).splits[split].num_samples for split in ("val", "test"))
    assert shown.startswith(f"{num_val + num_test} clips reviewed, {len(rows)} of them may have a wrong label\n")
    num_agreed = num_val + num_test - NUM_FLIPPED
    assert f"the model agrees with {num_agreed / (num_val + num_test):.0%} of the labels" in shown
    assert f"{2 * NUM_PER_CLASS - num_val - num_test} clips not reviewed: they are in train" in shown
    with Image.open(tmp_path / "review.png") as image:
        assert image.height <= 2000

    for row in rows:
        row["label"] = number_of(row["path"])[0]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    corrected = shutil.copytree(shards, tmp_path / "corrected")
    assert packer(["relabel", str(corrected), "--labels", str(table)]) == 0
    for split in ("train", "val", "test"):
        for row in read_samples(corrected, split).to_pylist():
            assert row["class_name"] == number_of(row["source"])[0]


def test_a_cross_validation_is_reviewed_as_a_whole_and_explained_in_parts(
    spec: JobSpec, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(spec.run_folder)
    assert record is not None
    parent = tmp_path / "cv"
    for folder, values in [
        (parent, {"run_id": "parent", "manifest_sha256": "of all packs"}),
        (tmp_path / "cv-1", {"parent_run_id": "parent"}),
        (tmp_path / "cv-2", {"parent_run_id": "parent"}),
    ]:
        if folder == parent:
            folder.mkdir()
        else:
            shutil.copytree(spec.run_folder, folder)
        record.model_copy(update=values).save(folder)
    assert trainings_of(find_folder("cv", str(tmp_path))) == [tmp_path / "cv-1", tmp_path / "cv-2"]
    assert trainer(["explain", "cv", "--runs", str(tmp_path)]) == 2
    assert "has several models: give one of cv-1, cv-2" in capsys.readouterr().err
    assert trainer(["review", "cv", "--runs", str(tmp_path), "--shown", "0"]) == 0
    splits = read_manifest(spec.shards).splits
    num_covered = splits["val"].num_samples + splits["test"].num_samples
    shown = capsys.readouterr().out
    assert f"{num_covered} clips reviewed" in shown  # each once, though both trainings cover it
    assert str(parent / "review.csv") in shown
    assert "picture" not in shown
