"""Mixup and cutmix: partners of the global batch, exact shares, the same for any number of processes."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from configs.train import AugmentConfig, ViewConfig
from packer.shards.manifest import read_samples
from trainer.evaluation.contact_sheet import TRAIN_CLIPS_SHOWN, batch_strips
from trainer.schedule.order import Shuffle
from trainer.schedule.rows import Row
from trainer.schedule.schedule import Schedule
from trainer.stream.batch import Batch
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader
from trainer.views.mixing import Mixing
from trainer.views.train_view import TrainView

SHUFFLE = Shuffle(seed=1, block=8)
VIEW = TrainView(ViewConfig(short_side_px=32, size_px=24), AugmentConfig(horizontal_flip=True), seed=3)
BOTH = Mixing(mixup=0.8, cutmix=1.0, seed=3)
ROWS = [Row(0, index, 1.0) for index in range(400)]


def noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def mix(
    mixing: Mixing, clip: NDArray[np.uint8], partner: NDArray[np.uint8], row: Row
) -> tuple[NDArray[np.uint8], float]:
    mixed, share = mixing(torch.from_numpy(clip), torch.from_numpy(partner), row)
    return mixed.numpy(), share


def test_mixup_is_the_weighted_mean() -> None:
    clip, partner = noise(0), noise(1)
    shares = []
    for row in ROWS:
        mixed, share = mix(Mixing(mixup=0.5, cutmix=0.0, seed=0), clip, partner, row)
        wanted = share * clip.astype(float) + (1 - share) * partner
        assert np.abs(mixed - wanted).max() <= 0.5
        shares.append(share)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.std(shares) == pytest.approx(8**-0.5, abs=0.04)  # of Beta(0.5, 0.5)
    usual = [mix(Mixing(mixup=4.0, cutmix=0.0, seed=0), clip, partner, row)[1] for row in ROWS]
    assert np.std(usual) == pytest.approx(1 / 6, abs=0.03)


def test_cutmix_shows_the_partner_in_one_box_of_all_frames() -> None:
    clip, partner = np.full((3, 16, 16, 3), 10, np.uint8), np.full((3, 16, 16, 3), 200, np.uint8)
    shares, covered = [], np.zeros((16, 16), int)
    for row in ROWS:
        mixed, share = mix(Mixing(mixup=0.0, cutmix=1.0, seed=0), clip, partner, row)
        inside = mixed[0, :, :, 0] == 200
        assert (mixed == np.where(inside[None, :, :, None], partner, clip)).all()
        assert 1 - inside.mean() == share
        if inside.any():
            rows, columns = np.nonzero(inside)
            assert inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        shares.append(share)
        covered += inside
    assert (clip == 10).all()
    assert min(shares) < 0.2
    assert max(shares) > 0.95
    assert covered.min() > 0


def test_given_both_half_of_the_clips_are_cut() -> None:
    clip, partner = np.full((1, 16, 16, 3), 10, np.uint8), np.full((1, 16, 16, 3), 200, np.uint8)
    blended = [row for row in ROWS if 10 < mix(BOTH, clip, partner, row)[0].mean() < 200]
    cut = [row for row in blended if set(np.unique(mix(BOTH, clip, partner, row)[0])) == {10, 200}]
    assert 0.35 < len(cut) / len(blended) < 0.65


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 13, 30])
def test_partners_are_other_rows_of_the_global_batch(batch: int) -> None:
    schedule = Schedule((4, 1, 3, 5), batch, 2, 0, SHUFFLE)
    partners_of_row: dict[Row, Row | None] = {}
    for step in range(schedule.num_steps):
        rows, partners = schedule.rows(step, 0, 1), schedule.partners(step, 0, 1)
        real = [row for row in rows if row.weight]
        for row, partner in zip(rows, partners, strict=True):
            if not row.weight or len(real) < 2:
                assert partner is None
            else:
                assert partner in real
                assert partner != row
        for world_size in range(1, min(batch, 4) + 1):
            for rank in range(world_size):
                assert schedule.partners(step, rank, world_size) == partners[rank::world_size]
        partners_of_row |= zip(rows, partners, strict=True)
    if batch == 13:
        assert len({partner.index for partner in partners_of_row.values() if partner}) > 8


def test_every_place_may_be_a_partner() -> None:
    schedule = Schedule((12,), 4, 200, 0, SHUFFLE)
    pairs = set()
    for step in range(schedule.num_steps):
        rows = schedule.rows(step, 0, 1)
        pairs |= {
            (place, rows.index(partner)) for place, partner in enumerate(schedule.partners(step, 0, 1)) if partner
        }
    assert pairs == {(place, other) for place in range(4) for other in range(4) if place != other}


@dataclass(frozen=True)
class Mixed:
    """What a batch holds of one row."""

    clip: bytes
    label: int
    other_label: int
    share: float
    weight: float


def read(
    index: SampleIndex, batch: int, world_size: int = 1, num_workers: int = 0, mixing: Mixing | None = BOTH
) -> tuple[dict[tuple[int, Row], Mixed], list[Batch]]:
    schedule = Schedule(index.shard_sizes, batch, 2, 0, SHUFFLE)
    found, batches = {}, []
    for rank in range(world_size):
        loader = make_loader(
            index, schedule, VIEW, 24, rank=rank, world_size=world_size, num_workers=num_workers, mixing=mixing
        )
        for one in loader:
            others = one.labels if one.other_labels is None else one.other_labels
            shares = [1.0] * len(one.rows) if one.shares is None else one.shares.tolist()
            for place, row in enumerate(one.rows):
                values = (int(one.labels[place]), int(others[place]), shares[place], float(one.weights[place]))
                found[one.step, row] = Mixed(one.clips[place].numpy().tobytes(), *values)
            batches.append(one)
    return found, batches


@pytest.fixture(scope="module")
def index(packed: Path) -> SampleIndex:
    return SampleIndex.open(packed, "train")


def test_a_row_is_mixed_with_its_partner_as_the_partner_shows_itself(index: SampleIndex) -> None:
    plain, batches = read(index, 5, mixing=None)
    assert all(one.other_labels is None and one.targets == [(one.labels, one.weights)] for one in batches)
    mixed, _ = read(index, 5)
    schedule = Schedule(index.shard_sizes, 5, 2, 0, SHUFFLE)
    num_mixed = 0
    for step in range(schedule.num_steps):
        for row, partner in zip(schedule.rows(step, 0, 1), schedule.partners(step, 0, 1), strict=True):
            got = mixed[step, row]
            if partner is None:
                assert got == plain[step, row]
                continue
            clips = [
                np.frombuffer(plain[step, one].clip, np.uint8).reshape(4, 3, 24, 24).transpose(0, 2, 3, 1)
                for one in (row, partner)
            ]
            clip, share = mix(BOTH, clips[0].copy(), clips[1].copy(), row)
            assert got.clip == clip.transpose(0, 3, 1, 2).tobytes()
            assert (got.label, got.other_label) == (index.labels[row.index], index.labels[partner.index])
            assert (got.share, got.weight) == (pytest.approx(share), 1.0)
            num_mixed += 1
    assert num_mixed == 42


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # however few cores there are
def test_mixed_batches_do_not_depend_on_who_reads_them(index: SampleIndex) -> None:
    wanted, _ = read(index, 5)
    for world_size, num_workers in ((2, 0), (3, 0), (1, 2)):
        assert read(index, 5, world_size, num_workers)[0] == wanted


def test_targets_divide_the_weight_of_a_row(index: SampleIndex) -> None:
    for batch in read(index, 5)[1]:
        (labels, own), (other_labels, rest) = batch.targets
        assert batch.shares is not None
        assert labels is batch.labels
        assert other_labels is batch.other_labels
        assert own.tolist() == pytest.approx((batch.weights * batch.shares).tolist())
        assert (own + rest).tolist() == pytest.approx(batch.weights.tolist())


def test_the_sheet_of_training_clips_says_what_was_mixed(index: SampleIndex) -> None:
    mixed, plain = read(index, 5)[1][0], read(index, 5, mixing=None)[1][0]
    names = "ab"
    assert mixed.shares is not None
    assert mixed.other_labels is not None
    wanted = [
        f"{names[label]} {share:.0%} + {names[other]} {1 - share:.0%}" if share < 1 else names[label]
        for label, other, share in zip(
            mixed.labels.tolist(), mixed.other_labels.tolist(), mixed.shares.tolist(), strict=True
        )
    ]
    assert any("+" in title for title in wanted)
    sources = [f"{row.index}.mp4" for row in mixed.rows]
    assert [strip.title for strip in batch_strips(mixed, names, sources)] == wanted
    assert [strip.note for strip in batch_strips(mixed, names, sources)] == sources[:TRAIN_CLIPS_SHOWN]
    assert [strip.title for strip in batch_strips(plain, names, sources)] == [
        names[label] for label in plain.labels.tolist()
    ]


def test_an_unreadable_partner_leaves_a_clip_as_it_is(packed: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    bad = 3
    row = read_samples(shards, "train").to_pylist()[bad]
    with (shards / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + row["member_offsets"][1])
        file.write(bytes(8))
    index = SampleIndex.open(shards, "train")
    plain, mixed = read(index, 5, mixing=None)[0], read(index, 5)
    schedule = Schedule(index.shard_sizes, 5, 2, 0, SHUFFLE)
    met = 0
    for step in range(schedule.num_steps):
        for one, partner in zip(schedule.rows(step, 0, 1), schedule.partners(step, 0, 1), strict=True):
            if one.index != bad and partner and partner.index == bad:
                assert mixed[0][step, one].clip == plain[step, one].clip
                assert mixed[0][step, one].share == 1
                met += 1
            if one.index == bad:
                assert mixed[0][step, one].weight == 0
    assert met
    assert sum(len(batch.errors) for batch in mixed[1]) == 2  # once in each epoch: where it has its own row
