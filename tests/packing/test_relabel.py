"""New labels give the pack that packing with them gives, from the stored frames, and a kill leaves no mixture."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.pack import PackConfig
from configs.section import UsageError
from packer.labels.rows import LabelRow, Labels
from packer.pack import pack
from packer.planning.plan import find_contradictions
from packer.prepare import prepare
from packer.relabel.match import match_rows
from packer.relabel.rewrite import relabel
from packer.report import format_relabelling
from packer.shards.manifest import MANIFEST, SAMPLES, read_manifest, read_rejected
from packer.storage.commit import current
from packer.storage.files import file_sha256
from packer.storage.location import Location, RemotePath
from packer.verify import find_faults
from packer.video.catalog import Video
from packer.video.segment import Segment
from tests.support.packs import assert_same_pack, files, refused, rows_of, run
from tests.support.s3 import get_folder, put_folder
from tests.support.videos import moving_pictures, write_classes, write_numbered_video, write_video

FAST = ["--workers=1", "--clip.num-frames=2", "--clip.short-side-px=16", "--shards.max-samples=3"]
RECIPE: dict[str, Any] = {"clip": {"num_frames": 2, "short_side_px": 16}, "shards": {"max_samples": 3}}
ALL_REJECTED = "--max-rejected-fraction=1"
RENAMED = {f"b/video {number}.mp4": "jump" for number in range(8)} | {"b/broken.mp4": "jump"}
"""All of class b, whose index becomes the last one, so that class c moves too."""
KILLED = """
import json, os, signal, sys
from pathlib import Path
from packer.labels.rows import LabelRow, Labels
from packer.relabel.rewrite import relabel

_, labels, *targets = sys.argv
rows = tuple(LabelRow("fixed.csv", path, label) for path, label in json.loads(labels).items())
for target in targets:
    target, _, steps = target.rpartition(":")
    if (child := os.fork()) == 0:
        num_steps = 0
        def step(event, args):
            global num_steps
            num_steps += str(args[0]).startswith(target) if args else 0
            if num_steps == int(steps):
                num_steps += 1  # os.kill is a step too
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(step)
        relabel(Path(target), Labels("table", rows, has_splits=False))
        os.write(1, f"{num_steps}\\n".encode())
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        os.write(1, f"{code}\\n".encode())
"""
"""Relabels targets, each named as TARGET:STEPS, and kills itself before so many steps in the target; -1: never. Prints
how many steps there were, or the exit code."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 videos of three classes, of which one is broken and one has a copy in another class."""
    data = write_classes(tmp_path_factory.mktemp("relabel") / "data", {"a": 8, "b": 8, "c": 8}, 4)
    (data / "b/broken.mp4").write_bytes(bytes(2000))
    (data / "b/notes.txt").write_text("a text")
    shutil.copy(data / "a/video 1.mp4", data / "c/copy of a video.mp4")
    return data


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    assert run(data, data.parent / "shards", *FAST, ALL_REJECTED) == 0
    return data.parent / "shards"


@pytest.fixture
def target(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "shards")


def labels_of(label_of: Mapping[str, str], split_of: Mapping[str, str] | None = None, group: str = "") -> Labels:
    """Returns labels as a reader gives them."""
    rows = [
        LabelRow(f"fixed.csv:{number}", path, label, (split_of or {}).get(path, ""), group)
        for number, (path, label) in enumerate(label_of.items(), start=2)
    ]
    return Labels("table", tuple(rows), has_splits=bool(split_of))


def printed(target: Location, labels: Labels, dry_run: bool = False) -> list[str]:
    """Returns the lines that the command prints."""
    return format_relabelling(relabel(target, labels, dry_run=dry_run), dry_run).splitlines()


