"""Rows: our stream against plain WebDataset and against the tutorial's data set, two loader workers each."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from configs.pack import ClipConfig, DecodeLimits
from configs.train import AugmentConfig, ViewConfig
from packer.__main__ import main as pack
from packer.video.clip import read_clip
from tests.bench.measure import Cost, Row, interleave, stopwatch
from tests.bench.tutorial import FrameFolders
from tests.bench.videos import make_sets
from trainer.schedule.order import Shuffle
from trainer.schedule.rows import Row as Place
from trainer.schedule.schedule import Schedule
from trainer.stream.index import SampleIndex
from trainer.stream.loader import make_loader
from trainer.views.train_view import TrainView

BATCH, NUM_LOADER_WORKERS, NUM_FRAMES, SIZE_PX = 8, 2, 16, 112
NUM_EPOCHS = 3
UNMEASURED_BATCHES = 4  # while workers start
VIEW = TrainView(ViewConfig(short_side_px=128, size_px=SIZE_PX), AugmentConfig(horizontal_flip=True), seed=0)


def rows(num_rounds: int, folder: Path) -> list[Row]:
    label, videos = list(make_sets(folder / "videos", num_per_class=100).items())[-1]
    shards = folder / "shards"
    # All samples but a few in the train split: a longer epoch is measured more exactly.
    fractions = ["--split.val-fraction", "0.1", "--split.test-fraction", "0.1"]
    if pack([str(videos), str(shards), *fractions]):
        raise SystemExit("bench: packing the videos failed")
    index = SampleIndex.open(shards, "train")
    num_samples = len(index.labels)
    urls = [str(index.folder / shard) for shard in index.shards]
    _store_frames(index, folder / "stored")
    _store_full_size_frames(videos, num_samples, folder / "full_size")
    costs = interleave(
        {
            "ours": partial(_measure, partial(ours, index), num_samples),
            "WebDataset": partial(_measure, partial(webdataset, urls), num_samples),
            "tutorial, stored": partial(_measure, partial(_tutorial, folder / "stored"), num_samples),
            "tutorial, full size": partial(_measure, partial(_tutorial, folder / "full_size"), num_samples),
        },
        num_rounds,
    )
    what = f"{num_samples} clips of 16 frames, {label} stored at short side 128, two loader workers, B={BATCH}"
    return [
        Row(
            "stream, same stored JPEGs, same transform",
            f"same work: {what}, simplejpeg, random {SIZE_PX} px crop and flip to uint8, channels_last batches",
            "clip", costs["ours"], "plain WebDataset", costs["WebDataset"], goal=1.4,
        ),
        Row(
            "stream, same stored JPEGs, own transforms",
            f"unlike work: {what}; the tutorial's reads the same JPEGs as single files by PIL and resizes, shifts, "
            "flips and normalises frame by frame to float32",
            "clip", costs["ours"], "tutorial", costs["tutorial, stored"],
        ),
        Row(
            "stream, each one's own defaults",
            f"unlike work: {what}; the tutorial's reads frames stored at the video's size, otherwise as above",
            "clip", costs["ours"], "tutorial", costs["tutorial, full size"], goal=6,
        ),
    ]  # fmt: skip


def _measure(make_batches: Callable[[], Iterator[int]], num_samples: int) -> Cost:
    """One round: NUM_EPOCHS over the samples; the first batches, while processes start, are not counted."""
    batches = make_batches()
    num_left = num_samples * NUM_EPOCHS - sum(next(batches) for _ in range(UNMEASURED_BATCHES))
    with stopwatch(num_left) as result:
        while (
            num_left > 0
        ):  # not to the iterator's end: loader workers that have ended cannot be asked for their CPU time
            num_left -= next(batches)
    return result[0]


def ours(index: SampleIndex) -> Iterator[int]:
    schedule = Schedule(index.shard_sizes, BATCH, NUM_EPOCHS, shuffle=Shuffle(seed=0, block=2000))
    for batch in make_loader(index, schedule, VIEW, SIZE_PX, num_workers=NUM_LOADER_WORKERS):
        yield int(batch.weights.sum())


def webdataset(urls: list[str]) -> Iterator[int]:
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), repeat=False)
        .repeat(NUM_EPOCHS)
        .shuffle(100)
        .map(_decode)
        .batched(BATCH, collation_fn=_collate)
    )
    for clips, _ in DataLoader(dataset, batch_size=None, num_workers=NUM_LOADER_WORKERS, persistent_workers=True):
        yield len(clips)


def _decode(sample: dict[str, Any]) -> tuple[np.ndarray, int]:
    frames = np.stack([simplejpeg.decode_jpeg(sample[f"{number:03d}.jpg"], "RGB") for number in range(NUM_FRAMES)])
    place = Place(epoch=0, index=int.from_bytes(sample["__key__"].encode()[-6:]), weight=1.0)
    return VIEW(torch.from_numpy(frames), place).numpy(), int(sample["cls"])


def _collate(samples: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    clips, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3), torch.tensor(labels)


def _tutorial(folder: Path) -> Iterator[int]:
    frames = FrameFolders(folder, SIZE_PX)
    loader = DataLoader(frames, BATCH, shuffle=True, num_workers=NUM_LOADER_WORKERS, persistent_workers=True)
    for _ in range(NUM_EPOCHS):
        for clips, _ in loader:
            yield len(clips)


def _store_frames(index: SampleIndex, target: Path) -> None:
    """Writes the stored JPEGs of every sample as files, as the tutorial's data set wants them."""
    reader = index.reader()
    for number in range(len(index.labels)):
        sample = index.read(reader, number)
        jpegs = [sample[f"{frame:03d}.jpg"] for frame in range(NUM_FRAMES)]
        _write_jpegs(target / sample["cls"].decode() / sample["__key__"], jpegs)


def _store_full_size_frames(videos: Path, num_clips: int, target: Path) -> None:
    """Writes the frames of as many videos at their own size, at OpenCV's quality."""
    for video in sorted(videos.glob("*/*"))[:num_clips]:
        clip = read_clip(video, ClipConfig(short_side_px=0, jpeg_quality=95), DecodeLimits())
        _write_jpegs(target / video.parent.name / video.stem, clip.jpegs)


def _write_jpegs(folder: Path, jpegs: Sequence[bytes]) -> None:
    folder.mkdir(parents=True)
    for number, jpeg in enumerate(jpegs):
        (folder / f"frame{number}.jpg").write_bytes(jpeg)
