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
from serve.replica.versions import load_model, resolve_version, trained_on
from serve.scoring.formats import FORMATS
from serve.scoring.predictions import Part, Predictions, rejected_row, scored_row
from serve.scoring.seen import NEITHER, SEEN_IN, TEST, TRAIN, VAL, Seen, find_seen

_WINDOW_PER_WORKER = 4


@dataclass(frozen=True)
class Accuracy:
    """How many videos of known class were predicted rightly."""

    num_right: int
    num_labelled: int

    def __str__(self) -> str:
        """Returns it as a share, with what it is a share of."""
        return f"{self.num_right / self.num_labelled:.4f} of {self.num_labelled}"


@dataclass(frozen=True)
class Counts:
    """What a complete file of predictions holds."""

    num_per_class: dict[str, int]
    """Videos for which each class is the most probable one, the most frequent class first."""
    num_rejected: dict[str, int]
    """By reason."""
    num_seen: dict[str, int]
    """Scored videos by the split of the model's pack that holds them: one of `SEEN_IN`; empty if that is not known."""
    accuracy: dict[str, Accuracy]
    """The same for those in a folder with the name of one of the model's classes; by "" if it is not known."""

    @property
    def num_labelled(self) -> int:
        """Scored videos in a folder with the name of one of the model's classes."""
        return sum(part.num_labelled for part in self.accuracy.values())

    @property
    def num_right(self) -> int:
        """Those of them whose class was predicted rightly."""
        return sum(part.num_right for part in self.accuracy.values())


@dataclass(frozen=True)
class ScoreResult:
    """A complete file of predictions, and what this run did for it."""

    out: str
    """Absolute path or address of the file."""
    model: str
    """Name of the registered model."""
    version: str
    seen: Seen
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
    seen = _seen(config, version, predictor)
    known_errors = {video.source: error for video, error in catalog.non_videos}
    scorer = _Scorer(predictor, seen, known_errors, config)
    predictions = Predictions(
        out,
        FORMATS[config.out_ending],
        sorted((*catalog.videos, *(video for video, _ in catalog.non_videos)), key=lambda video: video.source),
        predictor.contract.class_names,
        {
            "model": {"name": config.registered_model, "version": version},
            "contract": predictor.contract.model_dump(mode="json"),
            "limits": config.limits.model_dump(),
            "seen_in": seen.manifest_sha256,
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
        seen=seen,
        counts=counts,
        rejected_fraction=num_lost / len(catalog.videos),
        num_videos_now=num_videos_now,
        seconds=time.monotonic() - started,
    )


class _Scorer:
    """Turns videos into rows.

    Args:
        predictor: The model.
        seen: The videos that it already knows.
        known_errors: By source, why a file is already known not to be a video.
        config: Sizes and limits.
    """

    def __init__(
        self, predictor: Predictor, seen: Seen, known_errors: dict[str, VideoError], config: ScoreConfig
    ) -> None:
        self._predictor = predictor
        self._seen = seen
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
                seen_in = self._seen.split(outcome.source_sha256)
                yield scored_row(video, outcome, self._class_names, next(probabilities), seen_in)
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
        raise UsageError(error.for_operators) from error
    return version, Predictor(module, contract, device, config.cpu_threads or torch.get_num_threads())


def _seen(config: ScoreConfig, version: str, predictor: Predictor) -> Seen:
    try:
        shards = config.shards or trained_on(config, version)
    except ModelUnavailable as error:
        raise UsageError(error.for_operators) from error
    seen = find_seen(shards, predictor.contract.manifest_sha256)
    if config.shards and seen.problem:
        raise UsageError(f"{seen.problem}: name the pack that version {version} was trained on, or leave --shards out")
    return seen


def _count(predictions: Predictions) -> Counts:
    rows = predictions.read(["true_class", "predicted", "reason", "seen_in"])
    scored = [row for row in rows if row["predicted"] is not None]
    by_seen: dict[str, list[bool]] = {}
    for row in scored:
        if row["true_class"] is not None:
            by_seen.setdefault(row["seen_in"] or "", []).append(row["true_class"] == row["predicted"])
    return Counts(
        num_per_class=dict(Counter(row["predicted"] for row in scored).most_common()),
        num_rejected=dict(sorted(Counter(row["reason"] for row in rows if row["predicted"] is None).items())),
        num_seen=dict(Counter(row["seen_in"] for row in scored if row["seen_in"])),
        accuracy={split: Accuracy(sum(are_right), len(are_right)) for split, are_right in by_seen.items()},
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
    lines += _seen_lines(result.seen, counts)
    lines += [
        f"model     {result.model} version {result.version}",
        f"written   {result.out}",
        f"took      {result.seconds:.1f} s for {result.num_videos_now} videos, "
        f"{result.num_videos_now / result.seconds:.1f} videos/s",
    ]
    return "\n".join(lines)


_WHAT_IT_IS = {
    TRAIN: "that the model was trained on: no measure of how good it is",
    VAL: "that chose the model (val): a little too good",
    TEST: "of its test split",
    NEITHER: "that are new to it",
}
"""What the accuracy on the videos of each split says about the model."""


def _seen_lines(seen: Seen, counts: Counts) -> Iterator[str]:
    """Yields which videos the model knows, and the accuracy apart for those that it knows and those that are new."""
    if seen.problem:
        yield f"seen      not known whether the model was trained on these videos: {seen.problem}"
    else:
        shown = [f"{counts.num_seen[split]} in {split}" for split in (TRAIN, VAL, TEST) if split in counts.num_seen]
        shown += [f"{counts.num_seen[NEITHER]} not"] if NEITHER in counts.num_seen else []
        yield f"seen      in the pack that the model was trained on: {', '.join(shown) or 'none'}"
    if not counts.accuracy:
        return
    whole = Accuracy(counts.num_right, counts.num_labelled)
    doubt = "; too good if it was trained on some of them" if seen.problem else ""
    yield f"accuracy  {whole} videos in folders named as classes{doubt}"
    for split in SEEN_IN:
        if split in counts.accuracy:
            yield f"          {counts.accuracy[split]} {_WHAT_IT_IS[split]}"
