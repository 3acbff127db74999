"""What may spoil the figure is told: too few clips, one class, clips that look like parts of one recording."""

import hashlib
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.pack import PackRecipe, SplitConfig
from configs.section import UsageError
from packer.labels.splits import SPLITS
from packer.pitfalls.counts import count_pitfalls
from packer.pitfalls.name_patterns import find_pattern
from packer.pitfalls.recordings import crowd_pitfalls
from packer.planning.alike import looks_across, mark_alike, neighbours
from packer.planning.group import video_groups
from packer.planning.plan import make_plan
from packer.shards.stored_plan import read_plan_notes
from packer.video.catalog import Video
from packer.video.picture_hash import hash_words
from tests.support.catalogs import catalog_of
from tests.support.packs import assert_same_pack, rows_of, run
from tests.support.programs import system_program
from tests.support.videos import write_classes

RECORDINGS = {
    "ball": [
        "known/ucf101/v_SoccerJuggling_g23_c01.avi",
        "known/ucf101/v_SoccerJuggling_g24_c01.avi",
        "known/hmdb51/cartwheel.avi",
        "known/ucf101/video2.avi",
    ],
    "wave": [
        "known/hmdb51/RATRACE_wave_f_nm_np1_fr_goo_37.avi",
        "known/hmdb51/TrumanShow_wave_f_nm_np1_fr_med_26.avi",
        "known/hmdb51/SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi",
        "known/ucf101/v_ApplyEyeMakeup_g01_c01.avi",
    ],
}
"""Real recordings by class; of four, with a moving camera."""
NUM_PARTS = 4
Parts = tuple[Path, dict[str, tuple[str, int]]]
"""A data folder, and the recording and the number of each part by source."""
FAST = ["--workers=1", "--clip.num-frames=4", "--shards.min-train-shards=1"]
HEADING = "what may spoil the figure:"


