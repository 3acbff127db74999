"""The stream bench's contenders on a tiny pack: that each still reads all that it is timed on."""

from pathlib import Path

import pytest

from packer.__main__ import main as pack
from tests.bench.stream import NUM_EPOCHS, NUM_FRAMES, ours, webdataset
from tests.support.videos import write_classes
from trainer.stream.index import SampleIndex


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    folder = tmp_path_factory.mktemp("bench")
    data = write_classes(folder / "data", {"a": 9, "b": 9}, num_frames=NUM_FRAMES)
    assert pack([str(data), str(folder / "shards"), "--workers=1", "--shards.max-samples=6"]) == 0
    return SampleIndex.open(folder / "shards", "train")


def test_ours_reads_every_clip(index: SampleIndex) -> None:
    assert sum(ours(index)) == NUM_EPOCHS * index.num_samples


def test_webdataset_reads_every_clip(index: SampleIndex) -> None:
    urls = [str(Path(index.folder) / shard) for shard in index.shards]
    assert sum(webdataset(urls)) == NUM_EPOCHS * index.num_samples
