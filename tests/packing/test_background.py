"""Segments without a label: as long as the others, beside all of them, and no more than the commonest class has."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from configs.section import UsageError
from packer.planning.background import background_segments
from packer.video.catalog import Video
from packer.video.length import header_length
from packer.video.segment import Segment
from tests.support.videos import write_numbered_video

FPS = 10
LENGTH_SECONDS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of six seconds."""
    path = tmp_path_factory.mktemp("background") / "a.mp4"
    write_numbered_video(path, LENGTH_SECONDS * FPS, fps=FPS)
    return path


def labelled(path: Path, name: str, *bounds: tuple[str, str | None, str], unit: str = "seconds") -> list[Video]:
    videos = []
    for start, end, class_name in bounds:
        segment = Segment(Fraction(start), Fraction(end) if end else None, unit)  # type: ignore[arg-type]
        source = name + segment.fragment
        videos.append(Video(str(path), source, class_name, path.stat().st_size, segment, "site"))
    return videos


def stretches(videos: list[Video]) -> list[tuple[Fraction, Fraction]]:
    found = [(v.segment.start, v.segment.end) for v in videos if v.segment and v.segment.end is not None]
    return sorted(found)


def test_the_header_tells_the_length(path: Path) -> None:
    length = header_length(str(path))
    assert (length.seconds, length.num_frames) == (LENGTH_SECONDS, LENGTH_SECONDS * FPS)


def test_they_fill_what_is_unlabelled_and_touch_nothing_else(path: Path) -> None:
    labels = labelled(path, "a.mp4", ("0.5", "1", "x"), ("1", "1.5", "x"), ("3", "3.45", "x"), ("3.2", "4", "y"))
    labels += labelled(path, "b.mp4", *((f"{n}", f"{n}.5", "x") for n in range(1, 6)))
    found = background_segments(labels, "none", 0, ())
    assert {video.class_name for video in found} == {"none"}
    assert {video.group for video in found} == {"site"}
    for name in ("a.mp4", "b.mp4"):
        of_file = [video for video in found if video.file_source == name]
        assert {end - start for start, end in stretches(of_file)} == {Fraction(1, 2)}
        everything = stretches([v for v in labels if v.file_source == name and v.class_name == "x"] + of_file)
        assert all(before[1] <= after[0] for before, after in pairwise(everything))
        assert everything[-1][1] <= LENGTH_SECONDS
    # x has 8 segments; there is room for 3 + 4 pieces in a (1.5 to 3, 4 to 6, and 0 to 0.5) and for 6 in b.
    assert len(found) == Counter(video.class_name for video in labels)["x"] == 8


def test_the_seed_chooses(path: Path) -> None:
    labels = labelled(path, "a.mp4", ("1", "1.5", "x"), ("2", "2.5", "y"))
    chosen = [background_segments(labels, "none", seed, ()) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len({videos[0].source for videos in chosen}) > 1
    assert {len(videos) for videos in chosen} == {1}


def test_frames_are_cut_at_whole_frames(path: Path) -> None:
    labels = labelled(path, "a.mp4", ("7", "14", "x"), ("20", "27", "x"), ("30", "37", "x"), unit="frames")
    found = background_segments(labels, "none", 0, ())
    assert len(found) == 3
    assert all(start.denominator == end.denominator == 1 for start, end in stretches(found))
    assert {end - start for start, end in stretches(found)} == {7}
    assert stretches(found)[-1][1] <= LENGTH_SECONDS * FPS


def test_labels_of_that_class_count(path: Path) -> None:
    labels = labelled(path, "a.mp4", ("0", "0.5", "x"), ("1", "1.5", "x"), ("2", "2.5", "none"))
    assert len(background_segments(labels, "none", 0, ())) == 1


def test_what_an_earlier_pack_holds_stays(path: Path) -> None:
    old = labelled(path, "a.mp4", ("1", "1.5", "x"), ("2", "2.5", "x"))
    earlier = [*old, *background_segments(old, "none", 0, ())]
    new = [*old, *labelled(path, "a.mp4", ("3", "4", "x")), *labelled(path, "b.mp4", ("1", "1.5", "x"))]
    found = background_segments(new, "none", 0, earlier)
    assert [video for video in found if video.file_source == "a.mp4"] == earlier[len(old) :]
    assert len(found) == 4


def test_after_a_segment_without_an_end_nothing_is_unlabelled(path: Path) -> None:
    labels = labelled(path, "a.mp4", ("1", "1.5", "x"), ("2", None, "x"))
    assert all(end <= 2 for _, end in stretches(background_segments(labels, "none", 0, ())))


def test_a_file_that_a_label_is_about_as_a_whole_has_none(path: Path) -> None:
    labels = labelled(path, "a.mp4", ("1", "1.5", "x"), ("2", "2.5", "x"))
    labels += labelled(path, "b.mp4", ("1", "1.5", "x"))
    labels.append(Video(str(path), "a.mp4", "y", path.stat().st_size))
    found = background_segments(labels, "none", 0, ())
    assert {video.file_source for video in found} == {"b.mp4"}


def test_nothing_lies_behind_the_end_of_the_file(path: Path) -> None:
    labels = labelled(path, "a.mp4", ("1", "1.5", "x"), ("300", "301", "x"), ("400", "400.5", "x"))
    found = stretches(background_segments(labels, "none", 0, ()))
    assert len(found) == 3
    assert all(end <= LENGTH_SECONDS for _, end in found)


def test_there_must_be_segments_and_room(path: Path) -> None:
    with pytest.raises(UsageError, match="labels_background is for labels with start and end"):
        background_segments([Video(str(path), "a.mp4", "x", 1)], "none", 0, ())
    with pytest.raises(UsageError, match=r"an unlabelled stretch as long as the median segment \(6 seconds\)"):
        background_segments(labelled(path, "a.mp4", ("0", "6", "x")), "none", 0, ())
