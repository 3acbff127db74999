"""The machine that rank 0 runs on: what it is, and how busy it is. Other machines of a cluster are not looked at.

MLflow's own monitor is not used: it counts steps of its own, starts from 0 after a restart, and gives up for good if
the server does not answer once. These figures are logged like all others, by global step, under the names that MLflow's
page shows in its tab for system metrics.
"""

import os
import platform
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
import yaml

READ_INTERVAL_SECONDS = 10.0
PACKAGES = ("torch", "torchvision", "ray", "mlflow", "webdataset", "simplejpeg", "av", "numpy")


class Machine:
    """The machine of this process, and its GPU if `device` is one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last_read_seconds = -READ_INTERVAL_SECONDS
        psutil.cpu_percent()  # counts from here

    def describe(self, world_size: int) -> str:
        """Returns, as YAML, what a run's speed and last digits depend on apart from its configuration."""
        gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        described = {
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "num_cpus": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": gpus,
            "cuda": torch.version.cuda if gpus else None,
            "num_workers": world_size,
            "threads_per_worker": torch.get_num_threads(),
        }
        return yaml.safe_dump(described, sort_keys=False)

    def read(self) -> dict[str, float]:
        """Returns the load since the last reading; nothing if that was less than `READ_INTERVAL_SECONDS` ago."""
        now = time.monotonic()
        if now - self._last_read_seconds < READ_INTERVAL_SECONDS:
            return {}
        self._last_read_seconds = now
        memory = psutil.virtual_memory()
        figures = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "worker_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
        }
        if self._device.type == "cuda":
            figures |= self._read_gpu()
        return {f"system/{name}": value for name, value in figures.items()}

    def _read_gpu(self) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info(self._device)
        figures = {
            "memory_usage_megabytes": (total - free) / 1e6,
            "memory_usage_percentage": 100 * (1 - free / total),
            "memory_allocated_at_most_megabytes": torch.cuda.max_memory_allocated(self._device) / 1e6,
        }
        with suppress(ImportError):  # torch needs it to ask the driver: the package nvidia-ml-py
            import pynvml

            with suppress(pynvml.NVMLError):  # a share of a GPU (MIG) does not report them
                figures["utilization_percentage"] = torch.cuda.utilization(self._device)
                figures["power_usage_watts"] = torch.cuda.power_draw(self._device) / 1000
        return {f"gpu_{self._device.index or 0}_{name}": value for name, value in figures.items()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
