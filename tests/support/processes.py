"""Finds our processes, and those that Ray runs for us, by the one thing that tells them apart from outside."""

from collections.abc import Iterable
from contextlib import suppress

import psutil

from packer.decoders import process as decoder_process

DECODER = decoder_process.__name__
"""A decoder process runs this module by `python -m`."""


def title(process: psutil.Process) -> str:
    """Returns a process's command line, where Ray's workers also name their actor; "" if the process has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def titled(part: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Returns those of the processes whose title has this part, the oldest first."""
    return sorted((one for one in processes if part in title(one)), key=lambda one: one.create_time())


def decoders(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return titled(DECODER, processes)


def train_workers(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return titled("TrainWorker", processes)


def replicas(deployment: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Returns the replicas of a deployment: ModelReplica or Gateway."""
    return [one for one in titled("ServeReplica", processes) if f":{deployment}" in title(one)]