def pack_anew(
    data: Path,
    target: Path,
    label_of: Mapping[str, str],
    class_names: tuple[str, ...],
    recipe: Mapping[str, Any] = RECIPE,
) -> None:
    """Packs videos with these labels in the places that they have in a pack of their folders."""
    prepared = prepare(PackConfig(source=str(data), target=str(target), **recipe))
    shards = []
    for shard in prepared.plan.shards:
        videos = [replace(video, class_name=label_of.get(video.source, video.class_name)) for video in shard.videos]
        shards.append(replace(shard, videos=tuple(videos)))
    everything = sorted((video for shard in shards for video in shard.videos), key=lambda video: video.source)
    digests = {video.source: file_sha256(Path(video.path)) for video in everything}
    plan = replace(
        prepared.plan,
        class_names=class_names,
        shards=tuple(shards),
        contradictions=find_contradictions(everything, digests),
    )
    pack(replace(prepared, plan=plan), workers=1)


def old_names(text: str) -> str:
    return re.sub(r"(-\d{6})r\d+", r"\1", text)


def values_of(path: Path) -> Any:
    """Returns what a JSON file holds, with the shards' first names and without the digests of files that name them."""
    values = json.loads(old_names(path.read_text()))
    return {name: value for name, value in values.items() if name not in {"samples_sha256", "plan_sha256"}}


def assert_alike(target: Path, fresh: Path) -> None:
    """Tells that two packs differ in the names of shards alone."""
    assert sorted(map(old_names, files(target))) == files(fresh)
    for name in files(target):
        if name.endswith(".json"):
            assert values_of(target / name) == values_of(fresh / old_names(name)), name
        elif name != SAMPLES:
            assert (target / name).read_bytes() == (fresh / old_names(name)).read_bytes(), name
    assert [{**row, "shard": old_names(row["shard"])} for row in rows_of(target)] == rows_of(fresh)


def test_the_pack_is_the_one_that_the_labels_give(data: Path, whole: Path, target: Path, tmp_path: Path) -> None:
    label_of = RENAMED | {"c/copy of a video.mp4": "a", "a/video 3.mp4": "c"}
    lines = printed(target, labels_of(label_of))
    found = {line[:9].strip(): line[10:] for line in lines[6:]}
    assert found["samples"] == "10 of 25 get another label; no row is about 15, which keep theirs"
    assert found["new"] == "1 class (jump): last in the order of classes"
    assert found["dropped"] == "1 class (b) without a video: the classes after it have new indices"
    assert [line.split()[0] for line in lines[1:4]] == ["a", "c", "jump"]
    pack_anew(data, tmp_path / "fresh", label_of, ("a", "c", "jump"))
    assert_alike(target, tmp_path / "fresh")
    assert not list(find_faults(target))
    manifest = read_manifest(target)
    assert manifest.class_names == ("a", "c", "jump")
    assert {row.class_name for row in read_rejected(target)} == {"jump", "b"}  # the text is in no class
    assert read_manifest(whole).class_names == ("a", "b", "c")


def write_table(path: Path, classes: Iterable[str]) -> Path:
    """Writes labels of segments of three videos and of one whole video, with these classes in turn."""
    path.parent.mkdir()
    lines = ["path,label,start,end,split"]
    turn = itertools.cycle(classes)
    for number in range(3):
        for split, start in (("train", 0), ("train", 1), ("val", 2), ("test", 3)):
            lines.append(f"{split}/long {number}.mp4,{next(turn)},{start},{start + 1},{split}")
    path.write_text("\n".join([*lines, f"train/whole.mp4,{next(turn)},,,train", f"train/no.mp4,{next(turn)},,,train"]))
    return path


