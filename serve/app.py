"""The Ray Serve application: a light gateway that speaks HTTP, and replicas that hold the model.

    serve run serve.app:build        serve deploy configs/serve.yaml        python -m serve

The gateway imports no torch (0.9 GB of memory) and hands the video on as it came; a replica decodes, batches, answers.
"""

import asyncio
import logging
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from configs.serve import ServeConfig
from serve.classifier import Classifier
from serve.guard import read_keys
from serve.http import make_app
from serve.metrics import ModelMetrics, RequestMetrics
from serve.refusal import Refusal
from serve.request_id import REQUEST_ID, log_to_stderr
from serve.schema import Answer, ModelStatus

logger = logging.getLogger(__name__)

GATEWAY_REQUESTS = 512
"""Requests that the gateway holds at once; many may be slow uploads, which wait for no model."""
STATUS_SECONDS = 2.0
"""How long a replica may take to tell its status before the server calls itself not ready."""


class ModelReplica:
    """One process with the model; refusals are returned, since Ray would wrap a raised one in its own error."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        log_to_stderr()
        self._classifier = Classifier(config, ModelMetrics())
        await self._classifier.start()

    async def classify(self, video: bytes, top_k: int, with_frames: bool, request_id: str) -> Answer | Refusal:
        """Returns the answer for one video."""
        REQUEST_ID.set(request_id)
        try:
            return await self._classifier.classify(video, top_k, with_frames)
        except Refusal as refusal:
            logger.info("refused code=%s", refusal.code)
            return refusal

    async def status(self) -> ModelStatus:
        """Returns what this replica serves."""
        return await self._classifier.status()


class RemoteClassifier:
    """The replicas as `serve.http.VideoClassifier`: a dead replica costs one retry, not the request."""

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._replicas = replicas

    async def classify(self, video: bytes, top_k: int, with_frames: bool) -> Answer:
        """Returns the answer of one replica, or raises its refusal."""
        request = (video, top_k, with_frames, REQUEST_ID.get())
        try:
            outcome = await self._call("classify", *request)
        except RayActorError:  # classifying is idempotent
            logger.warning("replica_died retry=1")
            outcome = await self._retry(*request)
        if isinstance(outcome, Refusal):
            raise outcome
        answer: Answer = outcome
        return answer

    async def status(self) -> ModelStatus:
        """Returns the status of one replica."""
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                status: ModelStatus = await self._call("status")
        except (TimeoutError, RayActorError) as error:
            raise _unavailable() from error
        return status

    async def _retry(self, *args: object) -> Any:
        try:
            return await self._call("classify", *args)
        except RayActorError as error:
            raise _unavailable() from error

    async def _call(self, method: str, *args: object) -> Any:
        response = getattr(self._replicas, method).remote(*args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError as error:
            raise Refusal(503, "overloaded", "the server has all the videos it can take", 1) from error
        except DeploymentUnavailableError as error:
            raise _unavailable() from error


class Gateway:
    """The HTTP side; Ray asks it for its ASGI application once it is constructed."""

    def __init__(self, replicas: DeploymentHandle[Any], config: ServeConfig) -> None:
        log_to_stderr()
        self._keys = read_keys(config)  # of this process's own environment: they travel in no message
        self._classifier = RemoteClassifier(replicas)
        self._config = config
        self._metrics = RequestMetrics()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the application that Ray serves."""
        return make_app(self._classifier, self._config, self._keys, self._metrics)


def build(config: ServeConfig) -> Application:
    """Returns the application for `serve run serve.app:build` and for `import_path` in a deploy config.

    Raises:
        UsageError: There is no API key and `allow_unauthenticated` is off.
    """
    read_keys(config)  # refuse here, not in a replica that Ray would start again and again
    replicas = ray_serve.deployment(
        num_replicas=config.num_replicas,
        max_ongoing_requests=2 * config.max_queued,  # the replica itself refuses above max_queued, at once
        max_queued_requests=config.max_queued,
        graceful_shutdown_timeout_s=config.deadline_seconds,
        ray_actor_options={"num_cpus": config.cpu_threads, "num_gpus": config.gpus_per_replica},
    )(ModelReplica).bind(config)
    gateway = ray_serve.deployment(
        max_ongoing_requests=GATEWAY_REQUESTS,
        max_queued_requests=GATEWAY_REQUESTS,
        backpressure_config={"retry_after_s": 1},
        graceful_shutdown_timeout_s=config.deadline_seconds,
        ray_actor_options={"num_cpus": 0},
    )(ray_serve.ingress()(Gateway))
    application: Application = gateway.bind(replicas, config)
    return application


def _unavailable() -> Refusal:
    return Refusal(503, "unavailable", "no model replica answers: it is starting or starting again", 5)
