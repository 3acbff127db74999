"""Each format of labels: a file as the tool or the dataset writes it, and the very rows that it must give.

The sample files follow the source that each test names.
"""

import contextlib
import copy
import json
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from configs.section import UsageError
from packer.labels.read import FORMATS, read_labels
from packer.labels.rows import LabelRow, Labels
from packer.video.segment import Segment

SAMPLES = Path(__file__).parent / "label_formats"
RATE_OF = {"label_studio.json": Fraction(25), "label_studio_min.json": Fraction(25)}
DAMAGE = [text.encode() for text in ("", "\0", '"', ",", "\n", " ", "[", "}", "-9", "\t", ";", "e99", "#", "\u00e9")]
NUMBERS = ("classes", "the labels are numbers: --labels-classes FILE gives the classes their names")


def read(name: str, format_name: str = "auto", classes: str = "", frame_rate: Fraction | None = None) -> Labels:
    names = SAMPLES / classes if classes else None
    return read_labels(SAMPLES / name, format_name, classes=names, frame_rate=frame_rate)


def read_text(folder: Path, name: str, text: str, format_name: str = "auto") -> Labels:
    (folder / name).write_text(text, encoding="utf-8")
    return read_labels(folder / name, format_name, classes=None, frame_rate=None)


def refusal(name: str, format_name: str = "auto", classes: str = "", frame_rate: Fraction | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read(name, format_name, classes, frame_rate)
    return str(caught.value)


def seconds(start: str, end: str | None = None) -> Segment:
    return Segment(Fraction(start), None if end is None else Fraction(end))


def frames(start: int, end: int) -> Segment:
    return Segment(Fraction(start), Fraction(end), "frames")


def test_mmaction2_list_of_videos() -> None:
    """Source: MMAction2 1.2.0, mmaction/datasets/video_dataset.py."""
    labels = read("mmaction2_videos.txt")
    assert labels.format_name == "mmaction2"
    assert labels.rows == (
        LabelRow("mmaction2_videos.txt:1", "some/path/000.mp4", "1"),
        LabelRow("mmaction2_videos.txt:2", "some/path/001.mp4", "1"),
        LabelRow("mmaction2_videos.txt:3", "some/path/with space 002.mp4", "2"),
        LabelRow("mmaction2_videos.txt:4", "some/path/-3B32lodo2M.mp4", "0"),
    )
    assert not labels.has_splits
    assert labels.notes == (NUMBERS,)


def test_mmaction2_list_of_frame_folders() -> None:
    """Source: MMAction2 1.2.0, mmaction/datasets/rawframe_dataset.py."""
    labels = read("mmaction2_rawframes.txt")
    assert labels.format_name == "mmaction2"
    assert [(row.path, row.label, row.segment) for row in labels.rows] == [
        ("some/directory-1", "1", None),
        ("some/directory-2", "1", None),
        ("some/directory-3", "2", None),
    ]


def test_class_files_name_the_numbers_of_lists() -> None:
    """Sources: tools/data/kinetics/label_map_k400.txt of MMAction2 (from 0), and classInd.txt of UCF101 (from 1)."""
    labels = read("mmaction2_videos.txt", classes="class_names.txt")
    names = ["air drumming", "air drumming", "answering questions", "abseiling"]
    assert [row.label for row in labels.rows] == names
    assert not labels.notes
    assert refusal("mmaction2_videos.txt", classes="classInd.txt") == (
        "mmaction2_videos.txt:4 has label 0, but classInd.txt names the classes 1 to 3: give the class file that "
        "belongs to the list; lines without numbers count from 0"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("k400.csv", "id,name\n0,abseiling\n1,air drumming\n2,answering questions\n"),
        ("classInd.txt", "0 abseiling\r\n1 air drumming\r\n2 answering questions\r\n"),
        ("labels.json", '{"abseiling": "0", "air drumming": "1", "answering questions": "2"}'),
        ("names.json", '{"0": "abseiling", "1": "air drumming", "2": "answering questions"}'),
        ("list.json", '["abseiling", "air drumming", "answering questions"]'),
    ],
)
def test_class_files_come_in_several_forms(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    labels = read_labels(SAMPLES / "mmaction2_videos.txt", "auto", classes=tmp_path / name, frame_rate=None)
    assert [row.label for row in labels.rows][2:] == ["answering questions", "abseiling"]


def test_class_file_with_one_number_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("0 abseiling\n0 air drumming\n")
    with pytest.raises(UsageError, match="gives the number 0 or the class 'air drumming' twice"):
        read_labels(SAMPLES / "mmaction2_videos.txt", "auto", classes=tmp_path / "names.txt", frame_rate=None)


def test_mmaction2_lists_with_several_labels_or_offsets_are_refused(tmp_path: Path) -> None:
    assert refusal("mmaction2_with_offset.txt").startswith(
        "mmaction2_with_offset.txt:1 has several numbers (12 163 3): labels of several classes, and folders with an "
        "offset, cannot be read"
    )
    assert ":1 has several numbers (1 3 5)" in refusal("mmaction2_multi_class.txt", "mmaction2")
    with pytest.raises(UsageError, match=r"test.txt:1 has no label: a line must be `path label`"):
        read_text(tmp_path, "test.txt", "some/path/000.mp4\n", "mmaction2")


def test_mmaction2_list_may_have_another_delimiter_or_names(tmp_path: Path) -> None:
    labels = read_text(tmp_path, "train.csv", "a/x 1.mp4,3\na/y.mp4,0\n")
    assert labels.format_name == "mmaction2"
    assert [(row.path, row.label) for row in labels.rows] == [("a/x 1.mp4", "3"), ("a/y.mp4", "0")]
    labels = read_text(tmp_path, "train.txt", "a/x 1.mp4 walk\na/y.mp4 run\n", "mmaction2")
    assert [(row.path, row.label) for row in labels.rows] == [("a/x 1.mp4", "walk"), ("a/y.mp4", "run")]


@pytest.mark.parametrize(
    "line",
    [
        "_-Z6wFjXtGQ,0902,0.063,0.049,0.524,0.996,80,0",
        "aerobic_gymnastics/v_yaKOumdXwbU_c019.mp4,447,0.118,0.636,0.352,0.754,1,0",
    ],
)
def test_lists_of_boxes_are_not_taken_for_lists_of_videos(tmp_path: Path, line: str) -> None:
    """Sources: AVA 2.1, MultiSports 1.1."""
    with pytest.raises(UsageError, match=r"boxes.csv has no (column path|header)"):
        read_text(tmp_path, "boxes.csv", f"{line}\n{line}\n")


def test_lists_that_two_formats_read_alike_are_read(tmp_path: Path) -> None:
    labels = read_text(tmp_path, "list.txt", "a/x.mp4 3\na/y.mp4 0\n")
    assert labels.format_name == "mmaction2"
    assert ("format", "mmaction2 and dali fit, and give the same rows") in labels.notes
    assert labels.rows == read_text(tmp_path, "list.txt", "a/x.mp4 3\na/y.mp4 0\n", "dali").rows


def test_kinetics_400() -> None:
    """Source: Crawler/Kinetics/data/kinetics-400_val.csv of activitynet/ActivityNet at 82304fa."""
    labels = read("kinetics-400_val.csv")
    assert labels.format_name == "kinetics"
    assert labels.has_splits
    assert labels.notes == ()
    where = "kinetics-400_val.csv"
    assert labels.rows == (
        LabelRow(
            f"{where}:2",
            "0wR5jVB-WPk",
            "abseiling",
            "val",
            segment=seconds("417", "427"),
            is_id=True,
            trimmed_path="0wR5jVB-WPk_000417_000427",
        ),
        LabelRow(
            f"{where}:3",
            "--nQbRBEz2s",
            "air drumming",
            "val",
            segment=seconds("104", "114"),
            is_id=True,
            trimmed_path="--nQbRBEz2s_000104_000114",
        ),
        LabelRow(
            f"{where}:4",
            "-3B32lodo2M",
            "passing American football (not in game)",
            "val",
            segment=seconds("59", "69"),
            is_id=True,
            trimmed_path="-3B32lodo2M_000059_000069",
        ),
    )


def test_kinetics_600_keeps_ids_that_come_twice() -> None:
    """Source: Crawler/Kinetics/data/kinetics-600_val.csv of activitynet/ActivityNet at 82304fa."""
    rows = read("kinetics-600_val.csv", "kinetics").rows
    assert [row.path for row in rows] == ["yq_M1PMw2hY", "-u8W9n8IOks", "-u8W9n8IOks"]
    assert [row.where[-1] for row in rows] == ["2", "3", "4"]


def test_kinetics_json() -> None:
    """Source: kinetics_val.json of the archive kinetics400.tar.gz, beside val.csv."""
    rows = read("kinetics_val.json").rows
    assert rows[0] == LabelRow(
        "kinetics_val.json: 0wR5jVB-WPk",
        "0wR5jVB-WPk",
        "abseiling",
        "val",
        segment=seconds("417", "427"),
        is_id=True,
        trimmed_path="0wR5jVB-WPk_000417_000427",
    )
    assert rows[1].segment == seconds("104.5", "114.5")
    assert rows[1].trimmed_path == ""


def test_kinetics_list_of_a_test_set_is_refused() -> None:
    for format_name in ("auto", "kinetics"):
        assert refusal("kinetics-400_test.csv", format_name) == (
            "kinetics-400_test.csv has no column label: it is the list of a test set whose labels are not given; take "
            "the list of train or val"
        )


def test_activitynet() -> None:
    """Source: Evaluation/data/activity_net.v1-3.min.json of activitynet/ActivityNet at 82304fa."""
    labels = read("activity_net.v1-3.json")
    assert labels.format_name == "activitynet"
    assert labels.has_splits
    place = "activity_net.v1-3.json: database"
    assert labels.rows == (
        LabelRow(
            f"{place}.--0edUL8zmA.annotations[0]",
            "--0edUL8zmA",
            "Dodgeball",
            "train",
            segment=seconds("5.4671", "86.7127"),
            is_id=True,
            other_path="v_--0edUL8zmA",
        ),
        LabelRow(
            f"{place}.v_oh7Fb2yPM.annotations[0]",
            "v_oh7Fb2yPM",
            "Horseback riding",
            "val",
            segment=seconds("0", "0"),
            is_id=True,
            other_path="oh7Fb2yPM",
        ),
        LabelRow(
            f"{place}.v_oh7Fb2yPM.annotations[1]",
            "v_oh7Fb2yPM",
            "Horseback riding",
            "val",
            segment=seconds("15", "33.000000000000004"),
            is_id=True,
            other_path="oh7Fb2yPM",
        ),
    )
    assert labels.notes == (("unlabelled", "left out: 1 of testing without annotations (sJxn6wWCjJ4)"),)


def test_activitynet_lists_of_mmaction2() -> None:
    """Source: MMAction2 1.2.0, tools/data/activitynet/README.md (anet_anno_val.json)."""
    labels = read("anet_anno_val.json")
    assert labels.format_name == "activitynet"
    assert not labels.has_splits
    assert labels.rows == (
        LabelRow(
            "anet_anno_val.json: v_--1DO2V4K74.annotations[0]",
            "v_--1DO2V4K74",
            "Rock climbing",
            segment=seconds("30.025882995319815", "205.2318595943838"),
            is_id=True,
            other_path="--1DO2V4K74",
        ),
    )


def test_something_something_v2() -> None:
    """Source: the instructions of Something-Something v2 (train.json, labels.json)."""
    labels = read("something-something-v2-train.json")
    assert labels.format_name == "something-something"
    assert labels.rows == tuple(
        LabelRow(f"something-something-v2-train.json: [{index}]", clip, label, is_id=True)
        for index, (clip, label) in enumerate(
            [
                ("78687", "Holding something next to something"),
                ("42326", "Something falling like a feather or paper"),
                ("100904", "Putting number of something onto something"),
            ]
        )
    )


def test_jester_and_test_answers() -> None:
    """Sources: jester-v1-train.csv, and something-something-v2's test-answers.csv."""
    labels = read("jester-v1-train.csv")
    assert labels.format_name == "something-something"
    assert labels.rows == (
        LabelRow("jester-v1-train.csv:1", "34870", "Drumming Fingers", is_id=True),
        LabelRow("jester-v1-train.csv:2", "56557", "Sliding Two Fingers Right", is_id=True),
        LabelRow("jester-v1-train.csv:3", "129112", "Doing other things", is_id=True),
    )
    assert [row.path for row in read("test-answers.csv").rows] == ["1420", "42031"]


@pytest.mark.parametrize("name", ["something-something-v2-test.json", "jester-v1-test.csv"])
def test_lists_of_ids_alone_are_refused(name: str) -> None:
    assert "it is a list of a test set, which has ids alone" in refusal(name)
    assert "it is a list of a test set, which has ids alone" in refusal(name, "something-something")


@pytest.mark.parametrize(("name", "format_name"), [("createml.csv", "table"), ("createml.json", "createml")])
def test_createml(name: str, format_name: str) -> None:
    """Source: Apple, "Building an Action Classifier Data Source", whose times these are."""
    labels = read(name)
    assert labels.format_name == format_name
    assert [(row.path, row.label, row.segment) for row in labels.rows] == [
        ("lunge23.mov", "Lunge", seconds("0", "3.1")),
        ("Jumping Jacks 1.mov", "Jumping Jacks", seconds("0", "4.7")),
        ("Various_Exercises.mov", "Lunge", seconds("483.2", "484.5")),
        ("Various_Exercises.mov", "Squat", seconds("7145.8", "7147")),
    ]
    assert read(name, "createml").rows == labels.rows


def test_label_studio() -> None:
    """Source: Label Studio 1.14, tags TimelineLabels and Choices, JSON export; frames from 1, the last included."""
    labels = read("label_studio.json", frame_rate=Fraction(25))
    assert labels.format_name == "label-studio"
    place = "label_studio.json: "
    uploaded = "0a1b2c3d-gate_north.mp4"
    assert labels.rows == (
        LabelRow(
            f"{place}[0].annotations[0].result[0]",
            "gate_north.mp4",
            "Moving",
            segment=seconds("2/25", "5/25"),
            other_path=uploaded,
        ),
        LabelRow(
            f"{place}[0].annotations[0].result[1]",
            "gate_north.mp4",
            "Nothing",
            segment=seconds("4", "101/25"),
            other_path=uploaded,
        ),
    )
    assert labels.notes == (
        ("choices", "left out: 1 about whole videos, because there are segments"),
        ("unlabelled", "left out: 1 without labels (label_studio.json: [2])"),
    )


def test_label_studio_min() -> None:
    """Source: Label Studio 1.14, JSON-MIN export."""
    rate = Fraction(30000, 1001)
    labels = read("label_studio_min.json", frame_rate=rate)
    assert labels.format_name == "label-studio"
    assert [(row.path, row.other_path, row.label, row.segment) for row in labels.rows] == [
        ("gate_north.mp4", "0a1b2c3d-gate_north.mp4", "Moving", Segment(2 / rate, 5 / rate)),
        ("gate_north.mp4", "0a1b2c3d-gate_north.mp4", "Nothing", Segment(100 / rate, 125 / rate)),
    ]


def test_label_studio_min_takes_no_other_field_for_a_label(tmp_path: Path) -> None:
    task = {"camera": "north", "video": "a.mp4", "id": 1, "annotator": 1, "annotation_id": 2, "lead_time": 3.5}
    with pytest.raises(UsageError, match="labels no video"):
        read_text(tmp_path, "export.json", json.dumps([task]))
    end = {"annotator": 1, "annotation_id": 2, "lead_time": 3.5}
    task = {"camera": "north", "video": "a.mp4", "id": 1, "ch": "Empty", **end}
    assert [row.label for row in read_text(tmp_path, "export.json", json.dumps([task])).rows] == ["Empty"]
    task = {"video": "a.mp4", "id": 1, "ch": "Empty", "comment": "dark", **end}
    with pytest.raises(UsageError, match=r"has labels of several tags \(ch, comment\)"):
        read_text(tmp_path, "export.json", json.dumps([task]))
    task = {"video": "a.mp4", "id": 1, "ch": {"choices": ["a", "b"]}, **end}
    with pytest.raises(UsageError, match=r"\[0\].ch has 2 values for label"):
        read_text(tmp_path, "export.json", json.dumps([task]))


def test_label_studio_needs_the_rate_that_frames_count_at(tmp_path: Path) -> None:
    assert refusal("label_studio.json").startswith(
        "label_studio.json: [0].annotations[0].result[0] counts frames at the rate of the tag Video, which the export "
        "does not state: give --labels-frame-rate (otherwise it is frameRate"
    )
    tasks = json.loads((SAMPLES / "label_studio.json").read_text())
    tasks[0]["data"]["fps"] = 12.5
    with pytest.raises(UsageError, match=r"give --labels-frame-rate \(the tasks say fps 12.5, otherwise"):
        read_text(tmp_path, "export.json", json.dumps(tasks))
    del tasks[0]
    labels = read_text(tmp_path, "export.json", json.dumps(tasks))  # whole videos need none
    assert [(row.path, row.other_path, row.label) for row in labels.rows] == [("yard/cam 2.mp4", "", "Empty")]


def test_label_studio_labels_of_two_tags_are_refused(tmp_path: Path) -> None:
    regions = [
        {"from_name": name, "value": {"choices": [label]}} for name, label in (("act", "run"), ("light", "dark"))
    ]
    task = {"data": {"video": "a.mp4"}, "annotations": [{"result": regions}]}
    with pytest.raises(UsageError, match=r"export.json has labels of several tags \(act, light\)"):
        read_text(tmp_path, "export.json", json.dumps([task]))


def test_label_studio_regions_with_two_labels_are_refused(tmp_path: Path) -> None:
    value = {"ranges": [{"start": 1, "end": 2}], "timelinelabels": ["a", "b"]}
    task = {"data": {"video": "a.mp4"}, "annotations": [{"result": [{"value": value, "type": "timelinelabels"}]}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    with pytest.raises(UsageError, match=r"result\[0\] has 2 values for label: a clip has one class"):
        read_labels(tmp_path / "export.json", "auto", classes=None, frame_rate=Fraction(24))


def test_label_studio_ranges_from_0_begin_with_the_video(tmp_path: Path) -> None:
    value = {"ranges": [{"start": 0, "end": 90}], "timelinelabels": ["walk"]}
    task = {"data": {"video": "a.mp4"}, "annotations": [{"result": [{"value": value, "from_name": "timeline"}]}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    labels = read_labels(tmp_path / "export.json", "auto", classes=None, frame_rate=Fraction(30))
    assert [row.segment for row in labels.rows] == [seconds("0", "3")]


def test_label_studio_prefers_the_ground_truth(tmp_path: Path) -> None:
    def annotation(label: str, is_true: bool) -> dict[str, object]:
        return {"ground_truth": is_true, "was_cancelled": False, "result": [{"value": {"choices": [label]}}]}

    task = {"data": {"video": "a.mp4"}, "annotations": [annotation("x", False), annotation("y", True)]}
    labels = read_text(tmp_path, "export.json", json.dumps([task]))
    assert [row.label for row in labels.rows] == ["y"]
    task["annotations"] = [annotation("x", False), annotation("y", False)]
    labels = read_text(tmp_path, "export.json", json.dumps([task]))
    assert [row.label for row in labels.rows] == ["x", "y"]
    assert [name for name, _ in labels.notes] == ["annotators"]


def test_fiftyone_labels() -> None:
    """Source: FiftyOne 1.x user guide, FiftyOneTemporalDetectionDataset; support from 1, both ends included."""
    labels = read("fiftyone_labels.json")
    assert labels.format_name == "fiftyone"
    place = "fiftyone_labels.json: labels."
    assert labels.rows == (
        LabelRow(f"{place}video1[0]", "video1", "meeting", segment=frames(9, 20), is_id=True),
        LabelRow(f"{place}video1[1]", "video1", "party", segment=frames(0, 1), is_id=True),
        LabelRow(f"{place}sub/video2[0]", "sub/video2", "party", segment=seconds("1.25", "3.1"), is_id=True),
        LabelRow(f"{place}/datasets/raw/video3.mp4[0]", "/datasets/raw/video3.mp4", "party", segment=frames(4, 6)),
    )
    assert labels.notes == (("unlabelled", "left out: 1 without labels (video4)"),)


def test_fiftyone_labels_of_whole_videos_but_not_of_boxes(tmp_path: Path) -> None:
    labels = read_text(tmp_path, "labels.json", '{"classes": ["cat", "dog"], "labels": {"x": 1, "y": "cat"}}')
    assert [(row.path, row.label, row.segment) for row in labels.rows] == [("x", "dog", None), ("y", "cat", None)]
    boxes = {"classes": ["cat"], "labels": {"x": [{"label": 0, "bounding_box": [0.1, 0.1, 0.2, 0.2]}]}}
    with pytest.raises(UsageError, match=r"labels.x\[0\] is no temporal detection"):
        read_text(tmp_path, "labels.json", json.dumps(boxes))


def test_fiftyone_samples(tmp_path: Path) -> None:
    """Source: FiftyOne 1.x user guide, FiftyOneDataset."""
    labels = read("fiftyone_samples.json")
    assert labels.format_name == "fiftyone"
    assert labels.rows == (
        LabelRow(
            "fiftyone_samples.json: samples[0].events.detections[0]",
            "data/video1.mp4",
            "meeting",
            "val",
            segment=frames(9, 20),
        ),
    )
    assert labels.has_splits
    content = json.loads((SAMPLES / "fiftyone_samples.json").read_text())
    content["samples"][1]["ground_truth"] = {"_cls": "Classification", "label": "party"}
    with pytest.raises(UsageError, match=r"has labels in several fields \(events, ground_truth\)"):
        read_text(tmp_path, "samples.json", json.dumps(content))


def test_dali_in_seconds() -> None:
    """Source: NVIDIA DALI 1.x to 2.4, `fn.readers.video(file_list=...)`."""
    labels = read("dali_file_list.txt")
    assert labels.format_name == "dali"
    assert labels.rows == (
        LabelRow("dali_file_list.txt:1", "/data/test_label.mp4", "0", segment=seconds("0", "1.5")),
        LabelRow("dali_file_list.txt:2", "/data/test_label.mp4", "1", segment=seconds("2.25", "4")),
        LabelRow("dali_file_list.txt:3", "/data/test_label.mp4", "2", segment=seconds("4")),
        LabelRow("dali_file_list.txt:4", "/data/whole.mp4", "0"),
    )
    assert labels.notes == (NUMBERS,)
    named = read("dali_file_list.txt", "dali", classes="class_names.txt")
    assert [row.label for row in named.rows] == ["abseiling", "air drumming", "answering questions", "abseiling"]


def test_dali_in_frames() -> None:
    """Source: NVIDIA DALI, the example "Applying Labels Based on Timestamps or Frame Numbers"."""
    labels = read("dali_frames.txt", "dali-frames")
    assert labels.format_name == "dali-frames"
    assert [row.segment for row in labels.rows] == [None, frames(0, 100), frames(100, 200)]
    assert [row.segment for row in read("dali_frames.txt", "dali").rows] == [
        None,
        seconds("0", "100"),
        seconds("100", "200"),
    ]


def test_dali_bounds_that_may_be_seconds_or_frames_are_not_guessed(tmp_path: Path) -> None:
    for name in ("dali_frames.txt", "mmaction2_multi_class.txt"):
        assert refusal(name) == (
            f"{name} may be of the format dali or dali-frames, which read it differently: give --labels-format dali or "
            "--labels-format dali-frames"
        )
    with pytest.raises(UsageError, match=r"list.txt:1 has a bound below 0, which DALI counts from the end"):
        read_text(tmp_path, "list.txt", "a.mp4 0 5 -1\n", "dali-frames")
    with pytest.raises(UsageError, match=r"list.txt:1 is 'a b': it must be a file, a label"):
        read_text(tmp_path, "list.txt", "a b\n", "dali")


def test_via_project() -> None:
    """Source: VIA 3.0.10, CodeDoc.md of ox-vgg/via at aa9b87f."""
    labels = read("via_project.json")
    assert labels.format_name == "via"
    assert labels.rows == (
        LabelRow(
            "via_project.json: metadata.1_Rt6Tg6iB",
            "https://upload.wikimedia.org/wikipedia/commons/4/47/Alioli de ajo.ogv",
            "Break Egg",
            segment=seconds("20.31792", "22.91792"),
        ),
        LabelRow("via_project.json: metadata.2_0pIKr9ke", "cam 2.mp4", "Cut Garlic", segment=seconds("0", "4.5")),
    )
    assert labels.notes == (("regions", "left out: 1 without two times (boxes, still frames, files)"),)


def test_via_csv() -> None:
    """Source: VIA 3.0.10, via-3.x.y/src/js/_via_import_export.js of ox-vgg/via at aa9b87f."""
    labels = read("via_export.csv")
    assert labels.format_name == "via"
    assert labels.rows == (
        LabelRow("via_export.csv:11", "kitchen.mp4", "Break Egg", segment=seconds("20.31792", "22.91792")),
        LabelRow("via_export.csv:13", "cam, 2.mp4", "Cut Garlic", segment=seconds("0", "4.5")),
    )
    labels = read("via_segments.csv")
    assert labels.format_name == "via"
    assert labels.rows == (
        LabelRow("via_segments.csv:3", "kitchen.mp4", "walk", segment=seconds("20.31792", "22.91792")),
        LabelRow("via_segments.csv:4", "cam2.mp4", "run", segment=seconds("0", "4.5")),
    )
    assert labels.notes == ()


def test_via_segments_of_two_attributes_are_refused(tmp_path: Path) -> None:
    content = json.loads((SAMPLES / "via_project.json").read_text())
    content["attribute"]["3"] = {"aname": "Actor", "anchor_id": "FILE1_Z2_XY0", "type": 1, "options": {}}
    content["metadata"]["2_0pIKr9ke"]["av"]["3"] = "cook"
    with pytest.raises(UsageError, match=r"labels its segments by several attributes \(Activity, Actor\)"):
        read_text(tmp_path, "project.json", json.dumps(content))
    content["metadata"]["2_0pIKr9ke"]["av"] = {}
    with pytest.raises(UsageError, match=r"has 1 row without a label \(project.json: metadata.2_0pIKr9ke\)"):
        read_text(tmp_path, "project.json", json.dumps(content))


@pytest.mark.parametrize("format_name", [name for name in FORMATS if name != "table"])
def test_a_file_of_another_format_is_refused_in_one_sentence(tmp_path: Path, format_name: str) -> None:
    for name, text in (("x.json", '{"videos": [1], "version": 2}'), ("x.csv", "nothing,here\n1,2\n")):
        with pytest.raises(UsageError, match=name):
            read_text(tmp_path, name, text, format_name)


def test_json_of_no_known_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x.json is JSON of no known form \(an object with videos, version\)"):
        read_text(tmp_path, "x.json", '{"videos": [1], "version": 2}')
    with pytest.raises(UsageError, match=r"x.json:2 is not valid JSON \(Expecting value\)"):
        read_text(tmp_path, "x.json", '{"videos":\n]')


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every place below a JSON value, as (container, key)."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from nodes(value[key])


@pytest.mark.parametrize(
    "path", sorted(path for path in SAMPLES.glob("*.json") if "-test" not in path.name), ids=lambda path: path.name
)
def test_damaged_json_is_read_or_refused(tmp_path: Path, path: Path) -> None:
    content = json.loads(path.read_text())
    chance = random.Random(path.name)
    format_name = read(path.name, frame_rate=RATE_OF.get(path.name)).format_name
    for _ in range(100):
        damaged = copy.deepcopy(content)
        holder, key = chance.choice(list(nodes(damaged)))
        change = chance.choice(["remove", None, [], {}, 7, "x", [1, 2, 3], {"a": 1}, True, -1.5])
        if change == "remove":
            del holder[key]
        else:
            holder[key] = change
        (tmp_path / path.name).write_text(json.dumps(damaged))
        for name in ("auto", format_name):
            rate = RATE_OF.get(path.name) if name == "label-studio" else None
            with contextlib.suppress(UsageError):
                read_labels(tmp_path / path.name, name, classes=None, frame_rate=rate)


@pytest.mark.parametrize(
    "path", sorted(path for path in SAMPLES.iterdir() if path.suffix != ".json"), ids=lambda path: path.name
)
def test_damaged_text_is_read_or_refused(tmp_path: Path, path: Path) -> None:
    content = path.read_bytes()
    chance = random.Random(path.name)
    for _ in range(30):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(damaged))
            damaged[place : place + chance.randint(0, 2)] = chance.choice(DAMAGE)
        (tmp_path / path.name).write_bytes(damaged)
        for name in ("auto", *FORMATS):
            with contextlib.suppress(UsageError):
                read_labels(tmp_path / path.name, name, classes=None, frame_rate=None)


def test_options_that_a_format_does_not_use_are_refused() -> None:
    assert refusal("kinetics-400_val.csv", classes="class_names.txt") == (
        "kinetics-400_val.csv, read as kinetics, names its classes itself: leave --labels-classes out, which is for "
        "table, mmaction2, dali, dali-frames"
    )
    assert "leave --labels-frame-rate out" in refusal("kinetics-400_val.csv", frame_rate=Fraction(25))
    assert "labels format 'coco' is unknown: it must be auto, table," in refusal("createml.csv", "coco")