def test_a_table_of_segments_gives_the_pack_of_that_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, number in itertools.product(("train", "val", "test"), range(3)):
        path = tmp_path / "data" / split / f"long {number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_numbered_video(path, 50, fps=10, first_number=1000 * number + 100 * ("train", "val", "test").index(split))
    write_numbered_video(tmp_path / "data/train/whole.mp4", 20, first_number=900)
    options = [*FAST, "--labels"]
    old = write_table(tmp_path / "old/labels.csv", ["jump", "run", "sit"])
    fixed = write_table(tmp_path / "fixed/labels.csv", ["walk", "jump", "zoom"])
    target, fresh = tmp_path / "shards", tmp_path / "fresh"
    assert run(tmp_path / "data", target, *options, old, ALL_REJECTED) == 0
    assert run(tmp_path / "data", fresh, *options, fixed, ALL_REJECTED) == 0
    assert "labelled otherwise now" in refused([tmp_path / "data", target, *options, fixed], capsys)
    assert run("relabel", target, "--labels", fixed, "--dry-run") == 0
    assert run("relabel", target, "--labels", fixed) == 0
    printed = capsys.readouterr().out
    assert "new       2 classes (walk, zoom)" in printed
    assert "dropped   2 classes (run, sit)" in printed
    assert_alike(target, fresh)
    assert run("verify", target) == 0
    next(target.glob("val*.tar")).unlink()
    assert run("repair", target, tmp_path / "data") == 0
    assert_alike(target, fresh)
    assert run(tmp_path / "data", target, *options, fixed, ALL_REJECTED, "--append") == 0
    assert_alike(target, fresh)
    assert run("inspect", target, "--sheet", tmp_path / "sheet.html") == 0
    assert "segments  12 of 9 files" in capsys.readouterr().out
    assert "--labels-frame-rate: must" in refused(
        ["relabel", target, "--labels", fixed, "--labels-frame-rate=-1"], capsys
    )
    assert "none.csv" in refused(["relabel", target, "--labels", tmp_path / "none.csv"], capsys)


def test_other_shards_stay_and_equal_labels_give_equal_bytes(whole: Path, target: Path, tmp_path: Path) -> None:
    other = shutil.copytree(target, tmp_path / "other")
    row = next(row for row in rows_of(whole) if row["class_name"] == "a" and row["split"] == "train")
    before = {path.name: path.stat().st_mtime_ns for path in target.glob("*.tar")}
    lines = printed(target, labels_of({row["source"]: "b"}))
    num_shards = len(before)
    assert f"shards    1 of {num_shards} with other labels or class indices, under new names" in lines
    after = {path.name: path.stat().st_mtime_ns for path in target.glob("*.tar")}
    changed = row["shard"].replace(".tar", "r1.tar")
    assert after.keys() - before.keys() == {changed}
    assert before.keys() - after.keys() == {row["shard"]}
    assert all(after[name] == time for name, time in before.items() if name in after)
    relabel(other, labels_of({row["source"]: "b"}))
    assert_same_pack(target, other)
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert "samples   0 of 25 get" in "\n".join(printed(target, labels_of({row["source"]: "b"})))
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == times
    relabel(target, labels_of({row["source"]: "a"}))
    assert (target / changed.replace("r1", "r2")).read_bytes() == (whole / row["shard"]).read_bytes()
    assert_alike(target, whole)


def test_a_shard_of_several_tars_is_cut_anew(tmp_path: Path) -> None:
    pictures = moving_pictures(12)
    for number in range(24):
        path = tmp_path / "data" / ("a" if number % 2 else "b") / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, [np.roll(picture, 4 * number, axis=0) for picture in pictures])
    recipe: dict[str, Any] = {"shards": {"min_train_shards": 1, "max_bytes": 2**20}}
    options = ["--workers=1", "--shards.min-train-shards=1", f"--shards.max-bytes={2**20}"]
    target, fresh = tmp_path / "shards", tmp_path / "fresh"
    assert run(tmp_path / "data", target, *options) == 0
    assert (target / "train-000000_1.tar").exists()
    label_of = {f"b/{number}.mp4": "a class of a longer name" for number in range(0, 24, 2)}
    relabel(target, labels_of(label_of))
    pack_anew(tmp_path / "data", fresh, label_of, ("a", "a class of a longer name"), recipe)
    assert (target / "train-000000r1_1.tar").exists()
    assert_alike(target, fresh)
    assert not list(find_faults(target))


