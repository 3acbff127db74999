"""The exact stream on real shards: the same batches however many processes share them, and nothing lost by damage."""

import dataclasses
import gc
import os
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset as wds
from numpy.typing import NDArray

from configs.train import AugmentConfig, ViewConfig
from packer.manifest import ManifestError, read_samples
from tests.videos import number_picture, read_number
from trainer.augment import EvalView, TrainView
from trainer.index import LocalReader, SampleError, SampleIndex
from trainer.schedule import Row, Schedule, Shuffle
from trainer.stream import (
    FILL_VALUE,
    Batch,
    RowSource,
    View,
    decode,
    make_loader,
)

WHOLE = EvalView(ViewConfig(short_side_px=32, size_px=32))
RANDOM = TrainView(ViewConfig(short_side_px=32, size_px=24), AugmentConfig(horizontal_flip=True), seed=3)
SHUFFLE = Shuffle(seed=1, block=8)


@pytest.fixture(scope="module")
def index(packed: Path) -> SampleIndex:
    index = SampleIndex.open(packed, "train")
    assert len(set(index.shard_sizes)) > 1
    assert index.num_samples == sum(index.shard_sizes) == 21
    return index


@pytest.fixture
def damaged(packed: Path, tmp_path: Path) -> Path:
    """A pack of one's own to damage."""
    return shutil.copytree(packed, tmp_path / "shards")


