"""Reading one sample of a shard; damage to it costs its own row, and nothing else."""

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from configs.train import ViewConfig
from packer.shards.manifest import ManifestError, read_samples
from trainer.schedule.order import Shuffle
from trainer.schedule.rows import Row
from trainer.schedule.schedule import Schedule
from trainer.stream.batch import FILL_VALUE, Batch
from trainer.stream.index import SampleError, SampleIndex
from trainer.stream.loader import make_loader
from trainer.stream.readers import LocalReader, ShardReader
from trainer.stream.sample import BadSample, DecodedSample, Slot
from trainer.stream.stages import decode
from trainer.views.eval_view import EvalView
from trainer.views.frames import FixedFrames

BAD = 8
"""The sample that is damaged; the second of its shard."""


@pytest.fixture(scope="module")
def index(packed: Path) -> SampleIndex:
    return SampleIndex.open(packed, "train")


@pytest.fixture
def damaged(packed: Path, tmp_path: Path) -> Path:
    """A pack of one's own to damage."""
    return shutil.copytree(packed, tmp_path / "shards")


def read(index: SampleIndex, schedule: Schedule) -> list[Batch]:
    return list(make_loader(index, schedule, EvalView(ViewConfig(short_side_px=32, size_px=32)), 32))


def decode_bad(index: SampleIndex, reader: ShardReader) -> DecodedSample | BadSample:
    """Reads and decodes sample BAD."""
    sample = index.read(reader, BAD)
    sample["__slot__"] = Slot(Row(0, BAD, 1.0), step=0, place=0, num_rows=1)
    return next(decode([sample], frames=FixedFrames(range(4))))


def test_few_shards_are_open_at_once(packed: Path, index: SampleIndex) -> None:
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    reader = LocalReader(packed, max_open=2)
    contents = {shard: (packed / shard).read_bytes() for shard in index.shards}
    for shard in (*index.shards, *reversed(index.shards)):
        assert reader.read(shard, 512, 100) == contents[shard][512:612]
        assert len(list(Path("/proc/self/fd").iterdir())) <= open_files + 2
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def change(index: SampleIndex, member: int, position: int, new: bytes) -> None:
    """Overwrites bytes of a member of sample BAD, counted from the member's data."""
    row = read_samples(index.folder, "train").to_pylist()[BAD]
    with (index.folder / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + row["member_offsets"][member] + position)
        file.write(new)


def cut_shard(index: SampleIndex) -> SampleIndex:
    os.truncate(index.folder / index.shards[index.shard_of[BAD]], int(index.offsets[BAD]) + 3000)
    return index


def lose_shard(index: SampleIndex) -> SampleIndex:
    (index.folder / index.shards[index.shard_of[BAD]]).unlink()
    return index


def without_crcs(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, crcs=np.zeros_like(index.crcs))


def flip_jpeg(index: SampleIndex) -> SampleIndex:
    change(index, 2, 0, b"\0\0\0\0")
    return without_crcs(index)


def cut_jpeg(index: SampleIndex) -> SampleIndex:
    change(index, 1, 100, bytes(400))
    return without_crcs(index)


def change_pixels(index: SampleIndex) -> SampleIndex:
    """Changes the table of a JPEG by which its pixels are scaled: it decodes as well as before."""
    change(index, 2, 30, b"\x55")
    with closing(index.reader()) as reader:
        assert isinstance(decode_bad(without_crcs(index), reader), DecodedSample)
    return index


def damage_header(index: SampleIndex) -> SampleIndex:
    change(index, 3, -512 + 257, b"XXXXX")
    return index


def damage_size(index: SampleIndex) -> SampleIndex:
    change(index, 3, -512 + 124, b"77777777777")
    return index


def negative_size(index: SampleIndex) -> SampleIndex:
    change(index, 3, -512 + 124, b"-0000100000")
    return index


def damage_label(index: SampleIndex) -> SampleIndex:
    change(index, 4, 0, b"7")
    return index


def move_offset(index: SampleIndex, num_bytes: int) -> SampleIndex:
    offsets = index.offsets.copy()
    offsets[BAD] += num_bytes
    return dataclasses.replace(index, offsets=offsets)


def shift_into_data(index: SampleIndex) -> SampleIndex:
    return move_offset(index, 100)


def shift_by_a_member(index: SampleIndex) -> SampleIndex:
    row = read_samples(index.folder, "train").to_pylist()[BAD]
    return move_offset(index, row["member_offsets"][1] - 512)


def end_too_early(index: SampleIndex) -> SampleIndex:
    num_bytes = index.num_bytes.copy()
    num_bytes[BAD] -= 512
    return dataclasses.replace(index, num_bytes=num_bytes)


def end_too_late(index: SampleIndex) -> SampleIndex:
    num_bytes = index.num_bytes.copy()
    num_bytes[BAD] += 512
    return dataclasses.replace(index, num_bytes=num_bytes)