def test_a_dry_run_writes_nothing(whole: Path, target: Path) -> None:
    lines = printed(target, labels_of(RENAMED), dry_run=True)
    assert lines[-1] == "dry run   nothing was written"
    assert "samples   8 of 25 get another label; no row is about 17, which keep theirs" in lines
    assert_same_pack(target, whole)


def test_only_a_rejected_video_is_labelled(whole: Path, target: Path) -> None:
    printed(target, labels_of({"b/broken.mp4": "c", "b/notes.txt": "a"}))
    assert {row.source: row.class_name for row in read_rejected(target)} == {"b/broken.mp4": "c", "b/notes.txt": "a"}
    assert {p.name: p.read_bytes() for p in target.glob("*.tar")} == {
        p.name: p.read_bytes() for p in whole.glob("*.tar")
    }
    assert not list(find_faults(target))


def test_what_the_labels_say_more_is_told(target: Path) -> None:
    rows = rows_of(target)
    of_train, of_val = (next(row["source"] for row in rows if row["split"] == split) for split in ("train", "val"))
    splits = {of_train: "test", of_val: "val"}
    label_of = {row["source"]: row["class_name"] for row in rows} | {"a/new.mp4": "a", "a/newer.mp4": "B"}
    lines = "\n".join(printed(target, labels_of(label_of, splits, group="camera 1")))
    assert "absent    2 rows (a/new.mp4, a/newer.mp4) of the labels: the pack lacks them" in lines
    assert f"splits    1 row ({of_train}) with another split than the pack: every sample stays in its split" in lines
    assert "groups    1 group (camera 1) of the labels in several splits of the pack: pack again to mend it" in lines
    assert "samples   0 of 25 get another label; no row is about 0, which keep theirs" in lines
    of_a = [row["source"] for row in rows if row["class_name"] == "a"]
    lines = "\n".join(printed(target, labels_of(dict.fromkeys(of_a, "B")), dry_run=True))
    assert "classes   'b' and 'B' differ in case, spaces or accents only" in lines


