"""JPEGs decoded by the training process give the batches, the skips and the run that loader processes give."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from configs.train import AugmentConfig, ViewConfig
from packer.shards.manifest import read_samples
from tests.support.registry import MLFLOW_WARNINGS
from tests.support.runs import CPU, MakeSpec, assert_as_whole, curve, newest, train
from trainer.learning.ranks import Ranks
from trainer.schedule.order import Shuffle
from trainer.schedule.rows import Row
from trainer.schedule.schedule import Schedule
from trainer.stream.batch import Batch
from trainer.stream.device_decoder import DecoderError, DeviceDecoder
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader
from trainer.stream.sample import BadSample, DecodedSample, JpegSample, Slot
from trainer.stream.stages import inspect
from trainer.views.frames import FixedFrames
from trainer.views.mixing import Mixing
from trainer.views.train_view import TrainView
from trainer.worker.outcome import Outcome
from trainer.worker.parts import open_index, train_loader
from trainer.worker.spec import JobSpec

pytestmark = [
    *MLFLOW_WARNINGS,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # however few cores there are
]

ALL = AugmentConfig(
    horizontal_flip=True,
    min_scale=0.6,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    erasing=0.5,
    mixup=0.8,
    cutmix=1.0,
)
DAMAGED = (3, 8, 9, 15)


def damage(shards: Path) -> None:
    """Cuts JPEGs of some samples short: of two in mid-pixels, of one in the header, and names a class wrongly."""
    rows = read_samples(shards, "train").to_pylist()
    for number, (member, offset) in zip(DAMAGED, [(1, -30), (2, -8), (0, 2), (4, 0)], strict=True):
        row = rows[number]
        with (shards / row["shard"]).open("r+b") as file:
            start, size = row["member_offsets"][member], row["member_sizes"][member]
            file.seek(row["offset"] + start + (offset if offset >= 0 else size + offset))
            file.write(bytes(8) if member < 4 else b"9")


def batches(index: SampleIndex, augment: AugmentConfig, **options: Any) -> list[Batch]:
    view = TrainView(ViewConfig(short_side_px=32, size_px=24), augment, seed=3)
    mixing = Mixing(augment.mixup, augment.cutmix, seed=3) if augment.mixup else None
    schedule = Schedule(index.shard_sizes, 5, 2, 3, Shuffle(seed=1, block=8))
    return list(make_loader(index, schedule, view, 24, mixing=mixing, **options))


def assert_same(got: list[Batch], wanted: list[Batch]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert (one.step, one.rows, one.errors) == (other.step, other.rows, other.errors)
        for (labels, weights), (other_labels, other_weights) in zip(one.targets, other.targets, strict=True):
            assert torch.equal(labels, other_labels)
            assert torch.equal(weights, other_weights)
        assert torch.equal(one.clips, other.clips)
        assert one.clips.stride() == other.clips.stride()


@pytest.mark.parametrize("augment", [AugmentConfig(), ALL])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (3, 0)])
def test_batches_are_those_of_the_loader_processes(
    packed: Path, augment: AugmentConfig, world_size: int, num_workers: int
) -> None:
    """To the last bit: torchvision's libjpeg-turbo and simplejpeg's decode alike."""
    index = SampleIndex.open(packed, "train")
    for rank in range(world_size):
        share = {"rank": rank, "world_size": world_size}
        wanted = batches(index, augment, **share)
        assert_same(batches(index, augment, decode_on=CPU, num_workers=num_workers, **share), wanted)


@pytest.mark.parametrize("with_checksums", [True, False])
@pytest.mark.parametrize("augment", [AugmentConfig(), ALL])
def test_bad_samples_are_the_same_ones_for_the_same_reasons(
    packed: Path, tmp_path: Path, augment: AugmentConfig, with_checksums: bool
) -> None:
    """Torchvision would decode two of them; the batches know before their weight sum is asked for."""
    shards = shutil.copytree(packed, tmp_path / "shards")
    damage(shards)
    index = SampleIndex.open(shards, "train")
    if not with_checksums:
        index = replace(index, crcs=np.zeros_like(index.crcs))  # as of an older pack
    wanted = batches(index, augment)
    assert sum(len(batch.errors) for batch in wanted) >= 2 * len(DAMAGED) - 1  # it starts at position 3
    assert any("cannot be decoded" in error for batch in wanted for error in batch.errors) is not with_checksums
    assert_same(batches(index, augment, decode_on=CPU), wanted)


def test_what_the_device_cannot_decode_harms_itself_alone() -> None:
    """Torchvision decodes all JPEGs of a list or none, and does not tell which one is bad."""
    pictures = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
    jpegs = [simplejpeg.encode_jpeg(picture) for picture in pictures]
    sent = [jpegs[:2], [jpegs[2], jpegs[3][:-30]], [jpegs[3]]]
    slots = [Slot(Row(0, place, 1.0), 0, place, 4) for place in range(4)]
    samples = [JpegSample(slot, f"{slot.place} (x.tar)", jpegs, 5) for slot, jpegs in zip(slots, sent, strict=False)]
    first, second, third, unread = DeviceDecoder([[*samples, BadSample(slots[3], "gone")]], CPU, [])
    assert isinstance(second, BadSample)
    assert second.error.startswith("1 (x.tar) cannot be decoded: ")
    assert unread == BadSample(slots[3], "gone")
    for sample, slot, wanted in ((first, slots[0], jpegs[:2]), (third, slots[2], [jpegs[3]])):
        assert isinstance(sample, DecodedSample)
        assert (sample.slot, sample.label) == (slot, 5)
        assert np.array_equal(sample.clip, np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in wanted]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_decodes_nothing_is_refused_before_all_samples_count_as_bad() -> None:
    message = r"^decode_on \(device\): cuda decodes no JPEG \(.+\): give --decode-on loader$"
    with pytest.raises(DecoderError, match=message):
        DeviceDecoder([], torch.device("cuda"), [])


def test_a_sample_whose_frames_differ_in_size_is_bad_without_being_decoded(packed: Path) -> None:
    index = SampleIndex.open(packed, "train")
    small, large = (simplejpeg.encode_jpeg(np.zeros((side, side, 3), np.uint8)) for side in (8, 16))
    row = next(iter(Schedule(index.shard_sizes, 1).rows(0, 0, 1)))
    slot = Slot(row, step=0, place=0, num_rows=1)
    sample = {"__key__": "one", "__url__": "x.tar", "000.jpg": small, "001.jpg": large, "cls": b"0", "__slot__": slot}
    (bad,) = inspect([sample], frames=FixedFrames(range(2)), index=index)
    assert isinstance(bad, BadSample)
    assert "one (x.tar) cannot be decoded: jpegs must be of one size" in bad.error


def test_a_run_that_decodes_itself_is_the_run(make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome]) -> None:
    spec = make_spec(decode_on="device")
    loaders = [train_loader(one.config, open_index(one, "train"), 0, Ranks(), CPU)[1] for one in (spec, whole_run[0])]
    assert [isinstance(loader, DeviceDecoder) for loader in loaders] == [True, False]
    assert_as_whole(spec, whole_run, train(spec))


def test_a_run_that_decodes_itself_counts_and_names_bad_samples(
    make_spec: MakeSpec, packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    damage(shards)
    skipped, states = [], []
    for decode_on in ("loader", "device"):
        caplog.clear()
        spec = make_spec(shards, max_bad_fraction=0.5, decode_on=decode_on)
        with caplog.at_level(logging.WARNING):
            train(spec)
        skipped.append([line.getMessage() for line in caplog.records if "sample skipped" in line.getMessage()])
        states.append((newest(spec)["num_bad"], curve(spec, "num_bad_samples"), curve(spec, "train_loss")))
    assert skipped[0] == skipped[1]
    assert states[0] == states[1]
    assert len(skipped[0]) == states[0][0] == 3 * len(DAMAGED)
