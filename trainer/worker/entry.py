"""What Ray Train calls on every worker: it sets the process up and hands over to `Training`.

Ray Train's controller imports this module too, one process before the workers: it need not import all that trains.
"""

import ctypes
import logging
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

if TYPE_CHECKING:
    from trainer.worker.spec import JobSpec


def worker_settings(spec: "JobSpec") -> dict[str, bytes]:
    """Returns what `train_worker` takes, as something that passes through the controller unopened."""
    return {"spec": pickle.dumps(spec)}


def train_worker(settings: dict[str, bytes]) -> dict[str, Any]:
    """Trains until the last epoch or until the driver asks to stop, and returns what `Training.run` returns.

    What a restart would meet again is returned as `{"error": sentence}`: Ray Train restarts after whatever is raised.

    Args:
        settings: What `worker_settings` returned.
    """
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    from configs.home import code_path
    from trainer.learning.ranks import Ranks
    from trainer.worker.entry import keep_freed_memory
    from trainer.worker.training import Training, TrainingError

    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    # RunLog tries again itself; MLflow's own seven times last four minutes, in which no other point gets through.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # What loader processes share is imported by one that Python starts without this one's path.
    os.environ["PYTHONPATH"] = code_path()
    spec: JobSpec = pickle.loads(settings["spec"])
    context = ray.train.get_context()
    keep_freed_memory()
    world_size = context.get_world_size()
    group = dist.new_group(backend="gloo") if world_size > 1 else None
    ranks = Ranks(context.get_world_rank(), world_size, group, context.get_local_world_size())
    torch.set_num_threads(spec.num_threads(ranks.num_local))
    try:
        return Training(spec, ranks, ray.train.torch.get_device()).run()
    except TrainingError as error:
        return {"error": str(error)}


def keep_freed_memory() -> None:
    """Lets the C library keep what each step frees for the next one.

    By default glibc gives it back and the kernel clears it anew: up to a fifth of a ResNet-18 step on the CPU. Other C
    libraries lack `mallopt` and are left alone.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "mallopt"):
        c_library.mallopt(_M_MMAP_MAX, 0)
        c_library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