def test_what_cannot_be_is_refused(
    data: Path, whole: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(target)
    of_val = next(row["source"] for row in rows if row["split"] == "val")
    of_b = {row["source"]: "a" for row in rows if row["class_name"] == "b"}

    def refusal(labels: Labels, folder: Path = target) -> str:
        with pytest.raises(UsageError) as raised:
            relabel(folder, labels)
        assert len(str(raised.value).splitlines()) == 1
        return str(raised.value)

    assert f"class 'x' would have no sample in train, only 1 video ({of_val}) in val or test: give them" in refusal(
        labels_of({of_val: "x"})
    )
    assert "class 'b' would have no sample in train, only 1 video (b/broken.mp4) among the rejected" in refusal(
        labels_of(of_b)
    )
    assert "holds none of the 1 videos that the labels name, such as d/x.mp4 (fixed.csv:2)" in refusal(
        labels_of({"d/x.mp4": "a"})
    )
    assert "the labels are empty" in refusal(labels_of({}))
    assert_same_pack(target, whole)
    (target / SAMPLES).write_bytes(b"torn")
    assert "samples.parquet is damaged: `python -m packer repair" in refusal(labels_of(RENAMED))
    shutil.copy(whole / SAMPLES, target)
    (target / "rejected.parquet").unlink()
    assert "rejected.parquet is damaged: `python -m packer DATA" in refusal(labels_of(RENAMED))
    shutil.copy(whole / "rejected.parquet", target)
    damaged = bytearray((target / "train-000001.tar").read_bytes())
    damaged[1000] ^= 1
    (target / "train-000001.tar").write_bytes(damaged)
    assert "train-000001.tar is damaged: `python -m packer repair" in refusal(labels_of(RENAMED))
    assert run("repair", target, data) == 0
    assert_same_pack(target, whole)
    plan = (target / ".pack/plan.json").read_text()
    (target / ".pack/plan.json").write_text(f"{plan} ")
    assert "is being appended to: finish that" in refusal(labels_of(RENAMED))
    shutil.rmtree(target / ".pack")
    assert "has lost its plan" in refusal(labels_of(RENAMED))
    assert "holds no complete pack" in refusal(labels_of(RENAMED), tmp_path)
    assert "--labels: missing, and it has no default" in refused(["relabel", target], capsys)


def test_a_relabelled_pack_lives_on(
    data: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relabel(target, labels_of(RENAMED))
    kept = shutil.copytree(target, tmp_path / "kept")
    assert run("verify", target) == 0
    assert run("inspect", target, "--sheet", tmp_path / "sheet.html") == 0
    tar = next(target.glob("train-*r1.tar"))
    tar.unlink()
    assert run("repair", target, data) == 0
    assert_same_pack(target, kept)
    assert "holds a complete pack already" in refused([data, target, *FAST], capsys)
    (target / MANIFEST).unlink()
    tar.unlink()
    assert run(data, target, *FAST, ALL_REJECTED) == 0
    assert_same_pack(target, kept)

    more = shutil.copytree(data, tmp_path / "data")
    for path in write_classes(tmp_path / "more", {"a": 4, "d": 6}, 5).rglob("*.mp4"):
        (more / path.parent.name).mkdir(exist_ok=True)
        path.rename(more / path.parent.name / f"new {path.name}")
    write_numbered_video(more / "b/broken.mp4", 7, first_number=900)  # whole now: it comes in as what it was labelled
    assert run(more, target, *FAST, ALL_REJECTED, "--append") == 0
    manifest, rows = read_manifest(target), rows_of(target)
    assert manifest.class_names == ("a", "c", "jump", "d")
    assert [row for row in rows if row["source"] in {old["source"] for old in rows_of(kept)}] == rows_of(kept)
    assert next(row["class_name"] for row in rows if row["source"] == "b/broken.mp4") == "jump"
    assert {row["source"] for row in rows} - {row["source"] for row in rows_of(kept)} == {
        "b/broken.mp4",
        *(f"a/new video {number}.mp4" for number in range(4)),
        *(f"d/new video {number}.mp4" for number in range(6)),
    }
    relabel(target, labels_of({row["source"]: "b" for row in rows if row["class_name"] == "jump"}))
    assert read_manifest(target).class_names == ("a", "c", "d", "b")
    assert run("verify", target) == 0


def test_a_class_that_labels_made_small_does_not_stand_in_the_way(data: Path, target: Path, tmp_path: Path) -> None:
    of_train = next(row for row in rows_of(target) if row["split"] == "train" and row["class_name"] == "b")
    relabel(target, labels_of({of_train["source"]: "rare"}))
    more = shutil.copytree(data, tmp_path / "data")
    write_numbered_video(more / "a/new.mp4", 7, first_number=800)
    assert run(more, target, *FAST, ALL_REJECTED, "--append") == 0
    assert read_manifest(target).class_names == ("a", "b", "c", "rare")
    assert "a/new.mp4" in {row["source"] for row in rows_of(target)}


def test_labels_that_agree_let_a_contradiction_in(data: Path, tmp_path: Path) -> None:
    options = [*FAST, ALL_REJECTED, "--duplicates=reject"]
    target = tmp_path / "shards"
    more = shutil.copytree(data, tmp_path / "data")
    shutil.copy(more / "b/video 1.mp4", more / "b/copy.mp4")
    assert run(more, target, *options) == 0
    reasons = {row.source: row.reason for row in read_rejected(target)}
    assert reasons["a/video 1.mp4"] == reasons["c/copy of a video.mp4"] == "contradiction"
    copy = next(source for source in ("b/copy.mp4", "b/video 1.mp4") if reasons.get(source) == "duplicate")
    relabel(target, labels_of({"c/copy of a video.mp4": "a", copy: "c"}))
    rejected = {row.source: row for row in read_rejected(target)}
    assert rejected[copy].reason == "contradiction"
    assert rejected["a/video 1.mp4"].message.endswith("has the same one now: --append packs it")
    assert rejected["c/copy of a video.mp4"].reason == "duplicate"
    assert read_manifest(target).rejected["contradiction"] == 2
    assert not list(find_faults(target))
    assert run(more, target, *options, "--append") == 0
    packed = {row["source"]: row["class_name"] for row in rows_of(target)}
    assert packed["a/video 1.mp4"] == "a"
    assert "c/copy of a video.mp4" not in packed
    assert run(more, target, *options, "--append") == 0
    assert packed == {row["source"]: row["class_name"] for row in rows_of(target)}
    assert not list(find_faults(target))


def kill(targets: Iterable[tuple[Path, int]], label_of: Mapping[str, str]) -> list[int]:
    """Relabels targets, each until so many steps, and returns the number of steps or the exit code of each."""
    arguments = [f"{target}:{num_steps}" for target, num_steps in targets]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(label_of), *arguments], check=True, capture_output=True, text=True
    )
    return list(map(int, done.stdout.split()))


