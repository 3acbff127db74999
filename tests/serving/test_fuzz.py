"""A few hundred damaged videos of `make fuzz`, to the application in this process."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from configs.serve import ServeConfig
from tests.fuzz.attack import MAX_GROWTH_BYTES, attack
from tests.fuzz.mutate import mutated, sources
from tests.support import processes
from tests.support.registry import MLFLOW_WARNINGS, store_uri
from tests.support.serving import served

pytestmark = MLFLOW_WARNINGS

NUM_FILES = 300


@pytest.fixture(scope="module")
def videos() -> list[bytes]:
    return sources()


@pytest.fixture(scope="module")
def port(champion_store: Path) -> Iterator[int]:
    config = ServeConfig(tracking_uri=store_uri(champion_store), allow_unauthenticated=True, decoder_processes=2)
    with served(config) as port:
        yield port


def decoders() -> dict[str, psutil.Process]:
    return {f"decoder {one.pid}": one for one in processes.decoders(psutil.Process().children())}


def test_damaged_videos_get_200_or_4xx_and_leak_nothing(port: int, videos: list[bytes]) -> None:
    report = attack(port, lambda number: mutated(videos, 1, number), iter(range(NUM_FILES)), 3, decoders)
    assert not report.findings
    assert report.codes.total() == NUM_FILES
    assert report.codes["200"]
    assert report.codes["422 not_a_video"]
    assert max(report.growth.values(), default=0) < MAX_GROWTH_BYTES


def test_a_damaged_video_can_be_made_again(videos: list[bytes]) -> None:
    digests = [hashlib.sha256(mutated(videos, 1, number)).digest() for number in range(50)]
    assert digests == [hashlib.sha256(mutated(videos, 1, number)).digest() for number in range(50)]
    assert len(set(digests)) > 40
