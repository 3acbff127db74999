"""Classifies videos: decodes in processes that can be killed, batches, runs the model, and follows the alias.

This is plain asyncio without Ray: a model replica is this class with a queue in front. Torch and MLflow are imported
only when the first model is loaded, because the gateway imports this module for its types and must stay small.
"""

import asyncio
import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from configs.serve import ServeConfig
from packer.decoders.pool import ClipFuture, DecodePool
from packer.video.clip import Clip
from packer.video.container import VideoError
from serve.messages.refusal import Refusal, no_model, overloaded
from serve.messages.schema import (
    Answer,
    ClassProbability,
    ClipInfo,
    Clips,
    Explanation,
    ModelInfo,
    ModelName,
    ModelStatus,
    Scores,
    Timing,
    Wanted,
)
from serve.replica.alias_watch import AliasWatch
from serve.replica.batcher import GreedyBatcher
from serve.replica.explainer import Explainer
from serve.request.record import ClassifierObserver

if TYPE_CHECKING:
    from serve.replica.model_process import ModelProcess
    from serve.replica.predictor import FramesTHWC, ModelView, Predictor, ProbabilitiesK


@dataclass(frozen=True)
class Forward:
    """The result of one clip in the forward pass of its batch, and when that pass was."""

    probabilities: "ProbabilitiesK"
    started_at: float
    """`time.monotonic()` at the start of the batch."""
    seconds: float


class ServedModel:
    """One version of the model, with its own batcher so that a batch never mixes versions."""

    def __init__(
        self,
        version: str,
        predictor: "Predictor | ModelProcess",
        executor: ThreadPoolExecutor,
        max_batch_size: int,
        observer: ClassifierObserver,
    ) -> None:
        self.version = version
        self.predictor = predictor
        self._executor = executor
        self._observer = observer
        self._num_users = 0
        self._retired = False
        self.batcher: GreedyBatcher[FramesTHWC, Forward] = GreedyBatcher(self._predict, max_batch_size)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keeps the model alive until the block ends, even if another one replaces it meanwhile."""
        self._num_users += 1
        try:
            yield
        finally:
            self._num_users -= 1
            self._close_if_done()

    def retire(self) -> None:
        """Ends the model's process as soon as nobody uses it any more."""
        self._retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and not self._num_users:
            # In a thread, because all requests of the replica would wait until so large a process has ended.
            asyncio.get_running_loop().run_in_executor(None, self.predictor.close)

    async def _predict(self, clips: "list[FramesTHWC]") -> Sequence[Forward]:
        self._observer.batch(len(clips))
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._forward, clips)

    def _forward(self, clips: "list[FramesTHWC]") -> list[Forward]:
        started_at = time.monotonic()
        rows = self.predictor.predict(clips)
        seconds = time.monotonic() - started_at
        return [Forward(row, started_at, seconds) for row in rows]


def load_here(config: ServeConfig, version: str, gives_way: bool) -> "Predictor":
    """Returns a version in this process. It answers more slowly while another one is loaded."""
    from serve.replica.versions import load_predictor

    return load_predictor(config, version)


def load_beside(config: ServeConfig, version: str, gives_way: bool) -> "ModelProcess":
    """Returns a version in its own process."""
    from serve.replica.model_process import ModelProcess

    return ModelProcess(config, version, gives_way)


