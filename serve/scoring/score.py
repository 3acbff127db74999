"""Scores a folder of videos with the registered model: the server's decoding, view and model, without a server.

Decoders run ahead in processes that can be killed, while the model works on a batch. Only the order of the videos
decides what a batch holds, so a scoring that was stopped, however often, ends with the same file.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from configs.score import ScoreConfig
from configs.section import UsageError
from packer.decoders.clip_stream import open_pool, read_clips
from packer.progress import Progress
from packer.storage.location import is_inside, locate
from packer.video.catalog import Video, find_unlabelled
from packer.video.clip import Clip
from packer.video.container import VideoError
from serve.replica.errors import ModelUnavailable
from serve.replica.predictor import Predictor
from serve.replica.versions import load_model, resolve_version
from serve.scoring.formats import FORMATS
from serve.scoring.predictions import Part, Predictions, rejected_row, scored_row

_WINDOW_PER_WORKER = 4


@dataclass(frozen=True)
class Counts:
    """What a complete file of predictions holds."""

    num_per_class: dict[str, int]
    """Videos for which each class is the most probable one, the most frequent class first."""
    num_rejected: dict[str, int]
    """By reason."""
    num_labelled: int
    """Scored videos in a folder with the name of one of the model's classes."""
    num_right: int
    """Those of the labelled videos whose class was predicted rightly."""


@dataclass(frozen=True)
class ScoreResult:
    """A complete file of predictions, and what this run did for it."""

    out: str
    """Absolute path or address of the file."""
    model: str
    """Name of the registered model."""
    version: str
    counts: Counts
    rejected_fraction: float
    """Share of the videos that gave no clip; files that are texts or pictures do not count."""
    num_videos_now: int
    """Videos that this run decoded; fewer than all if it went on with a stopped scoring."""
    seconds: float


def score(config: ScoreConfig) -> ScoreResult:
    """Scores the videos of `config.source` into `config.out`, without repeating the work of a stopped scoring.

    Raises:
        UsageError: The command cannot be carried out as given.
        OSError: The file cannot be written, or no decoder process can be started.
    """
    started = time.monotonic()
    source, out = locate(config.source), locate(config.out)
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder: give the folder that holds the videos")
    if is_inside(out, source):
        raise UsageError(f"{out} lies inside {source}, among the videos: give another --out")
    catalog = find_unlabelled(source)
    version, predictor = _load(config)
    known_errors = {video.source: error for video, error in catalog.non_videos}
    scorer = _Scorer(predictor, known_errors, config)
    predictions = Predictions(
        out,
        FORMATS[config.out_ending],
        sorted((*catalog.videos, *(video for video, _ in catalog.non_videos)), key=lambda video: video.source),
        predictor.contract.class_names,
        {
            "model": {"name": config.registered_model, "version": version},
            "contract": predictor.contract.model_dump(mode="json"),
            "limits": config.limits.model_dump(),
        },
    )
    num_videos_now = 0
    if not predictions.is_complete():
        with predictions.locked():
            num_videos_now = scorer.write(predictions, predictions.missing_parts())
            predictions.finish()
    predictions.remove_parts()
    counts = _count(predictions)
    num_lost = len(catalog.videos) - sum(counts.num_per_class.values())
    return ScoreResult(
        out=str(out),
        model=config.registered_model,
        version=version,
        counts=counts,
        rejected_fraction=num_lost / len(catalog.videos),
        num_videos_now=num_videos_now,
        seconds=time.monotonic() - started,
    )


