"""Batches fetched ahead by a thread: the same ones, in the same order, one at a time, also if the loader fails."""

from collections.abc import Callable, Iterator
from functools import partial
from threading import Event
from threading import enumerate as threads

import pytest
import torch

from tests.support.registry import MLFLOW_WARNINGS
from tests.support.runs import CPU, EPOCH_ENDS, MakeSpec, assert_as_whole, train
from tests.support.steps import make_batch
from trainer.stream.batch import Batch
from trainer.stream.prefetch import on_device
from trainer.worker.outcome import Outcome
from trainer.worker.spec import JobSpec

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.usefixtures("one_thread")]

BATCHES = [make_batch((1.0,) * size) for size in (3, 2, 5, 1)]


def test_batches_come_as_they_are_in_their_order() -> None:
    assert list(on_device(BATCHES, CPU)) == BATCHES
    ahead = list(on_device(BATCHES, CPU, ahead=True))
    for one, other in zip(ahead, BATCHES, strict=True):
        assert (one.rows, one.weights.tolist()) == (other.rows, other.weights.tolist())
        assert torch.equal(one.clips, other.clips)
    assert list(on_device([], CPU, ahead=True)) == []


def test_one_batch_is_fetched_while_another_is_used_and_none_without_need() -> None:
    fetched: list[int] = []
    second = Event()

    def loader() -> Iterator[Batch]:
        for number, batch in enumerate(BATCHES):
            fetched.append(number)
            if number:
                second.set()
            yield batch

    plain = on_device(loader(), CPU)
    next(plain)
    assert fetched == [0]
    fetched.clear()
    ahead = on_device(loader(), CPU, ahead=True)
    next(ahead)
    assert second.wait(60)
    ahead.close()
    assert fetched == [0, 1]
    assert not [thread.name for thread in threads() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_the_loader_raises_comes_after_the_batches_before(ahead: bool) -> None:
    def loader() -> Iterator[Batch]:
        yield BATCHES[0]
        raise OSError("the storage is gone")

    batches = on_device(loader(), CPU, ahead)
    assert next(batches).rows == BATCHES[0].rows
    with pytest.raises(OSError, match="the storage is gone"):
        next(batches)


def test_a_run_that_fetches_ahead_is_the_run_also_where_it_is_stopped_and_resumed(
    make_spec: MakeSpec, whole_run: tuple[JobSpec, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its position is that of the batch whose step was taken, not of the one that was fetched."""
    # Patched, since nothing but the device decides this: without CUDA a run never fetches ahead.
    ahead: Callable[..., Iterator[Batch]] = partial(on_device, ahead=True)
    monkeypatch.setattr("trainer.worker.training.on_device", ahead)
    monkeypatch.setattr("trainer.learning.evaluate.on_device", ahead)
    spec = make_spec()
    spec.stop_file.touch()
    for _ in range(EPOCH_ENDS[0] + 1):
        assert train(spec).stopped
    spec.stop_file.unlink()
    assert_as_whole(spec, whole_run, train(spec))