class Classifier:
    """Answers videos with classes. Call `start` before use and `close` after it.

    Args:
        config: Which model, from which store, and the limits.
        observer: Is told of each answer, batch and version.
        load_model: `load_here` or `load_beside`. Its last argument says whether another version is served meanwhile.
    """

    def __init__(
        self,
        config: ServeConfig,
        observer: ClassifierObserver | None = None,
        load_model: "Callable[[ServeConfig, str, bool], Predictor | ModelProcess]" = load_here,
    ) -> None:
        self._load_model = load_model
        self._config = config
        self._observer = observer or ClassifierObserver()
        self._pool = DecodePool(config.decoder_processes, config.limits)
        self._executor = ThreadPoolExecutor(1, "model")  # one forward pass at a time, of whichever version
        self._watch = AliasWatch(self._resolve, self._load, ServedModel.retire, config.alias_poll_seconds)
        self._num_admitted = 0
        self._explainer = Explainer(config.max_explained)

    async def start(self) -> None:
        """Starts to follow the alias, and returns when the first attempt to load a model has ended."""
        await self._watch.start()

    async def close(self) -> None:
        """Stops following the alias, and ends the model's process and the decoders."""
        self._watch.close()
        if self._watch.model is not None:
            self._watch.model.retire()
        self._executor.shutdown(cancel_futures=True)
        await asyncio.to_thread(self._pool.close)

    async def status(self) -> ModelStatus:
        """Returns which model is served now, and why the newest version is not."""
        model = self._watch.model
        if model is None:
            return ModelStatus(problem=self._watch.problem)
        contract = model.predictor.contract
        info = ModelInfo(
            name=self._config.registered_model,
            version=model.version,
            alias=self._config.alias,
            class_names=list(contract.class_names),
            num_frames=contract.num_frames,
            size_px=contract.view.size_px,
            select_by=contract.select_by,
            val_metric=contract.val_metric,
            code_version=contract.code_version,
            explains=self._config.explain,
        )
        return ModelStatus(model=info, problem=self._watch.problem)

    async def classify(self, video: bytes, wanted: Wanted) -> Answer:
        """Returns the most probable classes of a video file.

        Raises:
            Refusal: There is no model (503), too many videos are waiting (503), or the video cannot be used (422).
            ModelDied: The model's process has ended.
        """
        model = self._model()
        with model.used():
            return await self._classify(model, video, wanted)

    async def infer(self, clips: Clips) -> Scores:
        """Returns the probabilities of a batch of videos, or of clips as the model sees them, all from one version.

        Raises:
            Refusal: See `classify`; it names the first clip that is refused. Frames have another shape (400).
        """
        model = self._model()
        with model.used():
            scores = await asyncio.gather(*(self._score(model, number, clip) for number, clip in enumerate(clips)))
        return Scores(
            model=ModelName(name=self._config.registered_model, version=model.version),
            class_names=list(model.predictor.contract.class_names),
            probabilities=scores,
        )

    async def _score(self, model: ServedModel, number: int, clip: bytes | NDArray[np.uint8]) -> list[float]:
        try:
            if isinstance(clip, bytes):
                answer = await self._classify(model, clip, Wanted(len(model.predictor.contract.class_names)))
                by_name = {row.class_name: row.probability for row in answer.predictions}
                return [by_name[name] for name in model.predictor.contract.class_names]
            with self._admitted():
                forward = await model.batcher.submit(_taken(model.predictor, clip))
                return [float(probability) for probability in forward.probabilities]
        except Refusal as refusal:
            message = f"clip {number}: {refusal.message}"
            raise Refusal(refusal.status, refusal.code, message, refusal.retry_after_seconds) from refusal

    def _model(self) -> ServedModel:
        model = self._watch.model  # a request keeps it to its end, even if the alias moves meanwhile
        if model is None:
            raise no_model(self._watch.problem)
        return model

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._num_admitted >= self._config.max_queued:
            raise overloaded()
        self._num_admitted += 1
        try:
            yield
        finally:
            self._num_admitted -= 1

    async def _classify(self, model: ServedModel, video: bytes, wanted: Wanted) -> Answer:
        with self._admitted(), self._explainer.admitted() if wanted.explain else nullcontext():
            submitted_at = time.monotonic()
            decoding = self._pool.submit(video, model.predictor.contract.clip)
            clip = model.predictor.pick(await _decoded(decoding))
            frames = await asyncio.to_thread(model.predictor.view, clip)
            ready_at = time.monotonic()
            forward = await model.batcher.submit(frames)
            explanation = await self._explain(model, frames, forward.probabilities) if wanted.explain else None
        timing = Timing(
            decode_seconds=ready_at - decoding.started_at,
            queue_seconds=decoding.started_at - submitted_at + forward.started_at - ready_at,
            model_seconds=forward.seconds,
        )
        self._observer.answered(timing)
        return Answer(
            model=ModelName(name=self._config.registered_model, version=model.version),
            predictions=_top(forward.probabilities, model.predictor.contract.class_names, wanted.top_k),
            clip=_clip_info(clip),
            timing=timing,
            frames=[_base64(jpeg) for jpeg in clip.jpegs] if wanted.frames else None,
            view=await asyncio.to_thread(_pngs, frames) if wanted.view else None,
            explanation=explanation,
        )

    async def _explain(self, model: ServedModel, frames: "FramesTHWC", probabilities: "ProbabilitiesK") -> Explanation:
        async def classify(clip: "FramesTHWC") -> "ProbabilitiesK":
            return (await model.batcher.submit(clip)).probabilities

        started_at = time.monotonic()
        found = await self._explainer.explain(classify, frames, probabilities)
        class_names = model.predictor.contract.class_names
        return Explanation(
            **{"class": class_names[found.best]},
            against=class_names[found.second],
            lead=found.lead,
            frame_weights=found.weights_T.tolist(),
            seconds=time.monotonic() - started_at,
        )

    def _resolve(self) -> str:
        from serve.replica.versions import resolve_version

        return resolve_version(self._config)

    def _load(self, version: str) -> ServedModel:
        predictor = self._load_model(self._config, version, self._watch.model is not None)
        self._observer.serves(self._config.registered_model, version)
        return ServedModel(version, predictor, self._executor, self._config.max_batch_size, self._observer)


async def _decoded(decoding: ClipFuture) -> Clip:
    try:
        return await asyncio.wrap_future(decoding)
    except VideoError as error:
        raise Refusal(422, error.reason, str(error)) from error


def _taken(predictor: "ModelView", frames: NDArray[np.uint8]) -> "FramesTHWC":
    try:
        return predictor.take(frames)
    except ValueError as error:
        raise Refusal(400, "bad_inference_request", str(error)) from error


def _top(probabilities: NDArray[np.float64], class_names: Sequence[str], top_k: int) -> list[ClassProbability]:
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [ClassProbability(**{"class": class_names[i], "probability": float(probabilities[i])}) for i in order]


def _clip_info(clip: Clip) -> ClipInfo:
    return ClipInfo(
        num_frames=clip.num_frames,
        frame_indices=list(clip.frame_indices),
        fps=clip.fps,
        duration_seconds=clip.duration_seconds,
        width_px=clip.source_width_px,
        height_px=clip.source_height_px,
        decode_road=clip.decode_road,
        damage=list(clip.damage),
    )


def _pngs(frames: "FramesTHWC") -> list[str]:
    """Returns the very pixels that the model gets, each frame as a PNG in base64."""
    from PIL import Image  # here, not above: few requests want it

    pngs = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG", compress_level=1)  # of 112 px: 1 ms; the default takes 5 and saves 7 %
        pngs.append(_base64(file.getvalue()))
    return pngs


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