DAMAGES = [
    (cut_shard, "ends after 3000 of [0-9]+ bytes: the shard is cut short"),
    (lose_shard, "cannot be read: .*No such file"),
    (flip_jpeg, "cannot be decoded: "),
    (cut_jpeg, "cannot be decoded: "),
    (change_pixels, r", .*, is not as it was packed \(its crc32 differs\)"),
    (damage_header, "holds no tar header at byte"),
    (damage_size, "holds a member that does not end within it: .*003.jpg"),
    (negative_size, "holds a member that does not end within it: .*003.jpg"),
    (damage_label, r"holds class b'7', not [01] as its index says"),
    (shift_into_data, "holds no tar header at byte 0: the shard and its index differ"),
    (shift_by_a_member, "runs into .* from .*: the shard and its index differ"),
    (end_too_early, "holds a member that does not end within it: .*json"),
    (end_too_late, "runs into .* from .*: the shard and its index differ|holds no tar header"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_sample_harms_only_itself(
    index: SampleIndex, damaged: Path, damage: Callable[[SampleIndex], SampleIndex], message: str
) -> None:
    schedule = Schedule(index.shard_sizes, 5, 1, 0, Shuffle(seed=1, block=8))
    harmed = damage(SampleIndex.open(damaged, "train"))
    # A shard that is cut or lost takes the samples behind the place with it.
    shard = harmed.shard_of[BAD]
    lost = {
        cut_shard: {number for number in range(21) if harmed.shard_of[number] == shard and number >= BAD},
        lose_shard: {number for number in range(21) if harmed.shard_of[number] == shard},
    }.get(damage, {BAD})
    batches = read(harmed, schedule)
    for batch, whole in zip(batches, read(index, schedule), strict=True):
        assert batch.rows == whole.rows
        good = [place for place, row in enumerate(batch.rows) if row.index not in lost]
        assert len(batch.errors) == len({row.index for row in batch.rows if row.weight} & lost)
        for place, row in enumerate(batch.rows):
            if row.index in lost:
                assert batch.weights[place] == 0
                # The picture of another clip of the batch: batch norm sees it, the loss does not.
                assert (batch.clips[place] == batch.clips[good[0]]).all()
            else:
                assert (batch.clips[place] == whole.clips[place]).all()
                assert (batch.labels[place], batch.weights[place]) == (whole.labels[place], whole.weights[place])
    errors = [error for batch in batches for error in batch.errors]
    assert len(errors) == len(lost)
    assert re.search(message, next(error for error in errors if names_bad(error, harmed)))
    assert [batch.errors for batch in read(harmed, schedule)] == [batch.errors for batch in batches]


def names_bad(error: str, index: SampleIndex) -> bool:
    key = read_samples(index.folder, "train", ["key"])["key"][BAD].as_py()
    return f"sample {BAD} (" in error or error.startswith(f"{key} (")


@pytest.mark.parametrize("member", range(6))
def test_no_changed_byte_of_a_header_or_label_goes_wrong_silently(damaged: Path, member: int) -> None:
    """If a byte changes, the sample is read as it was packed or is an error; it is never read in part."""
    index = SampleIndex.open(damaged, "train")
    with closing(LocalReader(damaged)) as reader:
        whole = decode_bad(index, reader)
        assert isinstance(whole, DecodedSample)
        row = read_samples(damaged, "train").to_pylist()[BAD]
        begin = row["offset"] + row["member_offsets"][member] - 512
        num_errors = 0
        with (damaged / row["shard"]).open("r+b") as file:
            file.seek(begin)
            header = file.read(513)
            for position in (*range(0, 160, 3), 257, 258, *([512] if member == 4 else [])):
                file.seek(begin + position)
                file.write(bytes([header[position] ^ 0x11]))
                file.flush()
                try:
                    sample = decode_bad(index, reader)
                except SampleError:
                    num_errors += 1
                else:
                    assert isinstance(sample, BadSample) or (
                        sample.label == whole.label and np.array_equal(sample.clip, whole.clip)
                    )
                file.seek(begin + position)
                file.write(header[position : position + 1])
                file.flush()
    assert num_errors > 5


def test_a_batch_without_a_good_sample_keeps_its_shape(damaged: Path) -> None:
    for path in damaged.glob("*.tar"):
        path.unlink()
    index = SampleIndex.open(damaged, "train")
    for batch in read(index, Schedule(index.shard_sizes, 4)):
        assert batch.clips.shape == (4, 4, 3, 32, 32)
        assert (batch.clips == FILL_VALUE).all()
        assert not batch.weights.any()


def test_padding_that_cannot_be_read_is_counted_once(damaged: Path) -> None:
    index = SampleIndex.open(damaged, "val")
    (damaged / index.shards[0]).unlink()
    batches = read(index, Schedule(index.shard_sizes, 4))
    assert [row.index for row in batches[-1].rows if not row.weight] == [0, 1, 2]
    assert sum(len(batch.errors) for batch in batches) == index.shard_sizes[0]


def test_an_older_index_without_checksums_is_read(index: SampleIndex, damaged: Path) -> None:
    table = pq.read_table(damaged / "samples.parquet")
    pq.write_table(table.drop_columns(["crc32"]), damaged / "samples.parquet")
    older = SampleIndex.open(damaged, "train")
    assert index.crcs.all()
    assert not older.crcs.any()
    schedule = Schedule(index.shard_sizes, 4)
    for one, other in zip(read(index, schedule), read(older, schedule), strict=True):
        assert torch.equal(one.clips, other.clips)


def test_an_index_with_other_samples_than_the_manifest_is_refused(damaged: Path) -> None:
    table = pq.read_table(damaged / "samples.parquet")
    pq.write_table(table.slice(1), damaged / "samples.parquet")
    with pytest.raises(ManifestError, match=r"samples.parquet has 20 samples in its train split, the manifest 21"):
        SampleIndex.open(damaged, "train")


def test_a_folder_without_a_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds no complete pack \(manifest.json is missing\)"):
        SampleIndex.open(tmp_path, "train")
