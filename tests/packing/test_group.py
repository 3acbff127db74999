"""Which videos belong together, by the names that real datasets have and by content."""

from fractions import Fraction
from pathlib import Path

import pytest

from configs.pack import SplitConfig
from packer.planning.group import content_digests, video_groups
from packer.video.catalog import Video
from packer.video.segment import Segment


def groups_of(*sources: str, group_regex: str = "") -> list[int]:
    videos = [Video("/nowhere", source, source.split("/")[0], size) for size, source in enumerate(sources, start=1)]
    return video_groups(videos, group_regex, {})


def test_hmdb51_names_are_grouped_by_film() -> None:
    assert groups_of(
        "wave/RATRACE_wave_f_nm_np1_fr_goo_37.avi",
        "wave/RATRACE_wave_u_cm_np2_ba_bad_3.mp4",
        "draw_sword/RATRACE_draw_sword_f_nm_np1_fr_goo_0.avi",
        "wave/TrumanShow_wave_f_nm_np1_fr_med_26.avi",
        "clap/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
        "cartwheel/(Rad)Schlag_die_Bank!_cartwheel_f_cm_np1_le_med_0.avi",
        "clap/#20_Rhythm_clap_h_nm_np1_fr_goo_1.avi",
    ) == [0, 0, 0, 1, 2, 3, 2]


def test_ucf101_names_are_grouped_within_their_class() -> None:
    assert groups_of(
        "SoccerJuggling/v_SoccerJuggling_g23_c01.avi",
        "SoccerJuggling/v_SoccerJuggling_g23_c02.avi",
        "SoccerJuggling/v_SoccerJuggling_g24_c01.avi",
        "HandstandPushups/v_HandStandPushups_g23_c01.avi",
        "train/HandstandPushups/v_HandStandPushups_g23_c07.mp4",
    ) == [0, 0, 1, 2, 2]


def test_other_names_are_not_grouped() -> None:
    assert groups_of("a/video 1.mp4", "a/video 2.mp4", "a/wave_f_nm.avi", "a/v_x_c01.avi") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("group_regex", "groups"),
    [
        (r"cam(\d)_day(\d)", [0, 1, 0, 2]),
        (r"cam\d", [0, 0, 0, 1]),
        (r"^(.+)$", [0, 1, 2, 3]),
        (r"(z)?cam\d", [0, 0, 0, 0]),  # a group that takes no part matches the empty text
    ],
)
def test_a_regex_groups_by_what_its_groups_match(group_regex: str, groups: list[int]) -> None:
    sources = ("a/cam1_day1 x.mp4", "a/cam1_day2 x.mp4", "b/cam1_day1 y.mp4", "b/cam2_day1.mp4")
    assert groups_of(*sources, group_regex=group_regex) == groups
    assert groups_of("a/none", "b/none", group_regex="cam(.)") == [0, 1]


def test_a_broken_regex_is_refused() -> None:
    with pytest.raises(ValueError, match="not a regular expression: missing \\)"):
        SplitConfig(group_regex="(a")


def test_a_file_is_one_group_as_a_whole_and_in_segments() -> None:
    segments = [Segment(Fraction(start), Fraction(start + 1)) for start in (0, 5)]
    videos = [Video("/nowhere", f"day1{segment.fragment}", "x", 1, segment) for segment in segments]
    videos += [Video("/nowhere", "day1", "y", 1), Video("/nowhere", "day2", "y", 2)]
    assert video_groups(videos, r"cam\d+", {}) == [0, 0, 0, 1]


def test_names_and_contents_chain(tmp_path: Path) -> None:
    videos = []
    for number, (group, content) in enumerate([("g1", "x"), ("g1", "y"), ("g2", "y"), ("g3", "z"), ("g3", "x")]):
        path = tmp_path / f"{group}_{number}"
        path.write_text(content)
        videos.append(Video(str(path), f"a/{path.name}", "a", 1))
    assert video_groups(videos, "(g.)_", content_digests(videos, {})) == [0, 0, 0, 0, 0]
    assert video_groups(videos, "(_.)", content_digests(videos, {})) == [0, 1, 1, 2, 0]
    known = {video.source: str(number) for number, video in enumerate(videos)}
    assert video_groups(videos, "(_.)", content_digests(videos, known)) == [0, 1, 2, 3, 4]
