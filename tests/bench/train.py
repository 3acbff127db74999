"""Rows: the stream and the train step together, Ray Train against a plain loop, two workers against one; the start.

`python -m tests.bench.train CONFIG` is the plain loop: the same training of one run, in one process without Ray.
"""

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from mlflow import MlflowClient

from configs.load import find_config, read_yaml
from configs.train import TrainConfig
from packer.__main__ import main as pack
from packer.shards.manifest import read_manifest
from packer.synthetic import main as make_synthetic
from tests.bench.measure import Cost, Row, interleave, spread, stopwatch
from trainer.learning.ranks import Ranks
from trainer.stream.batch import Batch
from trainer.stream.index import SampleIndex
from trainer.tracking.runs import open_run
from trainer.worker.cores import num_loader_workers, num_threads
from trainer.worker.entry import keep_freed_memory
from trainer.worker.parts import make_learner, make_model, train_loader
from trainer.worker.spec import JobSpec
from trainer.worker.training import Training

ROOT = Path(__file__).parent.parent.parent
NUM_UNMEASURED_STEPS, NUM_STEPS = 4, 60
NUM_EPOCHS = 4


@dataclass
class StartRow:
    """Seconds from the command to the end of its first training step."""

    seconds: dict[str, list[float]]

    def as_json(self) -> dict[str, Any]:
        return {"name": "start", "seconds": {name: spread(values) for name, values in self.seconds.items()}}

    def as_text(self) -> str:
        lines = [f"    {statistics.median(values):.1f}  {name}" for name, values in self.seconds.items()]
        return "\n".join(["start: seconds from the command to the end of the first training step", *lines])


def rows(num_rounds: int, folder: Path) -> list[Row | StartRow]:
    data, shards = folder / "data", folder / "home" / "shards"
    make_synthetic([str(data), "--videos-per-class", "60"])
    if pack([str(data), str(shards), "--clip.short-side-px", "64"]):
        raise SystemExit("bench: packing the videos failed")
    return [_together(num_rounds, folder, shards), *_commands(num_rounds, folder)]


def _together(num_rounds: int, folder: Path, shards: Path) -> Row:
    keep_freed_memory()
    config = TrainConfig.model_validate(read_yaml(find_config("demo.yaml")))
    spec = JobSpec(config, shards, folder / "run", "", "", num_workers=1)
    manifest, index = read_manifest(shards), SampleIndex.open(shards, "train")
    model = make_model(spec, manifest).channels_last()
    learner = make_learner(config, model, index.labels, Ranks())
    resident = list(itertools.islice(_batches(spec, index), NUM_UNMEASURED_STEPS))

    def measured(batches: Iterator[Batch], steps: bool) -> Cost:
        with stopwatch(NUM_STEPS * config.global_batch) as result:
            for batch in itertools.islice(batches, NUM_STEPS):
                if steps:
                    learner.step(batch, partial(learner.weight_sum, batch), 1e-3)
        return result[0]

    def streamed(steps: bool) -> Cost:
        batches = _batches(spec, index)
        for _ in range(NUM_UNMEASURED_STEPS):
            next(batches)
        return measured(batches, steps)

    costs = interleave(
        {
            "together": partial(streamed, steps=True),
            "stream alone": partial(streamed, steps=False),
            "step alone": lambda: measured(itertools.cycle(resident), steps=True),
        },
        num_rounds,
    )
    one_after_the_other = [
        Cost(stream.wall_seconds + step.wall_seconds, stream.cpu_seconds + step.cpu_seconds, stream.num_units)
        for stream, step in zip(costs["stream alone"], costs["step alone"], strict=True)
    ]
    num_loaders = num_loader_workers(config.loader_workers, 1)
    return Row(
        "train, stream and step together",
        f"narrow CNN-RNN, 16 frames of 64 px, B={config.global_batch}, {num_loaders} loader worker, "
        f"{torch.get_num_threads()} threads: 1 is no loss on cores that both share, more than 1 a gain by overlap",
        "clip", costs["together"], "stream alone, then step alone", one_after_the_other, goal=0.95,
    )  # fmt: skip


def _batches(spec: JobSpec, index: SampleIndex) -> Iterator[Batch]:
    yield from train_loader(spec.config, index, 0, Ranks(), torch.device("cpu"))[1]


def _commands(num_rounds: int, folder: Path) -> list[Row | StartRow]:
    names = ["plain loop", "Ray Train, one worker", "Ray Train, two workers"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    numbers = itertools.count()

    def contender(name: str) -> Cost:
        cost, start_seconds = _run(name, folder / "home", next(numbers))
        seconds[name].append(start_seconds)
        return cost

    costs = interleave({name: partial(contender, name) for name in names}, num_rounds)
    plain, one, two = (costs[name] for name in names)
    work = "one thread a worker, no loader process, the demo's model; clips/s as the run logs them"
    return [
        Row("train, Ray Train against a plain loop", f"same work: {work}", "clip", one, names[0], plain, goal=0.97),
        Row("train, two workers against one", f"same work: {work}", "clip", two, names[1], one, goal=1.6),
        StartRow(seconds),
    ]


def _run(name: str, home: Path, number: int) -> tuple[Cost, float]:
    """Trains by a command; returns what its steps took, evaluation and checkpoints left out, and its start."""
    config = read_yaml(find_config("demo.yaml")) | {
        "shards": str(home / "shards"),
        "run": f"bench-{number}",
        "runs": str(home / "runs"),
        "epochs": NUM_EPOCHS,
        "loader_workers": 0,
        "threads_per_worker": 1,
        "num_workers": 2 if "two" in name else 1,
    }
    path = home / f"{number}.yaml"
    path.write_text(yaml.safe_dump(config))
    module = ["tests.bench.train", str(path)] if name == "plain loop" else ["trainer", "--config", str(path)]
    started = time.time()
    environment = {**os.environ, "CLIPSTREAM_HOME": str(home), "RAY_worker_niceness": "0"}
    done = subprocess.run(
        [sys.executable, "-m", *module], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"bench: {name} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(config["experiment"])
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = 'bench-{number}'")
    first, *points = client.get_metric_history(run.info.run_id, "clips_per_second")
    seconds_per_clip = statistics.mean(1 / point.value for point in points)
    return Cost(seconds_per_clip, float("nan"), 1), first.timestamp / 1000 - started


def main(arguments: Sequence[str]) -> None:
    keep_freed_memory()
    config = TrainConfig.model_validate(read_yaml(Path(arguments[0])))
    home = Path(os.environ["CLIPSTREAM_HOME"])
    uri = f"sqlite:///{home / 'mlflow.db'}"
    run_id = open_run(uri, config, home / "mlruns")
    spec = JobSpec(config, Path(config.shards), Path(config.runs) / str(config.run), run_id, uri, num_workers=1)
    torch.set_num_threads(num_threads(config.threads_per_worker, 1))
    Training(spec, Ranks(), torch.device("cpu")).run()


if __name__ == "__main__":
    main(sys.argv[1:])
