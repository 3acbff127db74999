"""Packs from a table of labels: the right frames under the right labels, whatever stops them or comes later."""

import csv
import io
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from packer.shards.manifest import read_manifest
from packer.shards.sample import read_members
from tests.support.killing import kill_often
from tests.support.packs import assert_same_pack, refused, rows_of, run
from tests.support.videos import read_number, write_numbered_video

FPS = 10
NUM_FRAMES = 40
FAST = ["--clip.num-frames=3", "--clip.short-side-px=64", "--shards.max-samples=4", "--workers=1"]
TRAIN_ONLY = ["--split.val-fraction=0", "--split.test-fraction=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of four seconds in folders of days; every frame shows a number that no other frame shows."""
    folder = tmp_path_factory.mktemp("labels") / "videos"
    for number in range(12):
        path = folder / f"day{number % 3}/cam {number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"g": "10", "bf": "2"}
        write_numbered_video(path, NUM_FRAMES, fps=FPS, first_number=NUM_FRAMES * number, options=options)
    return folder


def source(number: int) -> str:
    return f"day{number % 3}/cam {number}.mp4"


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def segment_rows(per_video: int = 3) -> list[dict[str, object]]:
    """Rows of one second each, alternately run and walk."""
    return [
        {
            "path": source(n),
            "label": ("run", "walk")[(n + place) % 2],
            "start": place,
            "end": f"00:0{place + 1}",
        }
        for n in range(12)
        for place in range(per_video)
    ]


def shown(folder: Path, row: dict[str, Any]) -> list[int]:
    """Returns the numbers that the frames of a sample show."""
    with (folder / row["shard"]).open("rb") as file:
        file.seek(row["offset"])
        stored = read_members(file.read(row["num_bytes"]))
    pictures = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in stored.jpegs]
    return [read_number(np.asarray(picture)) for picture in pictures]


def test_a_clip_shows_its_segment_and_nothing_else(data: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "labels.csv", segment_rows())
    assert run(data, tmp_path / "shards", "--labels", table, *FAST) == 0
    rows = {row["source"]: row for row in rows_of(tmp_path / "shards")}
    assert len(rows) == 36
    for number in range(12):
        for place in range(3):
            row = rows[f"{source(number)}#t={place},{place + 1}"]
            indices = [10 * place, 10 * place + 5, 10 * place + 9]
            assert row["frame_indices"] == indices
            assert shown(tmp_path / "shards", row) == [NUM_FRAMES * number + index for index in indices]
            assert row["class_name"] == ("run", "walk")[(number + place) % 2]
            assert (row["start_seconds"], row["end_seconds"], row["num_segment_frames"]) == (place, place + 1, 10)
            assert row["frame_times_seconds"] == [index / FPS for index in indices]
            assert row["num_frames"] == NUM_FRAMES
    splits: dict[str, set[str]] = {}
    for row in rows.values():
        splits.setdefault(row["source"].partition("#")[0], set()).add(row["split"])
    assert all(len(of_file) == 1 for of_file in splits.values())
    assert {split for of_file in splits.values() for split in of_file} == {"train", "val", "test"}


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_all_kinds_of_tables_give_one_pack(data: Path, tmp_path: Path, extension: str) -> None:
    rows = [{"filename": source(n), "category": "ab"[n % 2], "subject": f"s{n // 2}"} for n in range(12)]
    table = tmp_path / f"labels.{extension}"
    if extension == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    elif extension == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = {"csv": ",", "tsv": "\t"}[extension]
        table.write_text("\n".join(mark.join(map(str, row)) for row in (list(rows[0]), *(r.values() for r in rows))))
    assert run(data, tmp_path / "shards", "--labels", table, *FAST) == 0
    found = {row["source"]: (row["class_name"], row["split"]) for row in rows_of(tmp_path / "shards")}
    assert {name: label for name, (label, _) in found.items()} == {source(n): "ab"[n % 2] for n in range(12)}
    assert all(found[source(n)][1] == found[source(n + 1)][1] for n in range(0, 12, 2))


