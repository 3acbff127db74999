"""Which packed frames the model reads: one of each part in training, the sampling rule's in evaluation."""

import shutil
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.train import AugmentConfig, ViewConfig
from packer.shards.manifest import read_samples
from packer.video.sampling import frame_indices
from tests.support.videos import read_number
from trainer.schedule.order import Shuffle
from trainer.schedule.rows import Row
from trainer.schedule.schedule import Schedule
from trainer.stream.batch import Batch
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader
from trainer.views.eval_view import EvalView
from trainer.views.frames import Frames, RandomFrames, eval_frames, spread_frames
from trainer.views.train_view import TrainView

WHOLE = EvalView(ViewConfig(short_side_px=32, size_px=32))


@pytest.mark.parametrize(("num_packed", "num_frames"), [(8, 4), (7, 3), (16, 5), (4, 1), (3, 2)])
def test_every_part_gives_one_frame_and_every_frame_comes(num_packed: int, num_frames: int) -> None:
    frames = RandomFrames(num_packed, num_frames, seed=0)
    chosen = np.array([frames(Row(0, index, 1.0)) for index in range(300)])
    edges = [part * num_packed // num_frames for part in range(num_frames + 1)]
    for part, (start, end) in enumerate(pairwise(edges)):
        assert set(chosen[:, part]) == set(range(start, end))


def test_the_choice_is_keyed_by_seed_epoch_and_sample_alone() -> None:
    keys = list(product(range(2), range(3), range(20)))
    chosen = {(seed, epoch, index): RandomFrames(64, 4, seed)(Row(epoch, index, 1.0)) for seed, epoch, index in keys}
    assert len({tuple(numbers) for numbers in chosen.values()}) > 0.9 * len(keys)
    for seed, epoch, index in reversed(keys):
        assert RandomFrames(64, 4, seed)(Row(epoch, index, 0.0)) == chosen[seed, epoch, index]


def test_as_many_frames_as_were_packed_are_all_of_them() -> None:
    assert RandomFrames(5, 5, seed=3)(Row(1, 2, 1.0)) == list(range(5))
    assert eval_frames(5, 5).numbers == tuple(range(5))


def test_worked_examples() -> None:
    assert eval_frames(8, 4).numbers == frame_indices(8, 4) == (0, 2, 5, 7)
    assert spread_frames(8, 2, 2).numbers == [1, 5, 3, 7]
    assert spread_frames(8, 2, 4).numbers == [0, 4, 1, 5, 2, 6, 3, 7]


def read(index: SampleIndex, frames: Frames, world_size: int = 1, num_workers: int = 0) -> dict[Row, list[int]]:
    """Returns which packed frames each row shows: the videos show 6 v + 0, 2, 3 and 5 in those frames."""
    schedule = Schedule(index.shard_sizes, 5, 2, 0, Shuffle(seed=1, block=8))
    shown: dict[Row, list[int]] = {}
    for rank in range(world_size):
        loader = make_loader(
            index, schedule, WHOLE, 32, rank=rank, world_size=world_size, num_workers=num_workers, frames=frames
        )
        for batch in loader:
            assert not batch.errors
            for row, clip in zip(batch.rows, batch.clips, strict=True):
                numbers = [read_number(frame.permute(1, 2, 0).numpy()) % 6 for frame in clip]
                shown[row] = [[0, 2, 3, 5].index(number) for number in numbers]
    return shown


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # however few cores there are
def test_batches_show_the_frames_chosen_whoever_reads_them(packed: Path) -> None:
    index = SampleIndex.open(packed, "train")
    for frames in (RandomFrames(4, 2, seed=0), eval_frames(4, 3)):
        shown = read(index, frames)
        assert shown == {row: list(frames(row)) for row in shown}
        assert len(shown) >= 42
        assert read(index, frames, world_size=3) == shown
        assert read(index, frames, num_workers=2) == shown


def test_frames_that_are_not_read_are_not_decoded(packed: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    row = read_samples(shards, "train").to_pylist()[0]
    with (shards / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + row["member_offsets"][2])
        file.write(bytes(8))
    index = SampleIndex.open(shards, "train")
    index = replace(index, crcs=np.zeros_like(index.crcs))  # as of an older pack, which has no checksums

    def errors(frames: Frames) -> list[str]:
        batches: list[Batch] = list(make_loader(index, Schedule(index.shard_sizes, 5), WHOLE, 32, frames=frames))
        return [error for batch in batches for error in batch.errors]

    assert not errors(eval_frames(4, 2))  # 0 and 3
    assert "cannot be decoded" in errors(eval_frames(4, 3))[0]  # 0, 2 and 3


def test_the_view_is_chosen_as_ever() -> None:
    """The frames have random numbers of their own: crops do not change with them."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 24, 30, 3), dtype=np.uint8)
    view = TrainView(ViewConfig(short_side_px=24, size_px=16), AugmentConfig(), seed=0)
    row = Row(1, 2, 1.0)
    before = view(torch.from_numpy(frames), row).clone()
    RandomFrames(8, 4, seed=0)(row)
    generator = np.random.Generator(np.random.PCG64([0, 1, 2]))
    top, left = int(generator.integers(24 - 16 + 1)), int(generator.integers(30 - 16 + 1))
    assert np.array_equal(before, frames[:, top : top + 16, left : left + 16])
