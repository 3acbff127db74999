"""What Ray Train calls on every worker: sets up the process, then runs `Training`.

Ray Train's controller imports this module too, before it starts the workers, so the module itself imports little.
"""

import ctypes
import logging
import os
import pickle
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.worker.outcome import Failure, Outcome
    from trainer.worker.spec import JobSpec

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def worker_settings(spec: "JobSpec") -> dict[str, bytes]:
    """Returns the argument of `train_worker`: pickled, so that Ray Train's controller need not import its classes."""
    return {"spec": pickle.dumps(spec)}


def train_worker(settings: dict[str, bytes]) -> "Outcome | Failure":
    """Trains until the last epoch or until the driver asks to stop.

    An error that would only happen again is returned, not raised: Ray Train restarts the workers after whatever is
    raised.

    Args:
        settings: What `worker_settings` returned.
    """
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    from configs.home import code_path
    from trainer.learning.ranks import Ranks
    from trainer.worker.cores import num_threads
    from trainer.worker.outcome import Failure
    from trainer.worker.training import Training, TrainingError

    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    # RunLog tries again itself. MLflow's own seven tries take four minutes, in which no other point gets through.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # Loader processes are forked from one that Python starts without this process's path.
    os.environ["PYTHONPATH"] = code_path()
    spec: JobSpec = pickle.loads(settings["spec"])
    context = ray.train.get_context()
    keep_freed_memory()
    world_size = context.get_world_size()
    group = dist.new_group(backend="gloo") if world_size > 1 else None
    ranks = Ranks(context.get_world_rank(), world_size, group, context.get_local_world_size())
    torch.set_num_threads(num_threads(spec.config.threads_per_worker, ranks.num_local))
    try:
        return Training(spec, ranks, ray.train.torch.get_device()).run()
    except TrainingError as error:
        return Failure(str(error))


def keep_freed_memory() -> None:
    """Lets the C library keep the memory that each step frees, for the next one.

    By default glibc gives it back and the kernel clears it anew, which takes up to a fifth of a ResNet-18 step on the
    CPU. Other C libraries have no `mallopt`; with them nothing changes.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        c_library.mallopt(_M_MMAP_MAX, 0)
        c_library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