def test_a_kill_leaves_the_old_pack_or_the_new_one(data: Path, whole: Path, tmp_path: Path) -> None:
    new = shutil.copytree(whole, tmp_path / "new")
    (num_steps,) = kill([(new, -1)], RENAMED)
    assert num_steps > 60
    moments = {*random.Random(14).sample(range(1, num_steps), 6), *range(num_steps - 80, num_steps, 9)}
    targets = [shutil.copytree(whole, tmp_path / f"killed at {moment}") for moment in moments]
    assert kill(zip(targets, moments, strict=True), RENAMED) == [-9] * len(moments)
    seen = set()
    for number, target in enumerate(targets):
        assert not list(find_faults(target))
        is_new = file_sha256(current(target, MANIFEST)) == file_sha256(new / MANIFEST)
        other = new if is_new else whole
        seen.add(is_new)
        assert (read_manifest(target), rows_of(target)) == (read_manifest(other), rows_of(other))
        assert read_rejected(target) == read_rejected(other)
        if number % 3 == 0:  # another command clears up, and the labels come later
            assert run("repair", target, data) == 0
            assert_same_pack(target, other)
        elif number % 3 == 1:
            assert run(data, target, *FAST, ALL_REJECTED, "--append") == 0
            assert_same_pack(target, other)
        relabel(target, labels_of(RENAMED))
        assert_same_pack(target, new)
    assert seen == {True, False}


@pytest.mark.integration
def test_a_pack_in_a_store_is_relabelled(whole: Path, target: Path, bucket: str, tmp_path: Path) -> None:
    put_folder(whole, f"{bucket}/shards")
    remote = RemotePath(f"{bucket}/shards")
    for labels in (labels_of(RENAMED), labels_of({"a/video 0.mp4": "c"})):
        assert printed(remote, labels)[:-1] == printed(target, labels)[:-1]
        assert not list(find_faults(remote))
    got = get_folder(f"{bucket}/shards", tmp_path / "got")
    (got / ".pack/lock").touch()  # the lock of a local pack is a file that stays
    assert_same_pack(got, target)