def write_parts(recording: Path, targets: Sequence[Path]) -> None:
    """Cuts a recording by ffmpeg into parts of as many frames, coded anew; every second part is half as large."""
    probe = ["ffprobe", "-v", "error", "-count_packets", "-select_streams", "v:0"]
    probe += ["-show_entries", "stream=nb_read_packets", "-of", "csv=p=0", str(recording)]
    num_frames = int(subprocess.run(probe, check=True, capture_output=True, text=True).stdout.strip(" ,\n"))
    command = ["ffmpeg", "-v", "error", "-i", str(recording)]
    for part, target in enumerate(targets):
        start, end = (num_frames * at // len(targets) for at in (part, part + 1))
        scale = "scale=iw/2:-2" if part % 2 else "null"
        shown = f"select=between(n\\,{start}\\,{end - 1}),setpts=N/25/TB,{scale}"
        code = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "23", "-pix_fmt", "yuv420p", "-r", "25"]
        command += ["-map", "0:v", "-vf", shown, *code, str(target)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def parts(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The parts of real recordings under names that tell nothing."""
    system_program("ffmpeg"), system_program("ffprobe")
    folder = tmp_path_factory.mktemp("parts") / "data"
    part_of = {}
    for class_name, recordings in RECORDINGS.items():
        (folder / class_name).mkdir(parents=True)
        for recording in recordings:
            names = [hashlib.sha256(f"{recording} {part}".encode()).hexdigest()[:12] for part in range(NUM_PARTS)]
            sources = [f"{class_name}/{name}.mp4" for name in names]
            write_parts(test_data / recording, [folder / source for source in sources])
            part_of |= {source: (recording, part) for part, source in enumerate(sources)}
    return folder, part_of


@pytest.fixture(scope="module")
def pack_of_parts(parts: Parts) -> Path:
    target = parts[0].parent / "shards"
    assert run(parts[0], target, *FAST) == 0
    return target


def told(text: str) -> list[str]:
    """Returns the lines of a report about what may spoil the figure."""
    lines = text.splitlines()
    if HEADING not in lines:
        return []
    start = lines.index(HEADING) + 1
    return lines[start : lines.index("", start)]


def test_parts_of_one_recording_are_found_by_their_pictures(
    parts: Parts, pack_of_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording_of = {source: recording for source, (recording, _) in parts[1].items()}
    rows = rows_of(pack_of_parts)
    words = hash_words([row["frame_hashes"] for row in rows])
    sources = [row["source"] for row in rows]
    # As if every second part were in another split: each part has a neighbour there.
    num_found = 0
    for shift in (0, 1):
        looks = looks_across(words, [(parts[1][source][1] + shift) % 2 for source in sources], sources)
        assert all(recording_of[sources[look.video]] == recording_of[sources[look.other]] for look in looks)
        num_found += len(looks)
    assert num_found >= len(rows) - 1  # the camera moves too fast in one of the 24 places where they were cut
    looks = looks_across(words, [SPLITS.index(row["split"]) for row in rows], sources)

    assert run("inspect", pack_of_parts) == 0
    lines = told(capsys.readouterr().out)
    first = next(number for number, line in enumerate(lines) if line.startswith("alike"))
    num_held_out = sum(row["split"] != "train" for row in rows)
    assert lines[first] == (
        f"alike     {len(looks)} of {num_held_out} val and test clips look like a clip of another split, as parts of "
        "one recording do:"
    )
    named = [line.strip().split(" and ") for line in lines[first + 1 : first + 4]]
    for pair in named:
        assert len({recording_of[part.partition(" (")[0]] for part in pair}) == 1
        assert len({part.partition(" (")[2] for part in pair}) == 2
    assert lines[first + 4].strip() == "--split.group-similar keeps together what looks alike"


def test_what_looks_alike_is_kept_together(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(parts[0], tmp_path / "data")
    recording_of = {source: recording for source, (recording, _) in parts[1].items()}
    (data / "ball/broken.mp4").write_bytes((data / next(iter(recording_of))).read_bytes()[:2000])
    later = [next(s for s, of in recording_of.items() if of == recordings[-1]) for recordings in RECORDINGS.values()]
    for source in later:
        (data / source).rename(tmp_path / Path(source).name)
    similar = [data, "--split.group-similar", "--max-rejected-fraction=1", *FAST]
    assert run(*similar, tmp_path / "shards") == 0
    assert not [line for line in told(capsys.readouterr().out) if line.startswith("alike")]
    assert run(*similar, tmp_path / "again", "--workers=2") == 0
    assert_same_pack(tmp_path / "shards", tmp_path / "again")

    for source in later:
        (tmp_path / Path(source).name).rename(data / source)
    assert run(*similar, tmp_path / "shards", "--append") == 0
    splits_of = defaultdict(set)
    for row in rows_of(tmp_path / "shards"):
        splits_of[recording_of[row["source"]]].add(row["split"])
    torn = [recording for recording, splits in splits_of.items() if len(splits) > 1]
    assert len(torn) <= 1
    assert not {recording_of[source] for source in later} & set(torn)
    assert set.union(*splits_of.values()) == set(SPLITS)
    assert read_plan_notes(tmp_path / "shards").alike.keys() >= set(later)
    capsys.readouterr()
    assert run("inspect", tmp_path / "shards") == 0
    assert " of several files, " in capsys.readouterr().out


def noise(num_videos: int, seed: int = 0) -> NDArray[np.uint64]:
    """Returns hashes of videos none of which looks like another one, as `(N, 2, 5)`."""
    return np.random.default_rng(seed).integers(0, 2**64, (num_videos, 2, 5), np.uint64)


def with_flipped_bits(words: NDArray[np.uint64], num_bits: int) -> NDArray[np.uint64]:
    """Returns the hash `(5,)` of a frame of which some fine bits differ, and a quarter as many coarse ones."""
    bits = np.unpackbits(words.view(np.uint8)).reshape(5, 64)
    bits[:, : num_bits // 4] ^= 1
    return np.packbits(bits).view(np.uint64)


def test_every_near_pair_across_splits_is_found_and_no_other() -> None:
    words = noise(9000)
    near = {4100: 10, 4200: 8999, 5: 8000}  # in other blocks of the comparison
    for at, other in near.items():
        words[at, 0] = with_flipped_bits(words[other, 1], 8)
    words[6, 0] = with_flipped_bits(words[8001, 1], 60)
    splits = [2 * (at >= 8000) for at in range(9000)]
    looks = looks_across(words, splits, [str(number) for number in noise(9000, 1)[:, 0, 0]])
    assert [(look.video, look.other, look.num_bits) for look in looks] == [(8000, 5, 8), (8999, 4200, 8)]
    as_neighbours = [f"a/{at}x.mp4" if at not in (6, 8001) else f"b/walk{100 + at // 8001}.avi" for at in range(9000)]
    found = {look.video: look for look in looks_across(words, splits, as_neighbours)}
    assert (found[8001].other, found[8001].num_bits, found[8001].are_neighbours) == (6, 60, True)


def test_neighbours_are_told_by_the_last_number_of_their_names() -> None:
    sources = ["a/cam1_009.mp4", "b/cam1_010.avi", "a/cam1_012.mp4", "a/cam2_011.mp4", "a/walk.mp4", "b/7.mp4", "a/8"]
    assert [*neighbours(sources)] == [(0, 1), (5, 6)]


def test_a_fixed_camera_is_one_group_and_told_as_that() -> None:
    videos = [Video("", f"{name}/{number}.mp4", name, 1) for name in "ab" for number in range(9)]
    words = noise(18)
    words[1:5, 1], words[9, 0] = words[0, 0], words[4, 0]  # the last one by a chain

    def marked(decided: dict[str, str]) -> list[Video]:
        hashes = {video.source: hexadecimal(of_video) for video, of_video in zip(videos, words, strict=True)}
        return mark_alike(videos, range(18), hashes, decided)

    together = marked({})
    assert [video.source for video in together if video.alike == "a/0.mp4"] == [
        *(f"a/{n}.mp4" for n in range(1, 5)),
        "b/0.mp4",
    ]
    [(label, text)] = crowd_pitfalls(together)
    assert (label, text[:41]) == ("alike", "5 of the 9 videos of class 'a' are one gr")
    assert not [*crowd_pitfalls(videos)]
    # What is decided stays as it is, and what is open joins it.
    joining = marked({"b/0.mp4": "test", "a/3.mp4": "test", "a/0.mp4": "train"})
    assert {video.source: video.alike for video in joining if video.alike} == dict.fromkeys(
        ["a/1.mp4", "a/2.mp4"], "a/0.mp4"
    ) | {"a/4.mp4": "a/0.mp4"}


def test_a_class_of_one_look_has_too_few_videos() -> None:
    catalog = catalog_of({"a": 4, "b": 4})
    of_a, of_b = noise(1), noise(4, 1)
    hashes = {video.source: hexadecimal(of_a[0]) for video in catalog.videos[:4]}
    hashes |= {video.source: hexadecimal(of_b[at]) for at, video in enumerate(catalog.videos[4:])}
    recipe = PackRecipe(split=SplitConfig(group_similar=True))
    with pytest.raises(
        UsageError, match=r"'a' has too few videos \(1; .* look alike, .* leave --split.group-similar out"
    ):
        make_plan(catalog, recipe, hashes=hashes)


def hexadecimal(words: NDArray[np.uint64]) -> tuple[str, str]:
    return words[0].tobytes().hex(), words[1].tobytes().hex()


@pytest.mark.parametrize(
    ("names", "regex"),
    [
        ("walk/cam{0}_{1:03d}.mp4", r"([^/]+?)[ _.-]*\d+\.[^./]+$"),
        ("walk/film{0}_{1:02d}_{2:02d}.mp4", None),
        ("walk/fi{0:02d}{1}.mp4", r"([^/]*)\d\.[^./]+$"),
        ("walk/2024-05-{0:02d}T10-00 {1}x.mp4", None),
        ("walk/day{0}/{1}x{2}.mp4", r"^[^/]+/([^/]+)/"),
    ],
)
def test_the_pattern_of_names_that_keeps_recordings_together(names: str, regex: str | None) -> None:
    made = [(recording, names.format(recording, part, part * 7)) for recording in range(10, 19) for part in range(5)]
    videos = [Video("", source, "walk", 1) for _, source in made]
    pairs = [(at, at + 1) for at in range(len(made) - 1) if made[at][0] == made[at + 1][0]]
    found = find_pattern(videos, pairs, "")
    assert found is not None
    assert found.num_kept == len(pairs)
    assert regex is None or found.regex == regex
    groups = video_groups(videos, found.regex, {})
    assert len(set(groups)) == 9
    assert find_pattern(videos, [(0, 44), (1, 40), (2, 30)], "") is None
    assert find_pattern(videos[:5], pairs[:4], "") is None


def test_what_the_counts_spoil() -> None:
    names = ("run", "walk")
    enough = {"train": {"run": 200, "walk": 20}, "test": {"run": 30, "walk": 30}}
    assert not [*count_pitfalls(names, enough, SplitConfig())]
    few = {"train": {"run": 200, "walk": 19}, "val": {"run": 90}, "test": {"run": 10, "walk": 10}}
    assert dict(count_pitfalls(names, few, SplitConfig())) == {
        "few": "1 class has fewer than 20 clips to train on: 'walk' (19)",
        "test": "of 20 test clips, 80 % right may mean 58 to 92 %; --split.num-folds 5 tests every clip once",
    }
    assert dict(count_pitfalls(names, few, SplitConfig(num_folds=5))).keys() == {"few"}  # 100 clips in all folds
    found = dict(count_pitfalls(("run",), {"train": {"run": 100}, "val": {"run": 9}}, SplitConfig(test_fraction=0)))
    assert found.keys() == {"classes", "val"}


def test_a_dry_run_tells_what_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "data", {"a": 5, "b": 5}, 4)
    assert run(data, tmp_path / "shards", "--dry-run") == 0
    assert [line[:9].strip() for line in told(capsys.readouterr().out)] == ["few", "test"]
