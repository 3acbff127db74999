"""The exact stream on real shards: the same batches however many processes share them, each clip once."""

import gc
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset as wds
from numpy.typing import NDArray

from configs.train import AugmentConfig, ViewConfig
from packer.shards.manifest import read_samples
from tests.support.videos import number_picture, read_number
from trainer.schedule.order import Shuffle
from trainer.schedule.rows import Row
from trainer.schedule.schedule import Schedule
from trainer.stream.batch import Batch
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader
from trainer.stream.sample import BadSample, DecodedSample, Slot, SourceSample
from trainer.stream.source import RowSource
from trainer.stream.stages import View, decode
from trainer.views.eval_view import EvalView
from trainer.views.frames import FixedFrames
from trainer.views.train_view import TrainView

WHOLE = EvalView(ViewConfig(short_side_px=32, size_px=32))
RANDOM = TrainView(ViewConfig(short_side_px=32, size_px=24), AugmentConfig(horizontal_flip=True), seed=3)
SHUFFLE = Shuffle(seed=1, block=8)


@pytest.fixture(scope="module")
def index(packed: Path) -> SampleIndex:
    index = SampleIndex.open(packed, "train")
    assert len(set(index.shard_sizes)) > 1
    assert index.num_samples == sum(index.shard_sizes) == 21
    return index


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


SLOT = Slot(Row(0, 0, 1.0), step=0, place=0, num_rows=1)


def stored(key: str, jpeg: bytes) -> SourceSample:
    """A sample of one frame, as the source yields it."""
    return {"__key__": key, "__url__": "x.tar", "000.jpg": jpeg, "cls": b"0", "__slot__": SLOT}  # type: ignore[typeddict-unknown-key]


def test_clips_of_different_sizes_come_out_whole() -> None:
    """Frames are decoded over those of the clip before, where they have the same size."""
    pictures = [number_picture(number, *size) for number, size in enumerate([(8, 8), (8, 8), (16, 8), (8, 8), (8, 16)])]
    jpegs = [simplejpeg.encode_jpeg(picture, quality=95) for picture in pictures]
    samples = [stored(str(number), jpeg) for number, jpeg in enumerate(jpegs)]
    samples.insert(3, stored("bad", jpegs[0][:-30]))
    clips, errors = [], []
    for sample in decode(samples, frames=FixedFrames([0])):
        if isinstance(sample, DecodedSample):
            clips.append(sample.clip.clone())
        else:
            errors.append(sample.error)
    assert len(errors) == 1
    assert errors[0].startswith("bad (x.tar) cannot be decoded: ")
    assert all(np.array_equal(clip[0], simplejpeg.decode_jpeg(jpeg)) for clip, jpeg in zip(clips, jpegs, strict=True))


def test_a_sample_that_lacks_a_frame_is_bad() -> None:
    (sample,) = decode([stored("one", b"")], frames=FixedFrames([0, 3]))
    assert sample == BadSample(SLOT, "one (x.tar) cannot be decoded: it has no 003.jpg")


def test_a_loader_is_read_again_without_leaving_files_open(index: SampleIndex) -> None:
    loader = make_loader(index, Schedule(index.shard_sizes, 4), WHOLE, 32)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    runs = [[batch.rows for batch in loader] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_more_ranks_than_rows_are_refused_before_a_worker_starts(index: SampleIndex) -> None:
    with pytest.raises(ValueError, match=r"world_size \(5\) must be at most global_batch \(4\)"):
        make_loader(index, Schedule(index.shard_sizes, 4), WHOLE, 32, world_size=5, num_workers=2)
