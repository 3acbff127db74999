"""`verify` names every damaged file; `repair` writes those files again, to the same bytes, and no others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packer.shards.manifest import read_samples, write_samples
from packer.shards.sample import SampleRow
from packer.storage.target_lock import RECORDS
from tests.support.packs import assert_same_pack, files, refused, rows_of, run
from tests.support.videos import write_classes, write_numbered_video

FAST = ["--workers=1", "--clip.num-frames=2", "--clip.short-side-px=16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("repair") / "data", {"a": 8, "b": 8}, 4)


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    (data / "a/broken.mp4").write_bytes(bytes(2000))
    assert run(data, data.parent / "shards", *FAST, "--max-rejected-fraction=0.1") == 0
    return data.parent / "shards"


@pytest.fixture
def target(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "shards")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "train-000001.tar": (
        lambda folder: flip(folder / "train-000001.tar", 700),
        "its sha256 differs from the manifest's",
    ),
    "train-000002.tar": (lambda folder: cut(folder / "train-000002.tar"), "its sha256 differs from the manifest's"),
    "val-000000.tar": (lambda folder: (folder / "val-000000.tar").unlink(), "No such file or directory"),
    "samples.parquet": (lambda folder: flip(folder / "samples.parquet", 50), "its sha256 differs from the manifest's"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_repaired(
    data: Path, whole: Path, target: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE[name][0](target)
    kept = {path: path.stat().st_mtime_ns for path in target.glob("*.tar") if path.name != name}
    assert run("verify", target) == 1
    faults = capsys.readouterr().out.splitlines()[:-1]
    assert f"{name}: {DAMAGE[name][1]}" in faults
    assert {fault.partition(":")[0] for fault in faults} == {name}
    assert run("repair", target, data) == 0
    assert f"repaired {name}" in capsys.readouterr().out
    assert_same_pack(target, whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_index_that_is_gone_or_no_parquet_is_repaired(
    data: Path, whole: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (target / "samples.parquet").unlink()
    flip(target / "train-000003.tar", 700)
    assert run("verify", target) == 1
    assert run("repair", target, data) == 0
    assert_same_pack(target, whole)
    (target / "samples.parquet").write_bytes(b"torn")
    capsys.readouterr()
    assert run("verify", target) == 1
    first, second, last = capsys.readouterr().out.splitlines()  # though each split is looked for
    assert "sha256" in first
    assert "cannot be read" in second
    assert "2 faults" in last
    assert run("repair", target, data) == 0
    assert_same_pack(target, whole)


def test_an_index_that_lists_other_places_is_named(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [SampleRow.model_validate(row) for row in rows_of(target)]
    first, *others = rows
    moved = first.model_copy(update={"member_offsets": (*first.member_offsets[:-1], first.member_offsets[-1] + 1)})
    write_samples(target, [moved, *others])
    assert run("verify", target) == 1
    assert f"{first.shard}: sample {first.key}: it is not where the index says" in capsys.readouterr().out


def test_what_came_into_the_data_since_is_left_out(
    data: Path, whole: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = shutil.copytree(data, tmp_path / "data")
    write_numbered_video(more / "a/new.mp4", 5)
    (more / "a/new.txt").write_text("a text")
    assert run("repair", target, more) == 0
    assert "nothing was damaged" in capsys.readouterr().out
    (target / "test-000000.tar").unlink()
    assert run("repair", target, more) == 0
    assert_same_pack(target, whole)


def test_changed_videos_cannot_be_repaired(
    data: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(data, tmp_path / "data")
    row = read_samples(target, "val").to_pylist()[0]
    video = other / row["source"]
    (target / "val-000000.tar").unlink()
    content = video.read_bytes()
    video.write_bytes(content + b"\0")
    assert run("repair", target, other) == 1
    assert f"1 video ({row['source']}) must be packed again, but changed or went since" in capsys.readouterr().err
    flip_at = content.rindex(b"Lavf") + 1  # the encoder's name: the frames stay, the digest does not
    video.write_bytes(content[:flip_at] + b"A" + content[flip_at + 1 :])
    assert run("repair", target, other) == 1
    assert "val-000000.tar cannot be repaired, because the videos in" in capsys.readouterr().err


def test_what_has_no_whole_manifest_or_plan_is_not_repaired(
    data: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(target / RECORDS / "plan.json", 30)
    assert "has lost the plan that its manifest names" in refused(["repair", target, data], capsys)
    assert run("verify", target) == 1
    assert ".pack/plan.json: its sha256 differs from the manifest's" in capsys.readouterr().out
    shutil.rmtree(target / RECORDS)
    assert "has lost the plan that its manifest names" in refused(["repair", target, data], capsys)
    assert run("verify", target) == 0
    (target / "manifest.json").unlink()
    assert "holds no complete pack" in refused(["repair", target, data], capsys)
    assert "holds no complete pack" in refused(["verify", target], capsys)
    assert "holds no complete pack" in refused(["inspect", target], capsys)


def test_every_row_and_frame_is_checked(whole: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in rows_of(whole):
        for place in range(3):  # two JPEGs and the cls member
            shutil.copy(whole / row["shard"], target / row["shard"])
            flip(target / row["shard"], row["offset"] + row["member_offsets"][place])
            assert run("verify", target) == 1
            assert f"{row['shard']}: sample {row['key']}: " in capsys.readouterr().out
        shutil.copy(whole / row["shard"], target / row["shard"])
        flip(target / row["shard"], row["offset"] + row["member_offsets"][0] + 30)  # the table that scales its pixels
        assert run("verify", target) == 1
        assert f"sample {row['key']}: its crc32 differs from the index's" in capsys.readouterr().out
        shutil.copy(whole / row["shard"], target / row["shard"])
    assert files(target) == files(whole)
