"""The cache of shards on a real server of files: shared, bounded, and never wrong, whoever is killed or interferes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from packer.shards.manifest import ShardSummary, read_manifest
from packer.storage.location import RemotePath
from tests.support.waiting import until
from tests.support.web import WebServer, web_server
from trainer.schedule.schedule import Schedule
from trainer.stream.cache import CachedReader, ShardCache
from trainer.stream.index import SampleIndex
from trainer.stream.source import NUM_AHEAD, RowSource

pytestmark = pytest.mark.integration

READ_ALL = """
import sys
from pathlib import Path
from packer.storage.files import RemotePath
from trainer.stream.cache import ShardCache
from trainer.stream.index import SampleIndex

index = SampleIndex.open(RemotePath(sys.argv[1]), "train", ShardCache(Path(sys.argv[2]), int(sys.argv[3])))
num_rounds = 0
while num_rounds < 2 or len(list(Path(sys.argv[2]).glob("*.tar"))) < int(sys.argv[4]):
    reader = index.reader()
    for number in range(index.num_samples):
        index.read(reader, number)
    reader.close()
    num_rounds += 1
"""


@pytest.fixture(scope="module")
def summaries(packed: Path) -> tuple[ShardSummary, ...]:
    return read_manifest(packed).splits["train"].shards


@pytest.fixture
def server(packed: Path) -> Iterator[WebServer]:
    with web_server(packed) as made:
        yield made


def reader_of(
    server: WebServer, folder: Path, summaries: tuple[ShardSummary, ...], max_bytes: int = 10**9
) -> CachedReader:
    return CachedReader(ShardCache(folder, max_bytes), RemotePath(server.url), summaries)


def read_whole(reader: CachedReader, packed: Path, shard: ShardSummary) -> None:
    assert reader.read(shard.name, 0, shard.num_bytes) == (packed / shard.name).read_bytes()


def reads_cache(reader: CachedReader, server: WebServer, shard: ShardSummary) -> bool:
    """Reads a byte of a shard, and tells whether the server was not asked for it."""
    asked = server.counts()["part"].get(f"/{shard.name}", 0)
    assert reader.read(shard.name, 0, 1)
    return server.counts()["part"].get(f"/{shard.name}", 0) == asked


def held(folder: Path) -> list[Path]:
    return list(folder.glob("*.tar"))


def test_a_shard_that_was_read_is_held_and_read_again_without_the_server(
    packed: Path, server: WebServer, summaries: tuple[ShardSummary, ...], tmp_path: Path
) -> None:
    with closing(reader_of(server, tmp_path, summaries)) as reader:
        for shard in summaries:
            read_whole(reader, packed, shard)
        until(lambda: len(held(tmp_path)) == len(summaries))
    counts = server.counts()
    for _ in range(2):  # in the same process, and as another would
        with closing(reader_of(server, tmp_path, summaries)) as reader:
            for shard in summaries:
                read_whole(reader, packed, shard)
                assert reader.read(shard.name, 512, 100) == (packed / shard.name).read_bytes()[512:612]
    assert server.counts() == counts
    assert set(counts["whole"].values()) == {1}
    assert not list(tmp_path.glob("*.partial"))


def test_processes_share_one_download_of_each_shard(
    packed: Path, server: WebServer, summaries: tuple[ShardSummary, ...], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", READ_ALL, server.url, str(tmp_path), "1000000000", str(len(summaries))]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    whole = server.counts()["whole"]
    assert {whole[f"/{shard.name}"] for shard in summaries} == {1}
    assert sorted(path.stat().st_size for path in held(tmp_path)) == sorted(shard.num_bytes for shard in summaries)


def test_the_bound_is_kept_by_all_processes(
    packed: Path, server: WebServer, summaries: tuple[ShardSummary, ...], tmp_path: Path
) -> None:
    bound = 2 * max(shard.num_bytes for shard in summaries)
    command = [sys.executable, "-c", READ_ALL, server.url, str(tmp_path), str(bound), "0"]
    processes = [subprocess.Popen(command) for _ in range(2)]
    largest = 0
    while any(process.poll() is None for process in processes):
        largest = max(largest, sum(size(path) for path in tmp_path.glob("*.*")))
        time.sleep(0.005)
    assert [process.returncode for process in processes] == [0, 0]
    assert 0 < largest <= bound


def size(path: Path) -> int:
    try:
        return 0 if path.suffix == ".lock" else path.stat().st_size
    except FileNotFoundError:
        return 0


def test_the_least_recently_read_makes_room(
    packed: Path, server: WebServer, summaries: tuple[ShardSummary, ...], tmp_path: Path
) -> None:
    first, second, third = summaries[:3]
    bound = first.num_bytes + max(second.num_bytes, third.num_bytes)
    with closing(reader_of(server, tmp_path, summaries, bound)) as reader:
        for shard in (first, second):
            read_whole(reader, packed, shard)
            until(partial(reads_cache, reader, server, shard))
        read_whole(reader, packed, first)
        read_whole(reader, packed, third)
        until(lambda: reads_cache(reader, server, third))
        assert reads_cache(reader, server, first)
        assert not reads_cache(reader, server, second)
        read_whole(reader, packed, second)
    with closing(reader_of(server, tmp_path / "small", summaries, first.num_bytes - 1)) as reader:
        read_whole(reader, packed, first)
    assert not held(tmp_path / "small")


def test_a_kill_in_the_middle_of_a_download_leaves_nothing_that_is_read(
    packed: Path, summaries: tuple[ShardSummary, ...], tmp_path: Path
) -> None:
    with web_server(packed, "--pause-seconds", "600") as slow:
        command = [sys.executable, "-c", READ_ALL, slow.url, str(tmp_path), "1000000000", "0"]
        with subprocess.Popen(command) as process:
            try:
                until(lambda: any(name.endswith(".tar") for name in slow.counts()["whole"]), 60)
            finally:
                process.kill()
        (partial,) = tmp_path.glob("*.partial")
        assert not held(tmp_path)
        shard = next(one for one in summaries if f".{one.num_bytes}." in partial.name)
    with web_server(packed) as server:
        others = tuple(one for one in summaries if one != shard)
        # The room that the dead process took is given back: the cache holds all others, and not one byte more.
        with closing(reader_of(server, tmp_path, others, sum(one.num_bytes for one in others))) as reader:
            for one in others:
                read_whole(reader, packed, one)
            until(lambda: len(held(tmp_path)) == len(others))
        assert not partial.exists()


def test_a_changed_file_is_not_read_and_comes_anew(
    packed: Path, server: WebServer, summaries: tuple[ShardSummary, ...], tmp_path: Path
) -> None:
    shard = summaries[0]
    for damage in (flip, cut):
        with closing(reader_of(server, tmp_path, summaries)) as reader:
            read_whole(reader, packed, shard)
            until(lambda: reads_cache(reader, server, shard))
            damage(held(tmp_path)[0])
            read_whole(reader, packed, shard)
            until(lambda: reads_cache(reader, server, shard))
            read_whole(reader, packed, shard)
        assert held(tmp_path)[0].read_bytes() == (packed / shard.name).read_bytes()
    assert server.counts()["whole"][f"/{shard.name}"] == 3
    held(tmp_path)[0].touch()  # only its time: it is checked, and not downloaded
    with closing(reader_of(server, tmp_path, summaries)) as reader:
        read_whole(reader, packed, shard)
        until(lambda: reads_cache(reader, server, shard))
    assert server.counts()["whole"][f"/{shard.name}"] == 3


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(5000)


def test_a_shard_that_differs_from_its_manifest_is_not_held(
    packed: Path,
    server: WebServer,
    summaries: tuple[ShardSummary, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = summaries[0].model_copy(update={"sha256": "0" * 64})
    with closing(reader_of(server, tmp_path, (other,))) as reader:
        read_whole(reader, packed, other)
        until(lambda: "shard not cached" in caplog.text)
        read_whole(reader, packed, other)
    assert f"shard={server.url}/{other.name} reason=its sha256 differs from the manifest's" in caplog.text
    assert server.counts()["whole"][f"/{other.name}"] == 1
    assert not held(tmp_path)


@pytest.mark.parametrize("cached", [False, True])
def test_samples_come_by_range_ahead_of_their_batch_and_some_at_a_time(
    packed: Path, tmp_path: Path, cached: bool
) -> None:
    with web_server(packed, "--latency-ms", "20", "80", "--failing", "0.05") as server:
        cache = ShardCache(tmp_path, 10**9) if cached else None
        index = SampleIndex.open(RemotePath(server.url), "train", cache)
        schedule = Schedule(index.shard_sizes, 4, num_epochs=20)
        with closing(iter(RowSource(index, schedule, 0, 1))) as samples:
            next(samples)
            if not cached:
                until(lambda: sum(server.counts()["part"].values()) >= NUM_AHEAD)
            for number, sample in enumerate(samples, start=1):
                assert "__error__" not in sample
                assert sample["__slot__"].row.index == number % index.num_samples
        assert 1 < server.counts()["at_once"] <= 34  # the readers, the cache's own, and the manifest's connection
