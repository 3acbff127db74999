"""The manifest and the index are read back as written, or refused with the way out."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from packer.__main__ import main
from packer.shards.manifest import ManifestError, manifest_sha256, read_manifest, read_samples, write_samples
from packer.shards.sample import SampleRow
from tests.support.videos import write_classes


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest")
    data = write_classes(folder / "data", {"a": 5, "b": 5}, 4)
    assert main([str(data), str(folder / "shards"), "--clip.num-frames", "3"]) == 0
    return folder / "shards"


def test_manifest_says_what_was_packed(shards: Path) -> None:
    there = read_manifest(shards)
    assert (there.format_version, there.clip.num_frames, there.seed) == (1, 3, 0)
    assert set(there.versions) == {"clipstream", "av", "simplejpeg"}
    assert len(manifest_sha256(shards)) == 64
    assert str(shards) not in (shards / "manifest.json").read_text()


def test_samples_come_in_the_order_of_the_shards(shards: Path) -> None:
    for split, summary in read_manifest(shards).splits.items():
        table = read_samples(shards, split, ("shard", "offset"))
        assert table.column_names == ["shard", "offset"]
        places = [(row["shard"], row["offset"]) for row in table.to_pylist()]
        assert places == sorted(places)
        assert [shard.name for shard in summary.shards] == sorted({shard for shard, _ in places})
    assert read_samples(shards, "no such split").num_rows == 0


def test_a_large_index_is_written_in_groups(shards: Path, tmp_path: Path) -> None:
    table = read_samples(shards, "train")
    write_samples(tmp_path, (SampleRow.model_validate(row) for row in table.to_pylist()), rows_per_group=2)
    assert pq.read_metadata(tmp_path / "samples.parquet").num_row_groups == -(-table.num_rows // 2) > 1
    assert read_samples(tmp_path, "train").equals(table)


def test_what_is_no_pack_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no complete pack"):
        read_manifest(tmp_path)
    values = json.loads((shards / "manifest.json").read_text())
    path = tmp_path / "manifest.json"
    for text, message in [
        ("{", "is not a manifest"),
        ("[]", "is not a manifest"),
        (json.dumps({**values, "format_version": 2}), "has format 2, this version reads 1: update clipstream"),
        (json.dumps({**values, "class_names": 5}), "is damaged: class_names"),
    ]:
        path.write_text(text)
        with pytest.raises(ManifestError, match=message):
            read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="run the packer again, it rebuilds the index"):
        read_samples(tmp_path, "train")