@pytest.mark.integration
@pytest.mark.parametrize("awaited", ["undo.json", "commit.json"])
def test_a_kill_leaves_no_mixture_in_a_store(
    data: Path, whole: Path, target: Path, bucket: str, tmp_path: Path, awaited: str
) -> None:
    relabel(target, labels_of(RENAMED))
    put_folder(whole, f"{bucket}/shards")
    remote = RemotePath(f"{bucket}/shards")
    code = KILLED.replace("Path(target)", "locate(target)").replace("import relabel", "import relabel; {IMPORT}")
    code = code.replace("{IMPORT}", "from packer.storage.location import locate")
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(RENAMED), f"{remote}:-1"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (remote / f".pack/next/{awaited}").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(find_faults(remote))
    is_new = read_manifest(remote).class_names == ("a", "c", "jump")
    assert is_new or awaited == "undo.json"
    assert rows_of(remote) == rows_of(target if is_new else whole)
    (remote / ".pack/owner.json").unlink()  # its process may not be known as dead yet
    relabel(remote, labels_of(RENAMED))
    got = get_folder(str(remote), tmp_path / "got")
    (got / ".pack/lock").touch()
    assert_same_pack(got, target)


def test_the_trainer_reads_the_new_labels(target: Path) -> None:
    from trainer.schedule.schedule import Schedule
    from trainer.stream.index import SampleIndex
    from trainer.stream.loader import make_loader

    relabel(target, labels_of(RENAMED))
    for split in ("train", "val", "test"):
        index = SampleIndex.open(target, split)
        assert index.labels.tolist() == [row["class_index"] for row in rows_of(target) if row["split"] == split]
        batches = list(make_loader(index, Schedule(index.shard_sizes, 4), lambda frames, _: frames, 16))
        assert not [error for batch in batches for error in batch.errors]
        assert sum(len(batch.rows) for batch in batches) >= index.num_samples


def matched(sources: Iterable[str | Video], *rows: LabelRow) -> dict[str, str]:
    videos = [source if isinstance(source, Video) else Video("", source, "", 0) for source in sources]
    return {source: row.where for source, row in match_rows(videos, rows).row_of.items()}


def row(path: str, where: str = "here", **more: Any) -> LabelRow:
    return LabelRow(where, path, more.pop("label", "x"), **more)


@pytest.mark.parametrize(
    "path", ["run/a.b.mp4", "./run/a.b.mp4", "/data/run/a.b.mp4", "s3://bucket/data/run/a.b.mp4", "a.b.mp4"]
)
def test_a_row_may_name_its_video_in_several_ways(path: str) -> None:
    assert matched(["run/a.b.mp4", "walk/c.mp4", "walk/deep/d.mp4"], row(path)) == {"run/a.b.mp4": "here"}


def test_a_row_never_takes_another_video() -> None:
    sources = ["run/a.mp4", "walk/a.mp4", "walk/b.mp4"]
    assert matched(sources, row("jump/a.mp4"), row("jump/b.mp4"), row("/x/jump/b.mp4"), row("c")) == {}
    assert matched(sources, row("b", is_id=True)) == {"walk/b.mp4": "here"}
    assert matched(sources, row("a.mp4", label="run")) == {"run/a.mp4": "here"}
    with pytest.raises(UsageError, match=r"here names a\.mp4, which may be run/a\.mp4 or walk/a\.mp4"):
        matched(sources, row("a.mp4"))
    with pytest.raises(UsageError, match=r"one says 'x' of walk/b\.mp4, two says 'y': keep one"):
        matched(sources, row("b.mp4", "one"), row("walk/b.mp4", "two", label="y"))
    assert matched(["run/é.mp4"], row("run/é.mp4")) == {"run/é.mp4": "here"}


def test_a_row_of_a_segment_is_about_that_segment() -> None:
    first, second = Segment(Fraction(1), Fraction(5, 2)), Segment(Fraction(5, 2))
    videos = [Video("", f"a/long.mp4{segment.fragment}", "", 0, segment) for segment in (first, second)]
    assert matched(videos, row("long.mp4", segment=second)) == {"a/long.mp4#t=2.5": "here"}
    assert matched(videos, row("/x/a/long.mp4", segment=first)) == {"a/long.mp4#t=1,2.5": "here"}
    assert matched(videos, row("a/long.mp4"), row("a/long.mp4", segment=Segment(Fraction(1)))) == {}