def test_the_splits_of_the_labels_decide(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("Training", "validation", "testing")
    rows: list[dict[str, object]] = [
        {"path": source(n), "label": "ab"[n // 6], "split": words[n % 3]} for n in range(12)
    ]
    table = write_table(tmp_path / "labels.csv", rows)
    assert run(data, tmp_path / "shards", "--labels", table, *FAST) == 0
    assert read_manifest(tmp_path / "shards").config.split.method == "labels"
    meaning = {"Training": "train", "validation": "val", "testing": "test"}
    found = {row["source"]: row["split"] for row in rows_of(tmp_path / "shards")}
    assert found == {source(n): meaning[words[n % 3]] for n in range(12)}
    capsys.readouterr()
    assert run(data, tmp_path / "other", "--labels", table, *FAST, "--split.method=stratified") == 0
    assert "those of the labels are not used, because the options say otherwise" in capsys.readouterr().out
    rows[0]["group"] = rows[1]["group"] = "one site"
    message = refused([data, tmp_path / "third", "--labels", write_table(table, rows), *FAST], capsys)
    assert "would be in two splits" in message


def test_a_dry_run_tells_what_is_wrong_with_a_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        *({"path": source(n), "label": "ab"[n % 2], "start": 0, "end": 1} for n in range(10)),
        {"path": source(0), "label": "a", "start": 0, "end": 1},
        {"path": "day0/gone.mp4", "label": "a"},
        {"path": source(1), "label": "B ", "start": 2, "end": 3},
        {"path": source(2), "label": "a", "start": 3, "end": 3},
        {"path": source(3), "label": "a", "start": 0, "end": 1},
    ]
    table = write_table(tmp_path / "labels.csv", rows)
    assert run(data, tmp_path / "shards", "--labels", table, *FAST, *TRAIN_ONLY, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "15 rows, read as table" in out
    assert "1 row (day0/gone.mp4) without a file" in out
    assert "2 files (day1/cam 10.mp4, day2/cam 11.mp4) without a row: not packed" in out
    assert "'B' and 'b' differ in case, spaces or accents only" in out
    assert "1 video (day0/cam 0.mp4#t=0,1) in several equal rows: packed once" in out
    assert "1 row (day2/cam 2.mp4#t=3,3) with no segment of a video: rejected" in out
    assert "2 rows (day0/cam 3.mp4#t=0,1) with two labels for one video: rejected" in out
    assert not (tmp_path / "shards").exists()


def test_a_segment_outside_its_video_is_rejected_and_listed(data: Path, tmp_path: Path) -> None:
    rows = segment_rows()
    rows += [{"path": source(0), "label": "run", "start": 4, "end": 5}]  # the last frame is shown at 3.9
    rows += [{"path": source(0), "label": "run", "start": 3.95, "end": 9}]
    rows += [{"path": source(0), "label": "run", "start": 3.9, "end": 9}]
    table = write_table(tmp_path / "labels.csv", rows)
    assert run(data, tmp_path / "shards", "--labels", table, *FAST, "--max-rejected-fraction=0.5") == 0
    rejected = pq.read_table(tmp_path / "shards/rejected.parquet").to_pylist()
    assert {(row["source"], row["reason"]) for row in rejected} == {
        (f"{source(0)}#t=4,5", "bad_segment"),
        (f"{source(0)}#t=3.95,9", "bad_segment"),
    }
    (last,) = [row for row in rows_of(tmp_path / "shards") if row["source"] == f"{source(0)}#t=3.9,9"]
    assert last["frame_indices"] == [39, 39, 39]


def test_a_stopped_pack_of_segments_comes_out_the_same(data: Path, tmp_path: Path) -> None:
    rows = segment_rows()
    random.Random(3).shuffle(rows)
    options = [*FAST[:-1], "--labels", str(write_table(tmp_path / "labels.csv", rows))]
    assert run(data, tmp_path / "whole", *options, "--workers=2") == 0
    kill_often(12, tmp_path / "shards", data, *options)
    run(data, tmp_path / "shards", *options, "--workers=1")
    assert_same_pack(tmp_path / "shards", tmp_path / "whole")


def test_append_adds_new_rows_and_refuses_changed_labels(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "shards"
    table = write_table(tmp_path / "labels.csv", segment_rows(per_video=2))
    assert run(data, target, "--labels", table, *FAST) == 0
    old = {row["key"]: row for row in rows_of(target)}
    write_table(table, [*segment_rows(per_video=3), {"path": source(0), "label": "jump", "start": 3, "end": 4}])
    assert "add new videos by --append" in refused([data, target, "--labels", table, *FAST], capsys)
    assert run(data, target, "--labels", table, *FAST, "--append", *TRAIN_ONLY) == 2  # other settings
    capsys.readouterr()
    write_table(table, segment_rows(per_video=3))
    assert run(data, target, "--labels", table, *FAST, "--append") == 0
    rows = {row["key"]: row for row in rows_of(target)}
    assert len(rows) == 36
    assert {key: rows[key] for key in old} == old
    splits: dict[str, set[str]] = {}
    for row in rows.values():
        splits.setdefault(row["source"].partition("#")[0], set()).add(row["split"])
    assert all(len(of_file) == 1 for of_file in splits.values())
    changed = segment_rows(per_video=3)
    changed[0]["label"] = "walk"
    message = refused([data, target, "--labels", write_table(table, changed), *FAST], capsys)
    assert f"1 video ({source(0)}#t=0,1) labelled otherwise now" in message
    assert f"use `python -m packer relabel {target} --labels FILE` if the new labels are right" in message
    (target / "manifest.json").unlink()
    message = refused([data, target, "--labels", table, *FAST], capsys)
    assert f"use `python -m packer relabel {target} --labels FILE`, once the pack is complete, if" in message


def test_repair_writes_a_damaged_shard_of_segments_again(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    table = write_table(tmp_path / "labels.csv", segment_rows())
    assert run(data, target, "--labels", table, *FAST) == 0
    shutil.copytree(target, tmp_path / "whole")
    shard = sorted(target.glob("train-*.tar"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600] + bytes(100) + whole[700:])
    assert run("verify", target) == 1
    assert run("repair", target, data) == 0
    assert_same_pack(target, tmp_path / "whole")


def test_background_makes_a_class_of_what_is_unlabelled(data: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": source(n), "label": ("run", "walk")[n % 2], "start": 1.5, "end": 2.5} for n in range(12)
    ]
    table = write_table(tmp_path / "labels.csv", rows)
    target = tmp_path / "shards"
    assert run(data, target, "--labels", table, "--labels-background", "nothing", *FAST, *TRAIN_ONLY) == 0
    found = rows_of(target)
    assert Counter(row["class_name"] for row in found) == {"run": 6, "walk": 6, "nothing": 6}
    for row in found:
        assert row["end_seconds"] - row["start_seconds"] == 1
        if row["class_name"] == "nothing":
            assert row["end_seconds"] <= 1.5 or row["start_seconds"] >= 2.5


def test_files_of_equal_stems_and_copies_stay_in_one_split(data: Path, tmp_path: Path) -> None:
    copies = tmp_path / "videos"
    shutil.copytree(data, copies)
    for number in range(0, 12, 2):
        shutil.copy(copies / source(number), copies / f"copy of {number}.mp4")
    rows = segment_rows()
    rows += [{"path": f"copy of {n}.mp4", "label": "walk", "start": 2.5, "end": 3.5} for n in range(0, 12, 2)]
    table = write_table(tmp_path / "labels.csv", rows)
    assert run(copies, tmp_path / "shards", "--labels", table, *FAST) == 0
    found = {row["source"]: row["split"] for row in rows_of(tmp_path / "shards")}
    for number in range(0, 12, 2):
        assert found[f"copy of {number}.mp4#t=2.5,3.5"] == found[f"{source(number)}#t=0,1"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split.method=labels"], "split.method labels is for labels from a file: give --labels PATH too"),
        (["--labels-background=x"], "--labels-background is for labels from a file"),
        (["--labels-format=kinetics"], "--labels-format is for labels from a file"),
        (["--labels=x.csv", "--split.method=folders"], "labels name the classes"),
        (["--labels=x.csv", "--labels-frame-rate=fast"], "must be a number above 0"),
        (["--labels=x.csv", "--split.method=csv"], "lists must name the folder or file"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    data: Path, tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused([data, tmp_path / "shards", *options], capsys)