def read(
    index: SampleIndex,
    schedule: Schedule,
    view: View = WHOLE,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> list[Batch]:
    size_px = view.view.size_px  # type: ignore[attr-defined]
    loader = make_loader(index, schedule, view, size_px, rank=rank, world_size=world_size, num_workers=num_workers)
    return list(loader)


@dataclass
class GlobalBatch:
    """A step's rows put back in the order of positions."""

    rows: list[Row]
    clips: NDArray[np.uint8]
    labels: list[int]
    weights: list[float]


def global_batches(
    index: SampleIndex, schedule: Schedule, view: View, world_size: int, num_workers: int = 0
) -> list[GlobalBatch]:
    shares = [
        read(index, schedule, view, rank=rank, world_size=world_size, num_workers=num_workers)
        for rank in range(world_size)
    ]
    joined = []
    for step, parts in enumerate(zip(*shares, strict=True)):
        assert {part.step for part in parts} == {step}
        assert not any(part.errors for part in parts)
        size = schedule.global_batch
        places = [(place % world_size, place // world_size) for place in range(size)]
        joined.append(
            GlobalBatch(
                rows=[parts[rank].rows[place] for rank, place in places],
                clips=np.stack([parts[rank].clips[place].numpy() for rank, place in places]),
                labels=[int(parts[rank].labels[place]) for rank, place in places],
                weights=[float(parts[rank].weights[place]) for rank, place in places],
            )
        )
    assert len(joined) == schedule.num_steps
    return joined


def assert_same(got: list[GlobalBatch], wanted: list[GlobalBatch]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert (one.rows, one.labels, one.weights) == (other.rows, other.labels, other.weights)
        assert np.array_equal(one.clips, other.clips)


def test_a_batch_holds_what_its_rows_name(packed: Path, index: SampleIndex) -> None:
    sources = read_samples(packed, "train").to_pylist()
    seen = set()
    for batch in read(index, Schedule(index.shard_sizes, 4, 1, 0, SHUFFLE)):
        assert batch.clips.shape == (4, 4, 3, 32, 32)
        assert batch.clips[0].is_contiguous() is False
        for row, clip, label, weight in zip(batch.rows, batch.clips, batch.labels, batch.weights, strict=True):
            source = sources[row.index]
            numbers = [read_number(frame.permute(1, 2, 0).numpy()) for frame in clip]
            first = numbers[0]
            assert [number - first for number in numbers] == source["frame_indices"] == [0, 2, 3, 5]
            # Clip v shows 6v, 6v + 1, ...; class a has the first 17 clips.
            number = int(source["source"].partition("video ")[2].removesuffix(".mp4"))
            assert first == 6 * (number + 17 * source["class_index"])
            assert int(label) == source["class_index"] == index.labels[row.index]
            assert float(weight) == row.weight
            seen.add(first)
    assert len(seen) == 21


@pytest.mark.parametrize("batch", [4, 5, 7, 23])
def test_any_number_of_ranks_gives_the_same_global_batches(index: SampleIndex, batch: int) -> None:
    for start in (0, 3, 21):
        schedule = Schedule(index.shard_sizes, batch, 2, start, SHUFFLE)
        wanted = global_batches(index, schedule, RANDOM, world_size=1)
        for world_size in (2, 3, 4):
            assert_same(global_batches(index, schedule, RANDOM, world_size), wanted)


# There are as many workers as the test asks for, however few cores there are.
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize(("world_size", "start"), [(1, 0), (1, 5), (1, 10), (2, 15), (3, 25), (4, 20)])
def test_any_number_of_loader_workers_gives_the_same_global_batches(
    index: SampleIndex, num_workers: int, world_size: int, start: int
) -> None:
    """From odd steps too: DataLoader asks its first worker first, whatever the step."""
    whole = global_batches(index, Schedule(index.shard_sizes, 5, 2, 0, SHUFFLE), RANDOM, world_size=1)
    schedule = Schedule(index.shard_sizes, 5, 2, start, SHUFFLE)
    assert_same(global_batches(index, schedule, RANDOM, world_size, num_workers), whole[start // 5 :])


def test_every_start_continues_the_stream(index: SampleIndex) -> None:
    wanted = [
        (row, clip)
        for batch in read(index, Schedule(index.shard_sizes, 4, 2, 0, SHUFFLE), RANDOM)
        for row, clip in zip(batch.rows, batch.clips.numpy(), strict=True)
        if row.weight
    ]
    for start, world_size in product(range(1, 42, 3), (1, 3)):
        schedule = Schedule(index.shard_sizes, 5, 2, start, SHUFFLE)
        for number, batch in enumerate(global_batches(index, schedule, RANDOM, world_size)):
            for place, (row, weight) in enumerate(zip(batch.rows, batch.weights, strict=True)):
                if weight:
                    position = start + 5 * number + place
                    assert row == wanted[position][0]
                    assert np.array_equal(batch.clips[place], wanted[position][1])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_uses_each_sample_once(packed: Path, world_size: int) -> None:
    index = SampleIndex.open(packed, "val")
    schedule = Schedule(index.shard_sizes, 4)
    shares = [read(index, schedule, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {2}
    batches = [batch for share in shares for batch in share]
    rows = [row for batch in batches for row in batch.rows]
    assert sorted(row.index for row in rows if row.weight) == list(range(index.num_samples)) == list(range(5))
    assert len([row for row in rows if not row.weight]) == 3
    assert [weight for batch in batches for weight in batch.weights.tolist()] == [row.weight for row in rows]


@pytest.mark.filterwarnings("ignore:unclosed file .*tar:ResourceWarning")  # WebDataset does not close them
def test_plain_webdataset_reads_the_same_samples(packed: Path, index: SampleIndex) -> None:
    urls = [str(packed / shard) for shard in index.shards]
    plain = list(wds.WebDataset(urls, shardshuffle=False))
    ours = list(RowSource(index, Schedule(index.shard_sizes, 4), 0, 1))[: index.num_samples]
    for theirs, sample in zip(plain, ours, strict=True):
        names = {name for name in theirs if not name.startswith("__")}
        assert names == {name for name in sample if not name.startswith("__")}
        assert names == {"000.jpg", "001.jpg", "002.jpg", "003.jpg", "cls", "json"}
        assert {name: theirs[name] for name in (*names, "__key__", "__url__")} == {
            name: sample[name] for name in (*names, "__key__", "__url__")
        }
    gc.collect()  # the files that WebDataset leaves, while the filter is there


def test_webdataset_stages_go_on_from_our_source(index: SampleIndex) -> None:
    source = RowSource(index, Schedule(index.shard_sizes, 4), 0, 1)
    pipeline = wds.DataPipeline(source, wds.decode("rgb8"), wds.to_tuple("000.jpg", "cls"))
    picture, label = next(iter(pipeline))
    assert (picture.shape, label) == ((32, 32, 3), index.labels[0])


def test_a_clip_is_augmented_alike_in_any_batch_and_anew_in_every_epoch(index: SampleIndex) -> None:
    def clips(batch: int, world_size: int) -> dict[tuple[int, int], bytes]:
        schedule = Schedule(index.shard_sizes, batch, 2, 0, SHUFFLE)
        return {
            (row.epoch, row.index): clip.tobytes()
            for joined in global_batches(index, schedule, RANDOM, world_size)
            for row, clip in zip(joined.rows, joined.clips, strict=True)
        }

    wanted = clips(1, 1)
    assert clips(6, 3) == wanted
    assert clips(21, 2) == wanted
    assert sum(wanted[0, number] != wanted[1, number] for number in range(21)) > 15


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # however few cores there are
@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_batch_changes_another(index: SampleIndex, num_workers: int) -> None:
    loader = make_loader(index, Schedule(index.shard_sizes, 4, 2, 0, SHUFFLE), RANDOM, 24, num_workers=num_workers)
    held, copies = [], []
    for batch in loader:
        held.append(batch.clips)
        copies.append(batch.clips.clone())
    assert all((one == copy).all() for one, copy in zip(held, copies, strict=True))
    held[0].zero_()
    assert all((one == copy).all() for one, copy in zip(held[1:], copies[1:], strict=True))


def test_clips_of_different_sizes_come_out_whole() -> None:
    """Frames are decoded over those of the clip before, where they have the same size."""
    pictures = [number_picture(number, *size) for number, size in enumerate([(8, 8), (8, 8), (16, 8), (8, 8), (8, 16)])]
    jpegs = [simplejpeg.encode_jpeg(picture, quality=95) for picture in pictures]
    samples: list[dict[str, object]] = [
        {"__key__": str(number), "__url__": "x.tar", "000.jpg": jpeg, "cls": b"0"} for number, jpeg in enumerate(jpegs)
    ]
    samples.insert(3, {"__key__": "bad", "__url__": "x.tar", "000.jpg": jpegs[0][:-30], "cls": b"0"})
    decoded = [
        sample if "__error__" in sample else {**sample, "clip": sample["clip"].copy()}
        for sample in decode(samples, num_frames=1)
    ]
    assert [sample["__key__"] for sample in decoded if "__error__" in sample] == ["bad"]
    clips = [sample["clip"] for sample in decoded if "__error__" not in sample]
    assert all(np.array_equal(clip[0], simplejpeg.decode_jpeg(jpeg)) for clip, jpeg in zip(clips, jpegs, strict=True))


def test_a_loader_is_read_again_without_leaving_files_open(index: SampleIndex) -> None:
    loader = make_loader(index, Schedule(index.shard_sizes, 4), WHOLE, 32)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    runs = [[batch.rows for batch in loader] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_few_shards_are_open_at_once(packed: Path, index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.index.MAX_OPEN_SHARDS", 2)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    reader = LocalReader(packed)
    contents = {shard: (packed / shard).read_bytes() for shard in index.shards}
    for shard in (*index.shards, *reversed(index.shards)):
        assert reader.read(shard, 512, 100) == contents[shard][512:612]
        assert len(list(Path("/proc/self/fd").iterdir())) <= open_files + 2
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


BAD = 8
"""The sample that is damaged; the second of its shard."""


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


def flip_jpeg(index: SampleIndex) -> SampleIndex:
    change(index, 2, 0, b"\0\0\0\0")
    return index


def cut_jpeg(index: SampleIndex) -> SampleIndex:
    change(index, 1, 100, bytes(400))
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
    schedule = Schedule(index.shard_sizes, 5, 1, 0, SHUFFLE)
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
    """Whatever a byte becomes, the sample is whole and as it was, or it is an error; never a part of it."""
    index = SampleIndex.open(damaged, "train")
    with closing(LocalReader(damaged)) as reader:
        whole = next(decode([index.read(reader, BAD)], num_frames=4))
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
                    sample = next(decode([index.read(reader, BAD)], num_frames=4))
                except SampleError:
                    num_errors += 1
                else:
                    assert "__error__" in sample or (
                        sample["label"] == whole["label"] and np.array_equal(sample["clip"], whole["clip"])
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


def test_more_ranks_than_rows_are_refused_before_a_worker_starts(index: SampleIndex) -> None:
    with pytest.raises(ValueError, match=r"world_size \(5\) must be at most global_batch \(4\)"):
        make_loader(index, Schedule(index.shard_sizes, 4), WHOLE, 32, world_size=5, num_workers=2)


def test_a_folder_without_a_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds no complete pack \(manifest.json is missing\)"):
        SampleIndex.open(tmp_path, "train")
