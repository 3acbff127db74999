"""A row of labels finds its own file and no other, and what cannot be packed is said."""

import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest

from configs.section import UsageError
from packer.labels.match import Labelled, match_labels
from packer.labels.read import read_labels
from packer.labels.rows import LabelRow, Labels
from packer.video.catalog import find_unlabelled
from packer.video.segment import Segment
from tests.support.videos import write_numbered_video


def row(path: str, label: str = "run", **fields: object) -> LabelRow:
    return LabelRow(where=fields.pop("where", f"labels.csv:{path}"), path=path, label=label, **fields)  # type: ignore[arg-type]


def lay_out(folder: Path, names: Sequence[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_numbered_video(folder / "new.mp4", 2, first_number=10 * number).rename(folder / name)
    return folder


def matched(folder: Path, *rows: LabelRow) -> Labelled:
    return match_labels(folder, find_unlabelled(folder), Labels("table", rows, has_splits=False))


def sources(found: Labelled) -> dict[str, str]:
    return {video.source: video.class_name for video in found.catalog.videos}


def rejected(found: Labelled) -> list[tuple[str, str, str]]:
    return [(video.source, video.class_name, error.reason) for video, error in found.catalog.non_videos]


@pytest.mark.parametrize(
    "path",
    [
        "day1/a.mp4",
        "./day1/a.mp4",
        "day1\\a.mp4",
        "{folder}/day1/a.mp4",
        "videos/day1/a.mp4",  # as seen from above the data folder
        "/mnt/other machine/videos/day1/a.mp4",
        "C:\\videos\\day1\\a.mp4",
        "a.mp4",
        "day1/a",
        "a",
        "day1%2Fa.mp4",
    ],
)
def test_the_ways_to_name_a_file(tmp_path: Path, path: str) -> None:
    folder = lay_out(tmp_path / "videos", ["day1/a.mp4", "day2/b.mp4"])
    assert sources(matched(folder, row(path.format(folder=folder)))) == {"day1/a.mp4": "run"}


@pytest.mark.parametrize(
    ("names", "source", "segment"),
    [
        (["a.mp4"], "a.mp4#t=0,1", Segment(Fraction(0), Fraction(1))),
        (["a.mp4#t=0,1"], "a.mp4#t=0,1", None),
        (["a.mp4", "a.mp4#t=0,1"], "a.mp4#t=0,1", None),
        (["day1/a.mp4", "day1/a.mp4#frames=0"], "day1/a.mp4#frames=0", None),
    ],
)
def test_a_file_that_is_named_like_a_segment_is_that_file(
    tmp_path: Path, names: Sequence[str], source: str, segment: Segment | None
) -> None:
    folder = lay_out(tmp_path / "videos", names)
    (tmp_path / "labels.csv").write_text(f'path,label\n"{source}",run\n')
    labels = read_labels(tmp_path / "labels.csv", "auto", classes=None, frame_rate=None)
    [video] = match_labels(folder, find_unlabelled(folder), labels).catalog.videos
    file = folder / (source if segment is None else "a.mp4")
    assert (video.source, video.segment, Path(video.path)) == (source, segment, file)


def test_a_file_and_a_segment_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4", "a.mp4#t=0,1"])
    with pytest.raises(UsageError, match="#t=0,1, which names a file and a segment of another file: rename"):
        matched(folder, row("a.mp4", segment=Segment(Fraction(0), Fraction(1))), row("a.mp4#t=0,1"))


def test_a_path_with_folders_never_takes_a_file_of_another_folder(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["test/a.mp4", "train/b.mp4"])
    found = matched(folder, row("train/a.mp4"), row("train/b.mp4"))
    assert sources(found) == {"train/b.mp4": "run"}
    assert rejected(found) == [("train/a.mp4", "run", "no_file")]
    assert ("absent", "1 row (train/a.mp4) without a file") in found.notes
    assert ("unlabelled", "1 file (test/a.mp4) without a row: not packed") in found.notes


def test_two_folders_in_the_labels_and_one_file_in_the_data_are_refused(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4", "b.mp4"])
    with pytest.raises(UsageError, match=r"names x/a.mp4 and .* names y/a.mp4, but the data folder has only a.mp4"):
        matched(folder, row("x/a.mp4"), row("y/a.mp4", "walk"))


def test_a_name_that_two_files_have_is_refused(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["day1/a.mp4", "day2/a.mp4"])
    with pytest.raises(UsageError, match=r"names a.mp4, which may be day1/a.mp4 or day2/a.mp4: give the path below"):
        matched(folder, row("a.mp4"))


def test_an_id_is_the_stem_of_a_file_in_any_folder(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["x/-b_c.mkv", "run/-a.mp4", "walk/-a.mp4"])
    found = matched(folder, row("-b_c", is_id=True), row("-a", "walk", is_id=True))
    assert sources(found) == {"x/-b_c.mkv": "run", "walk/-a.mp4": "walk"}


def test_a_name_in_another_form_of_unicode_is_the_same(tmp_path: Path) -> None:
    name = "caf\N{LATIN SMALL LETTER E WITH ACUTE}.mp4"
    folder = lay_out(tmp_path / "videos", [unicodedata.normalize("NFD", name)])
    assert len(sources(matched(folder, row(name)))) == 1


def test_segments_of_a_file_are_videos_of_their_own_and_one_group(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4"])
    segments = [
        Segment(Fraction(0), Fraction("1.5")),
        Segment(Fraction(3), None),
        Segment(Fraction(4), Fraction(9), "frames"),
    ]
    found = matched(folder, *(row("a.mp4", segment=segment, group="site 1") for segment in segments))
    assert list(sources(found)) == ["a.mp4#frames=4,9", "a.mp4#t=0,1.5", "a.mp4#t=3"]
    assert {video.file_source for video in found.catalog.videos} == {"a.mp4"}
    assert {video.group for video in found.catalog.videos} == {"site 1"}
    assert len({video.key for video in found.catalog.videos}) == 3


@pytest.mark.parametrize(
    ("segment", "sentence"),
    [
        (Segment(Fraction(2), Fraction(2)), "is empty: it ends where it begins (2 to 2 seconds)"),
        (Segment(Fraction(3), Fraction("2.5")), "ends before it begins (3 to 2.5 seconds)"),
        (Segment(Fraction(-1), Fraction(2), "frames"), "begins at -1 frames, before the video"),
    ],
)
def test_a_segment_that_no_video_can_have_is_rejected(tmp_path: Path, segment: Segment, sentence: str) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4"])
    found = matched(folder, row("a.mp4"), row("a.mp4", segment=segment))
    (_, error), *others = found.catalog.non_videos
    assert (error.reason, others) == ("bad_segment", [])
    assert str(error) == f"the segment of labels.csv:a.mp4 {sentence}: correct the row"


def test_equal_rows_are_packed_once_and_two_labels_not_at_all(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4", "b.mp4"])
    found = matched(folder, row("a.mp4"), row("a.mp4"), row("b.mp4"), row("b.mp4", "walk", where="labels.csv:9"))
    assert sources(found) == {"a.mp4": "run"}
    assert rejected(found) == [("b.mp4", "run", "contradiction"), ("b.mp4", "walk", "contradiction")]
    assert str(found.catalog.non_videos[0][1]) == (
        "the labels say 'run' (labels.csv:b.mp4) and 'walk' (labels.csv:9): keep one of them"
    )
    assert ("rows", "1 video (a.mp4) in several equal rows: packed once") in found.notes


def test_overlapping_segments_of_two_classes_are_told_and_adjacent_ones_are_not(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4", "b.mp4"])
    third = Fraction(1, 3)
    adjacent = [row("a.mp4", segment=Segment(Fraction(0), third)), row("a.mp4", "walk", segment=Segment(third, None))]
    assert not [text for label, text in matched(folder, *adjacent).notes if label == "overlaps"]
    overlapping = [row("b.mp4", segment=Segment(Fraction(0), 2 * third)), row("b.mp4", "walk", segment=Segment(third))]
    (text,) = [text for label, text in matched(folder, *adjacent, *overlapping).notes if label == "overlaps"]
    assert text == "1 segment (b.mp4#t=1/3) overlapping one of another class: the shared frames come into both"


@pytest.mark.parametrize("unit", ["seconds", "frames"])
def test_a_whole_video_overlaps_all_its_segments_of_other_classes(tmp_path: Path, unit: str) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4"])
    segment = Segment(Fraction(0), Fraction(1), unit)  # type: ignore[arg-type]
    found = matched(folder, row("a.mp4"), row("a.mp4", "walk", segment=segment))
    (text,) = [text for label, text in found.notes if label == "overlaps"]
    assert text.startswith(f"1 segment (a.mp4{segment.fragment}) overlapping")
    alike = matched(folder, row("a.mp4"), row("a.mp4", segment=segment))
    assert "overlaps" not in dict(alike.notes)


def test_labels_of_another_folder_are_refused(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4"])
    with pytest.raises(UsageError, match=r"has none of the 2 files that .* name, such as x.mp4 .* such as a.mp4"):
        matched(folder, row("x.mp4"), row("y.mp4"))


def test_two_splits_for_one_video_are_refused(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4"])
    with pytest.raises(UsageError, match=r"put a.mp4 into train \(labels.csv:1\) and test \(labels.csv:2\)"):
        matched(
            folder, row("a.mp4", split="train", where="labels.csv:1"), row("a.mp4", split="test", where="labels.csv:2")
        )


def test_a_labelled_file_without_a_video_is_set_aside_and_an_unlabelled_one_is_no_matter(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "videos", ["a.mp4"])
    (folder / "b.mp4").write_text("<html></html>")
    (folder / "c.mp4").write_text("<html></html>")
    found = matched(folder, row("a.mp4"), row("b.mp4"))
    assert rejected(found) == [("b.mp4", "run", "not_a_video")]
