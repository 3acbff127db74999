"""A version of the model in a process of its own."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from configs.serve import ServeConfig
from serve.replica.errors import ModelDied, ModelUnavailable
from serve.replica.model_process import ModelProcess
from serve.replica.versions import load_predictor
from tests.support.registry import MLFLOW_WARNINGS, store_uri

pytestmark = MLFLOW_WARNINGS


def test_it_answers_as_the_model_does_here_and_ends_when_it_is_closed(champion_store: Path) -> None:
    config = ServeConfig(tracking_uri=store_uri(champion_store), max_batch_size=4)
    here = load_predictor(config, "1")
    beside = ModelProcess(config, "1", gives_way=True)
    try:
        assert beside.contract == here.contract
        clips = list(np.random.default_rng(0).integers(0, 256, (4, *here.frames_shape), np.uint8))
        for batch in (clips, clips[1:2], clips[2:]):
            np.testing.assert_array_equal(beside.predict(batch), here.predict(batch))
        (process,) = model_processes()
    finally:
        beside.close()
    assert not process.is_running()


def test_a_version_that_is_not_there_is_told_in_a_sentence(champion_store: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no version 99"):
        ModelProcess(ServeConfig(tracking_uri=store_uri(champion_store)), "99", gives_way=False)
    assert not model_processes()


def test_a_process_that_is_killed_is_told(champion_store: Path) -> None:
    beside = ModelProcess(ServeConfig(tracking_uri=store_uri(champion_store)), "1", gives_way=False)
    clips = [np.zeros(beside.frames_shape, np.uint8)]
    try:
        beside.predict(clips)
        (process,) = model_processes()
        process.kill()
        process.wait(30)
        with pytest.raises(ModelDied):
            beside.predict(clips)
    finally:
        beside.close()


def model_processes() -> list[psutil.Process]:
    """Returns the processes that hold open the memory of a batch, this one aside."""
    found = []
    for process in psutil.Process().children(recursive=True):
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        if "memfd:batch" in maps and process.pid != os.getpid():
            found.append(process)
    return found
