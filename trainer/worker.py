"""What Ray Train calls on every worker: it sets the process up and hands over to `Training`."""

import logging
import os
import sys
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from trainer.loop import Ranks, keep_freed_memory
from trainer.spec import JobSpec
from trainer.training import Training, TrainingError


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Trains until the last epoch or until the driver asks to stop, and returns what `Training.run` returns.

    What a restart would meet again is returned as `{"error": sentence}`: Ray Train restarts after whatever is raised.

    Args:
        settings: `{"spec": JobSpec}`.
    """
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    # RunLog tries again itself; MLflow's own seven times last four minutes, in which no other point gets through.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    spec: JobSpec = settings["spec"]
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
