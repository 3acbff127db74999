"""One shard: cut where it overflows, whole or absent, read back only if unchanged."""

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from configs.pack import ClipConfig, DecodeLimits
from packer.planning.plan import PlannedShard
from packer.shards.sample import members_crc32, read_members
from packer.shards.shard import ShardWriter, verified_record
from packer.storage.files import write_atomically
from packer.storage.target_lock import RECORDS
from packer.video.catalog import Video
from packer.video.clip import Clip, read_clip
from packer.video.container import VideoError
from tests.support.videos import write_numbered_video

PLANNED = PlannedShard("val-000000", "val", tuple(Video("", f"a/{number}.mp4", "a", 1) for number in range(6)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path = write_numbered_video(tmp_path_factory.mktemp("shard") / "video.mp4", 20)
    return read_clip(path, ClipConfig(), DecodeLimits())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / RECORDS).mkdir()
    return tmp_path


def write(folder: Path, clip: Clip, max_bytes: int) -> None:
    with ShardWriter(folder, PLANNED, max_bytes) as writer:
        for number, video in enumerate(PLANNED.videos):
            if number == 2:
                writer.reject(video, VideoError("undecodable", "not one frame of the video can be decoded"))
            else:
                writer.add(video, 0, replace(clip, source_sha256=f"{number:064d}"))


@pytest.mark.parametrize(("samples_per_tar", "num_samples"), [(9, [5]), (2, [2, 2, 1]), (1, [1] * 5), (0, [1] * 5)])
def test_a_shard_is_cut_at_max_bytes(folder: Path, clip: Clip, samples_per_tar: int, num_samples: list[int]) -> None:
    sample_bytes = 18 * 1024 + sum(-(-len(jpeg) // 512) * 512 - 512 for jpeg in clip.jpegs) + 512
    write(folder, clip, samples_per_tar * sample_bytes + tarfile.RECORDSIZE)
    record = verified_record(folder, PLANNED)
    assert record is not None
    assert [shard.num_samples for shard in record.shards] == num_samples
    names = ["val-000000.tar", *(f"val-000000_{part}.tar" for part in range(1, len(num_samples)))]
    assert [shard.name for shard in record.shards] == names
    assert [row.source for row in record.rows] == [f"a/{number}.mp4" for number in (0, 1, 3, 4, 5)]
    assert [row.source for row in record.rejected] == ["a/2.mp4"]
    for shard in record.shards:
        rows = [row for row in record.rows if row.shard == shard.name]
        assert [row.offset for row in rows] == [number * rows[0].num_bytes for number in range(len(rows))]
        assert (folder / shard.name).stat().st_size == shard.num_bytes


def test_a_sample_is_read_as_it_was_written(folder: Path, clip: Clip) -> None:
    write(folder, clip, 2**20)
    record = verified_record(folder, PLANNED)
    assert record is not None
    whole = (folder / "val-000000.tar").read_bytes()
    for row in record.rows:
        data = whole[row.offset : row.offset + row.num_bytes]
        stored = read_members(data)
        assert stored.key == row.key
        assert list(stored.members) == [f"{number:03d}.jpg" for number in range(16)] + ["cls", "json"]
        assert stored.jpegs == list(clip.jpegs)
        assert stored.members["cls"] == b"0"
        places = zip(row.member_offsets, row.member_sizes, strict=True)
        assert [data[start : start + size] for start, size in places] == list(stored.members.values())
        assert members_crc32(stored.members.values()) == row.crc32
        with pytest.raises(ValueError, match="holds a member that does not end within it"):
            read_members(data[:-512])


def test_a_shard_of_rejected_videos_alone_has_no_tar(folder: Path) -> None:
    with ShardWriter(folder, PLANNED, 2**20) as writer:
        for video in PLANNED.videos:
            writer.reject(video, VideoError("timeout", "the video took longer than 1 s"))
    record = verified_record(folder, PLANNED)
    assert record is not None
    assert (record.shards, record.rows, len(record.rejected)) == ((), (), 6)
    assert not list(folder.glob("*.tar"))


def test_an_error_leaves_nothing_behind(folder: Path, clip: Clip) -> None:
    writer = ShardWriter(folder, PLANNED, 2**20)
    with pytest.raises(KeyboardInterrupt), writer:  # noqa: PT012
        writer.add(PLANNED.videos[0], 0, clip)
        raise KeyboardInterrupt
    assert [path.name for path in folder.rglob("*")] == [RECORDS]
    assert verified_record(folder, PLANNED) is None


@pytest.mark.parametrize("name", ["val-000000.tar", f"{RECORDS}/val-000000.json"])
def test_a_changed_shard_is_not_done(folder: Path, clip: Clip, name: str) -> None:
    write(folder, clip, 2**20)
    assert verified_record(folder, PLANNED) is not None
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert verified_record(folder, PLANNED) is None
    (folder / name).unlink()
    assert verified_record(folder, PLANNED) is None


def test_write_atomically_keeps_the_old_file_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk"), write_atomically(path) as file:  # noqa: PT012
        file.write(b"new")
        raise OSError("disk full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
