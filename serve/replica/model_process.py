"""One version of the model in a process of its own, which loads it, checks it and answers batches until it is closed.

To load a version takes most of a second of Python that keeps the interpreter's lock, and a forward pass in the same
process takes twice as long meanwhile. So each version has its own interpreter, and is loaded in idle time while another
version serves.
"""

import logging
import mmap
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from configs.serve import ServeConfig
from serve.replica.errors import NOT_LOADED, ModelDied, ModelUnavailable
from serve.replica.idle_time import run_in_idle_time
from serve.replica.predictor import FramesTHWC, ModelView, Predictor, ProbabilitiesK
from serve.replica.versions import load_predictor
from trainer.model.contract import ModelContract

logger = logging.getLogger(__name__)

PRELOADED = [
    "ray._private.workers.default_worker",
    "serve.replica.predictor",
    "serve.replica.versions",
    "mlflow.pytorch",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "networkx",
    "torch._export.serde.serialize",
    "torch.export._trace",
    "torch.export._unlift",
    "torch.export.pt2_archive",
]
"""Modules that the processes of all versions share. Without them each process would spend seven seconds of CPU on
imports, measured with torch 2.14 and MLflow 3.17; some of them are imported only when a model is loaded. A name that a
library no longer has is ignored. The first is a replica's `__main__`, which every process imports before it runs
anything in idle time."""


class ModelProcess(ModelView):
    """A loaded version, checked and warm.

    Args:
        config: Which model, from which store, and where it runs.
        version: Version of the registered model.
        gives_way: Load it in idle time, because another version serves meanwhile.

    Raises:
        ModelUnavailable: The version cannot be loaded, or does not do what its contract says.
    """

    def __init__(self, config: ServeConfig, version: str, gives_way: bool) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, config, version, gives_way), name=f"model-{version}", daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            outcome: ModelContract | ModelUnavailable = self._connection.recv()
        except EOFError as error:
            self.close()
            raise ModelUnavailable("the process that loads the model has died: see the server's log") from error
        if isinstance(outcome, ModelUnavailable):
            self.close()
            raise outcome
        super().__init__(outcome)
        self._batch = _shared_batch(self._connection, self._process.pid, (config.max_batch_size, *self.frames_shape))

    def predict(self, clips: Sequence[FramesTHWC]) -> list[ProbabilitiesK]:
        """Returns one `(K,) float64` array of class probabilities per clip, which sums to 1; call it once at a time.

        Raises:
            ModelDied: The process has ended.
        """
        np.stack(clips, out=self._batch[: len(clips)])
        try:
            self._connection.send(len(clips))
            return list(self._connection.recv())
        except (EOFError, OSError) as error:
            raise ModelDied(f"the model's process has ended (exit code {self._process.exitcode})") from error

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _shared_batch(connection: Connection, pid: int | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Returns memory for the clips of a batch that is shared with the other end of a connection."""
    descriptor = os.memfd_create("batch")
    try:
        os.ftruncate(descriptor, int(np.prod(shape)))
        connection.send(shape)
        reduction.send_handle(connection, descriptor, pid)
        return _map(descriptor, shape)
    finally:
        os.close(descriptor)


def _map(descriptor: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(descriptor, 0), np.uint8).reshape(shape)


def _serve(connection: Connection, config: ServeConfig, version: str, gives_way: bool) -> None:
    """Runs in the model's process: answers batches until the other end closes the connection, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its models
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def load() -> Predictor:
        return load_predictor(config, version)

    try:
        predictor = run_in_idle_time(load) if gives_way else load()
    except ModelUnavailable as error:
        connection.send(error)
        return
    except Exception:
        logger.exception("model_not_loaded version=%s", version)
        connection.send(ModelUnavailable(NOT_LOADED))
        return
    # Warm up again in this thread: each thread has memory and kernels of its own, for which requests would wait.
    predictor.predict_batch(np.zeros((1, *predictor.frames_shape), np.uint8))
    connection.send(predictor.contract)
    shape = connection.recv()
    descriptor = reduction.recv_handle(connection)
    batch = _map(descriptor, shape)
    os.close(descriptor)
    while True:
        try:
            num_clips = connection.recv()
        except EOFError:
            return
        connection.send(predictor.predict_batch(batch[:num_clips]))