class _Scorer:
    """Turns videos into rows.

    Args:
        predictor: The model.
        known_errors: By source, why a file is already known not to be a video.
        config: Sizes and limits.
    """

    def __init__(self, predictor: Predictor, known_errors: dict[str, VideoError], config: ScoreConfig) -> None:
        self._predictor = predictor
        self._class_names = predictor.contract.class_names
        self._known_errors = known_errors
        self._config = config

    def write(self, predictions: Predictions, parts: Sequence[Part]) -> int:
        """Writes parts and returns how many videos were decoded for them."""
        config = self._config
        videos = [video for part in parts for video in part.videos if video.source not in self._known_errors]
        with (
            Progress(len(videos), "video") as progress,
            open_pool(config.limits, config.workers, len(videos), config.ray) as pool,
            ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as threads,
        ):
            window = pool.num_workers * _WINDOW_PER_WORKER + config.max_batch_size
            clips = read_clips(pool, videos, self._predictor.contract.clip, window)
            num_rejected = 0
            for part in parts:
                rows: list[dict[str, Any]] = []
                for start in range(0, len(part.videos), config.max_batch_size):
                    batch = part.videos[start : start + config.max_batch_size]
                    outcomes = [self._known_errors.get(video.source) or next(clips) for video in batch]
                    rows += self._rows(batch, outcomes, threads)
                    num_rejected += sum(isinstance(outcome, VideoError) for outcome in outcomes)
                    num_done = sum(video.source not in self._known_errors for video in batch)
                    progress.update(num_done, rejected=num_rejected)
                predictions.write_part(part, rows)
        return len(videos)

    def _rows(
        self, videos: Sequence[Video], outcomes: Sequence[Clip | VideoError], threads: ThreadPoolExecutor
    ) -> Iterator[dict[str, Any]]:
        clips = [self._predictor.pick(outcome) for outcome in outcomes if isinstance(outcome, Clip)]
        frames = list(threads.map(self._predictor.view, clips))
        probabilities = iter(self._predictor.predict(frames) if frames else [])
        for video, outcome in zip(videos, outcomes, strict=True):
            if isinstance(outcome, Clip):
                yield scored_row(video, outcome, self._class_names, next(probabilities))
            else:
                yield rejected_row(video, self._class_names, outcome)


def _load(config: ScoreConfig) -> tuple[str, Predictor]:
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device (cuda) is not there: torch finds no CUDA device on this machine; leave --device out")
    try:
        version = config.version or resolve_version(config)
        module, contract = load_model(config, version)
    except ModelUnavailable as error:
        raise UsageError(str(error)) from error
    return version, Predictor(module, contract, device, config.cpu_threads or torch.get_num_threads())


def _count(predictions: Predictions) -> Counts:
    rows = predictions.read(["true_class", "predicted", "reason"])
    scored = [row for row in rows if row["predicted"] is not None]
    labelled = [row for row in scored if row["true_class"] is not None]
    return Counts(
        num_per_class=dict(Counter(row["predicted"] for row in scored).most_common()),
        num_rejected=dict(sorted(Counter(row["reason"] for row in rows if row["predicted"] is None).items())),
        num_labelled=len(labelled),
        num_right=sum(row["true_class"] == row["predicted"] for row in labelled),
    )


def format_report(result: ScoreResult) -> str:
    """Returns how many videos each class got and how many gave none, as text for the user."""
    counts = result.counts
    num_scored, num_rejected = sum(counts.num_per_class.values()), sum(counts.num_rejected.values())
    width = max(map(len, ("predicted", *counts.num_per_class)))
    lines = [f"{'predicted':<{width}} {'videos':>8}"]
    lines += [f"{name:<{width}} {count:>8}" for name, count in counts.num_per_class.items()]
    lines += ["", f"videos    {num_scored + num_rejected}: {num_scored} scored, {num_rejected} rejected"]
    lines += [f"rejected  {count} {reason} (reason, message)" for reason, count in counts.num_rejected.items()]
    if counts.num_labelled:
        accuracy = counts.num_right / counts.num_labelled
        lines.append(f"accuracy  {accuracy:.4f} of {counts.num_labelled} videos in folders named as classes")
    lines += [
        f"model     {result.model} version {result.version}",
        f"written   {result.out}",
        f"took      {result.seconds:.1f} s for {result.num_videos_now} videos, "
        f"{result.num_videos_now / result.seconds:.1f} videos/s",
    ]
    return "\n".join(lines)
