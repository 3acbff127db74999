"""`inspect` shows what a pack holds, whether it is small, large or old."""

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from packer.inspection.sheet import write_sheet
from packer.shards.manifest import (
    RejectedRow,
    read_manifest,
    read_rejected,
    write_manifest,
    write_rejected,
    write_samples,
)
from packer.shards.sample import SampleRow
from packer.shards.stored_plan import PLAN
from tests.support.packs import rows_of, run
from tests.support.videos import write_classes

FAST = ["--workers=1", "--clip.num-frames=3", "--max-rejected-fraction=1"]
OF_SEGMENTS = ("start_seconds", "end_seconds", "num_segment_frames", "frame_times_seconds")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    data = write_classes(folder / "data", {"run": 5, "walk": 7}, 30)
    (data / "run/broken.mp4").write_bytes(bytes(2000))
    (data / "run/notes.txt").write_text("a text")
    (data / "walk/video 1.LRV").write_bytes(b"a camera's proxy")
    shutil.copy(data / "walk/video 1.mp4", data / "walk/copy.mp4")
    assert run(data, folder / "shards", *FAST) == 0
    return folder / "shards"


@pytest.fixture
def target(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "shards")


def shown(target: Path, capsys: pytest.CaptureFixture[str], *options: str | Path) -> dict[str, str]:
    """Returns the lines that follow the table of classes, by their first word."""
    lines = printed(target, capsys, *options)
    return {line[:9].strip(): line[10:] for line in lines[lines.index("") + 1 :]}


def printed(target: Path, capsys: pytest.CaptureFixture[str], *options: str | Path) -> list[str]:
    capsys.readouterr()
    assert run("inspect", target, *options) == 0
    return capsys.readouterr().out.splitlines()


def with_segments(target: Path) -> list[dict[str, Any]]:
    """Makes the videos of class run segments of two files, in the index alone; returns the index."""
    rows = rows_of(target)
    times = [  # text of the segment, start, end
        ("0,3.5", 0.0, 3.5),
        ("7/2,4", 3.5, 4.0),
        ("3725", 3725.0, None),
        ("0,2", None, 2.0),
        ("10,20", 10.0, 20.0),
    ]
    for number, row in enumerate(row for row in rows if row["class_name"] == "run"):
        text, start, end = times[number]
        row |= {
            "source": f"long/{'b' if number == 4 else 'a'}.mp4#t={text}",
            "start_seconds": start,
            "end_seconds": end,
            "duration_seconds": 3730.0,
            "num_segment_frames": 10 * (number + 1),
            "frame_times_seconds": [0.0, 1.0, 2.0],
        }
    write_samples(target, [SampleRow.model_validate(row) for row in rows])
    return rows


def test_what_was_packed_rejected_and_set_aside(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(whole, capsys)
    assert found["labels"] == "2 classes, 5 to 8 samples each, median 8"
    assert found["frames"] == "30 to 30 in a video, median 30"
    assert found["groups"] == "1 of several files, 2 to 2 in a group, median 2"
    assert found["damaged"] == "none"
    assert found["rejected"] == "1 not_a_video"
    assert found["set aside"] == "1 not_a_video, 1 proxy, which nobody took for videos"
    assert not {"segments", "lengths", "no file", "sampled"} & found.keys()


def test_segments_are_counted(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_segments(target)
    found = shown(target, capsys)
    assert found["segments"] == "5 of 2 files, 1 to 4 in a file, median 4"
    assert found["lengths"] == "0.5 to 10.0 s in a segment, median 3.5; 10 to 50 frames, median 30"


def test_what_labels_say_is_shown(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"source": "gone.mp4", "class_name": "run", "split": "", "message": "labels.csv:7 names it"}
    rows = [RejectedRow(**row, reason="no_file")] * 2 + [RejectedRow(**row, reason="bad_segment")]
    write_rejected(target, [*read_rejected(target), *rows])
    plan = (target / PLAN).read_text()
    sources = [row["source"] for row in rows_of(target)[:3]]
    groups = f'"groups":{{"{sources[0]}":"x","{sources[1]}":"x","{sources[2]}":"y"}}'.replace("'", '"')
    (target / PLAN).write_text(f"{plan[:-1]},{groups}}}")
    found = shown(target, capsys)
    assert found["no file"] == "2 rows of the labels, whose files the data folder lacked"
    assert found["rejected"] == "1 not_a_video, 1 bad_segment"
    assert found["groups"].endswith("; the labels state 2")


def test_an_older_pack_and_one_without_its_lists(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = {*OF_SEGMENTS, "sampled_by", "damage", "num_concealed_frames", "num_source_sizes", "is_colour_approximate"}
    new |= {"frame_hashes"}
    before = shown(target, capsys)
    table = pq.read_table(target / "samples.parquet")
    pq.write_table(table.drop_columns([*new]), target / "samples.parquet")
    shutil.rmtree(target / ".pack")
    found = shown(target, capsys, "--sheet", target / "sheet.html")
    assert found.pop("sheet").startswith(f"{target / 'sheet.html'} (")
    assert found == {name: text for name, text in before.items() if name in found}
    (target / "rejected.parquet").unlink()
    found = shown(target, capsys)
    assert found["rejected"] == "2 not_a_video, 1 proxy"


def many_classes(target: Path, num_classes: int) -> None:
    """Replaces the index by one of many classes, the first ones with the most samples; they share a sample's place."""
    manifest, rows = read_manifest(target), rows_of(target)
    row = next(row for row in rows if row["split"] == "train")
    names = tuple(f"class {number:03d}" for number in range(num_classes))
    made = [
        SampleRow.model_validate(
            {
                **row,
                "class_name": name,
                "class_index": index,
                "source": f"{name}/{copy}.mp4",
                "source_sha256": hashlib.sha256(f"{name}/{copy}".encode()).hexdigest(),
            }
        )
        for index, name in enumerate(names)
        for copy in range(num_classes - index)
    ]
    write_samples(target, made)
    counts = Counter(row.class_name for row in made)
    split = manifest.splits["train"].model_copy(update={"num_samples": len(made), "num_per_class": dict(counts)})
    write_manifest(target, manifest.model_copy(update={"class_names": names, "splits": {"train": split}}))


def test_many_classes_are_cut_to_the_largest_and_smallest(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many_classes(target, 120)
    lines = printed(target, capsys)
    table = lines[1 : lines.index("")]
    assert [line[:9] for line in table[:10]] == [f"class {number:03d}" for number in range(10)]
    assert table[10] == "... and 100 more (--all)"
    assert [line[:9] for line in table[11:21]] == [f"class {number:03d}" for number in range(110, 120)]
    assert table[21].split() == ["all", str(120 * 121 // 2)]
    assert len([line for line in printed(target, capsys, "--all") if line.startswith("class ")]) == 120
    few = write_sheet(target, target / "sheet.html", 2)
    assert (few.num_clips, few.num_pages) == (2 * 19 + 1, 20 + 3)
    assert "<code>--all</code> shows 100 more" in (target / "sheet.html").read_text()
    every = write_sheet(target, target / "sheet.html", 2, show_all=True)
    assert (every.num_clips, every.num_pages) == (2 * 119 + 1, 120 + 3)
    assert "--all" not in (target / "sheet.html").read_text()
    many_classes(target, 40)
    assert not [line for line in printed(target, capsys) if "more" in line]
