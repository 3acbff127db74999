"""Row: the server on real videos, against the same classifier under plain uvicorn and `mlflow models serve`.

`python -m tests.bench.serve_real PORT` is the plain one: the routes, the decoder and the model in one process.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from configs.model import ModelConfig
from configs.pack import ClipConfig, DecodeLimits
from configs.serve import ServeConfig
from configs.train import CHAMPION, ViewConfig
from packer.video.clip import read_clip
from packer.video.jpeg import decode_frames
from tests.bench.serving import CONCURRENCIES, Contender, Goal, ServingRow, measure, running
from tests.bench.videos import make_sets
from tests.support.ports import free_ports
from tests.support.registry import store_uri
from tests.support.serving import served
from trainer.model.cnn_rnn import CnnRnn
from trainer.model.contract import ModelContract
from trainer.tracking.registry import Registry
from trainer.views.eval_view import eval_view

NAME = "clipstream"
CLASS_NAMES = tuple(f"class {number}" for number in range(51))
CLIP, VIEW = ClipConfig(), ViewConfig()
MAX_QUEUED = 2 * max(CONCURRENCIES)  # none is to be refused
UVICORN, HAPROXY, MLFLOW = "plain uvicorn", "ours, HAProxy", "mlflow models serve"


def rows(num_rounds: int, folder: Path) -> list[ServingRow]:
    kind, video = _video(folder)
    _register(folder)
    tensor = json.dumps({"inputs": _frames(video).tolist()}).encode()
    with ExitStack() as stack:
        bases = {
            "ours": stack.enter_context(_ours(folder)),
            UVICORN: stack.enter_context(_plain(folder)),
            HAPROXY: stack.enter_context(_ours(folder, _haproxy())),
        }
        contenders = {name: Contender(f"{base}/v1/predict", video) for name, base in bases.items()}
        base = stack.enter_context(_mlflow(folder))
        contenders[MLFLOW] = Contender(f"{base}/invocations", tensor, {"Content-Type": "application/json"})
        loads = measure(contenders, num_rounds)
    work = (
        f"same work, save for MLflow: {kind} ({len(video):,} bytes), {CLIP.num_frames} frames at {VIEW.size_px} px, "
        f"ResNet-18 + LSTM, one torch thread, one decoder process; MLflow decodes nothing: it was sent the frames that "
        f"the model sees as JSON, {len(tensor):,} bytes"
    )
    goals = [Goal(UVICORN, concurrency, 0.9) for concurrency in CONCURRENCIES]
    return [ServingRow("serving, real work", work, loads, goals)]


def _video(folder: Path) -> tuple[str, bytes]:
    """Returns what kind of video there is, and one."""
    kind, data = next(iter(make_sets(folder / "videos", num_per_class=2).items()))
    return kind, min(path for path in data.rglob("*") if path.is_file()).read_bytes()


def _frames(video: bytes) -> NDArray[np.uint8]:
    """Returns a batch of one clip as the model takes it, `(1, T, 3, S, S)`."""
    clip = read_clip(video, CLIP, DecodeLimits())
    return eval_view(torch.from_numpy(decode_frames(clip.jpegs)), VIEW).numpy().transpose(0, 3, 1, 2)[np.newaxis]


def _register(folder: Path) -> None:
    torch.manual_seed(0)
    model = CnnRnn(ModelConfig(weights="none"), len(CLASS_NAMES), CLIP.num_frames).eval()
    contract = ModelContract(
        class_names=CLASS_NAMES,
        clip=CLIP,
        view=VIEW,
        manifest_sha256="0" * 64,
        val_sha256="0" * 64,
        select_by="macro_f1",
        val_metric=0.0,
        code_version="bench",
    )
    registry = Registry(store_uri(folder), NAME)
    experiment = registry.client.create_experiment("bench", artifact_location=(folder / "artifacts").as_uri())
    run_id = registry.client.create_run(experiment).info.run_id
    version = registry.register(registry.export(model, run_id, contract), run_id, contract)
    registry.client.set_registered_model_alias(NAME, CHAMPION, version)


def _ours(folder: Path, environment: Mapping[str, str] | None = None) -> AbstractContextManager[str]:
    (port,) = free_ports(1)
    command = ["-m", "serve", "--port", port, "--max-queued", str(MAX_QUEUED)]
    return running(command, port, "/readyz", _environment(folder) | dict(environment or {}))


def _plain(folder: Path) -> AbstractContextManager[str]:
    (port,) = free_ports(1)
    return running(["-m", "tests.bench.serve_real", port], port, "/readyz", _environment(folder))


def _mlflow(folder: Path) -> AbstractContextManager[str]:
    (port,) = free_ports(1)
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command = ["-m", "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}@{CHAMPION}", *options]
    return running(command, port, "/ping", _environment(folder))


def _environment(folder: Path) -> dict[str, str]:
    """Returns what names the store in `folder`, gives torch one thread, and lets MLflow find this uvicorn."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    store = store_uri(folder)
    return {"CLIPSTREAM_HOME": str(folder), "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1", "PATH": path}


def _haproxy() -> dict[str, str]:
    """Returns what turns Serve's HAProxy on; its ports for metrics are fixed otherwise."""
    metrics, stats = free_ports(2)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
        "RAY_SERVE_HAPROXY_STATS_PORT": stats,
    }


if __name__ == "__main__":
    with served(ServeConfig(allow_unauthenticated=True, max_queued=MAX_QUEUED), port=int(sys.argv[1])):
        threading.Event().wait()
