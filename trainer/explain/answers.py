"""Explains single answers of a finished run's model, with a page for each clip: `python -m trainer explain`.

A page says what the model answered, where and when in the clip the evidence lay, and which train clips it finds most
alike. If the answer was wrong, the evidence is for the predicted class against the label; otherwise against the second
most probable class.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.explain import ExplainConfig
from configs.section import UsageError
from packer.storage.files import write_atomically
from trainer.explain.attribution import Attribution, attribute, check_captum
from trainer.explain.clips import AskedClip, clips_of, find_clip
from trainer.explain.draw import Evidence, Strip, draw_explanation
from trainer.explain.finished_run import FinishedRun, find_folder, load_run, trainings_of
from trainer.explain.neighbours import FOLDER, Neighbour, find_neighbours
from trainer.explain.passes import see_clip, see_whole_split
from trainer.tracking.run_log import RunLog

FRAMES_NAMED = 3
"""Frames of most weight that the printed text names."""


@dataclass(frozen=True)
class Explanation:
    """Why the model answered as it did about one clip."""

    clip: AskedClip
    probabilities_K: NDArray[np.float64]
    attribution: Attribution
    neighbours: list[Neighbour]
    """The nearest first."""


def explain(config: ExplainConfig) -> Iterator[str]:
    """Explains the clips that are asked about: writes a page for each to the run's folder and to its MLflow run.

    Yields:
        What the user reads about each clip, with the path of its page.

    Raises:
        UsageError: The run or the clip cannot be found or read, captum is not installed, or nothing is wrong.
        OSError: The storage fails.
    """
    check_captum()
    folder = find_folder(config.run, config.runs)
    if trainings := trainings_of(folder):
        names = ", ".join(training.name for training in trainings)
        raise UsageError(f"run {config.run} is a cross-validation, which has several models: give one of {names}")
    run = load_run(folder, config.shards)
    clips = [find_clip(run, config.clip)] if config.clip else worst_mistakes(run, config.split, config.worst)
    log = RunLog(run.spec.tracking_uri, run.spec.run_id)
    for explanation in explain_clips(run, clips, config.nearest, config.steps):
        page = draw(explanation, run)
        path = run.spec.run_folder / FOLDER / f"{explanation.clip.file_name}.png"
        path.parent.mkdir(exist_ok=True)
        with write_atomically(path) as file:
            file.write(page)
        log.artifact(f"{FOLDER}/{path.name}", page)
        yield describe(explanation, run.class_names, path)
    log.close()


def worst_mistakes(run: FinishedRun, split: str, num_clips: int) -> list[AskedClip]:
    """Returns the wrong clips of a split whose labels the model found least probable, the least probable first.

    Args:
        run: Whose model was wrong.
        split: Name of the split; auto: test, or val if there is no test split.
        num_clips: At most so many.

    Raises:
        UsageError: No clip of the split is wrong, or the pack lacks the split.
    """
    summary = run.manifest.splits.get("test")
    if split == "auto":
        split = "test" if summary and summary.num_samples else "val"
    if split not in run.manifest.splits or not run.manifest.splits[split].num_samples:
        raise UsageError(f"{run.spec.shards} has no sample in its {split} split: give another --split, or a --clip")
    seen = see_whole_split(run, split)
    of_label = seen.probabilities_BK[np.arange(len(seen.labels)), seen.labels]
    wrong = np.flatnonzero(seen.probabilities_BK.argmax(axis=1) != seen.labels)
    if not len(wrong):
        raise UsageError(
            f"no clip of the {split} split of {run.spec.shards} is wrong ({len(seen.labels)} clips): give a --clip"
        )
    worst = wrong[np.argsort(of_label[wrong], kind="stable")][:num_clips]
    return clips_of(run, split, seen.samples[worst].tolist())


def explain_clips(run: FinishedRun, clips: list[AskedClip], num_nearest: int, num_steps: int) -> Iterator[Explanation]:
    """Yields the explanation of each clip.

    Args:
        run: Whose model is explained.
        clips: The clips.
        num_nearest: Nearest train clips for each of them.
        num_steps: See `attribute`.
    """
    seen = [see_clip(run, clip.frames) for clip in clips]
    own = [clip.sample if clip.split == "train" else -1 for clip in clips]
    features_QD = np.stack([features_D for features_D, _ in seen])
    neighbours = find_neighbours(run, features_QD, own, num_nearest)
    for clip, (_, probabilities_K), nearest in zip(clips, seen, neighbours, strict=True):
        target, other = contrasted(probabilities_K, clip.label)
        attribution = attribute(run.model, clip.frames, target, other, num_steps)
        yield Explanation(clip, probabilities_K, attribution, nearest)


def contrasted(probabilities_K: NDArray[np.float64], label: int | None) -> tuple[int, int]:
    """Returns the predicted class and the class that it is compared with.

    That is the label if the prediction is wrong, otherwise the second most probable class.
    """
    predicted, second = (int(index) for index in np.argsort(-probabilities_K, kind="stable")[:2])
    return predicted, second if label in (None, predicted) else int(label)


def draw(explanation: Explanation, run: FinishedRun) -> bytes:
    """Returns the page of an explanation as PNG."""
    names, clip, attribution = run.class_names, explanation.clip, explanation.attribution
    evidence = Evidence(
        clip.frames, attribution.maps, attribution.shares, names[attribution.target], names[attribution.other]
    )
    strips = [
        Strip(f"{names[one.label]}, {one.similarity:.2f} alike", one.source, one.frames)
        for one in explanation.neighbours
    ]
    return draw_explanation(clip.source, [_answer(explanation, names), _origin(clip, run)], evidence, strips)


def describe(explanation: Explanation, class_names: tuple[str, ...], path: Path) -> str:
    """Returns what the user reads about a clip.

    Args:
        explanation: Of the clip.
        class_names: In the order of the logits.
        path: Of the page.
    """
    shares = explanation.attribution.shares
    strongest = np.argsort(-shares, kind="stable")[:FRAMES_NAMED]
    frames = ", ".join(f"{number + 1} ({shares[number]:+.0%})" for number in strongest if shares[number] > 0)
    lines = [
        explanation.clip.source,
        _answer(explanation, class_names),
        f"frames that spoke most for {class_names[explanation.attribution.target]}: {frames or 'none'}",
    ]
    if explanation.neighbours:
        counts = Counter(class_names[one.label] for one in explanation.neighbours).most_common()
        labels = ", ".join(f"{count} {name}" for name, count in counts)
        nearest = explanation.neighbours[0]
        lines.append(f"nearest train clips: {labels}; first {nearest.source} ({nearest.similarity:.2f} alike)")
    return "\n  ".join([*lines, f"page: {path}"])


def _answer(explanation: Explanation, class_names: tuple[str, ...]) -> str:
    probabilities_K, attribution, label = explanation.probabilities_K, explanation.attribution, explanation.clip.label
    shown = [f"{class_names[index]} {probabilities_K[index]:.1%}" for index in (attribution.target, attribution.other)]
    if label is None:
        return f"predicted {shown[0]}, then {shown[1]}; no label is known"
    if label == attribution.target:
        return f"right: label and prediction {shown[0]}, then {shown[1]}"
    return f"wrong: predicted {shown[0]}, label {shown[1]}"


def _origin(clip: AskedClip, run: FinishedRun) -> str:
    of_run = f"run {run.name}, model of step {run.best_step}"
    if not clip.split:
        return f"{of_run}; the file is not in the pack"
    trained = ": the model was trained on this clip" if clip.split == "train" else ""
    return f"{of_run}; {clip.split} split{trained}"
