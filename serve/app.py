"""The Ray Serve application: gateways that speak HTTP, and replicas that hold the model.

    serve run serve.app:build        serve deploy configs/serve.yaml        python -m serve

A gateway passes a video on unchanged, and does not import torch (0.9 GB of memory). A replica decodes, batches and
classifies.
"""

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from configs.home import code_path
from configs.serve import ServeConfig
from serve.gateway.admission import Admission
from serve.gateway.auth import read_keys
from serve.gateway.http import make_app
from serve.gateway.page import find_samples
from serve.messages.refusal import OVERLOADED_SECONDS, Refusal, overloaded, unavailable
from serve.messages.schema import Answer, Clips, ModelStatus, Scores, Wanted
from serve.replica.classifier import Classifier, load_beside
from serve.replica.errors import ModelDied
from serve.request.metrics import ModelMetrics, RequestMetrics
from serve.request.request_id import REQUEST_ID, log_to_stderr

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

GATEWAY_REQUESTS = 512
"""Most requests that a gateway holds at once; many of them may be slow uploads, which wait for no model."""
ACCEPT_SECONDS = 1.0
"""How long to wait for a replica to accept a video. That takes milliseconds, so after this time there is no replica."""
STATUS_SECONDS = 2.0
"""How long a replica may take to return its status before the server says that it is not ready."""
HEALTH_CHECK_SECONDS = 1.0
"""How often Ray looks for dead processes. With Ray's default of 10, a new process starts up to 9 s later."""
MAX_TRIES = 3
"""Most replicas that one request may reach: the request itself may be what kills them."""


class ModelReplica:
    """One process with the model. It returns refusals, because Ray would wrap a raised one in its own error."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        log_to_stderr()
        os.environ["PYTHONPATH"] = code_path()  # so that the processes of the models find the same code
        self._classifier = Classifier(config, ModelMetrics(), load_beside)
        await self._classifier.start()

    async def classify(self, request_id: str, video: bytes, wanted: Wanted) -> Answer | Refusal:
        """Returns the answer for one video."""
        return await _settled(request_id, self._classifier.classify(video, wanted))

    async def infer(self, request_id: str, clips: Clips) -> Scores | Refusal:
        """Returns the probabilities of a batch."""
        return await _settled(request_id, self._classifier.infer(clips))

    async def status(self) -> ModelStatus:
        """Returns which model this replica serves."""
        return await self._classifier.status()


class RemoteClassifier:
    """The replicas as a `serve.messages.schema.VideoClassifier`. If a replica dies, its request goes to another one.

    Ray would let requests wait until there is a replica. Here the first ones are refused after a second, and all others
    at once, until there is a replica again.
    """

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._replicas = replicas
        self._comeback: asyncio.Task[None] | None = None

    async def classify(self, video: bytes, wanted: Wanted) -> Answer:
        """Returns the answer of a replica, or raises its refusal."""
        answer: Answer = await self._ask("classify", video, wanted)
        return answer

    async def infer(self, clips: Clips) -> Scores:
        """Returns the probabilities that a replica gives for a batch, or raises its refusal."""
        scores: Scores = await self._ask("infer", clips)
        return scores

    async def status(self) -> ModelStatus:
        """Returns the status of a replica."""
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                status: ModelStatus = await self._call("status")
        except TimeoutError as error:
            raise unavailable() from error
        return status

    async def _ask(self, method: str, *args: object) -> Any:
        outcome = await self._call(method, REQUEST_ID.get(), *args)
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    async def _call(self, method: str, *args: object) -> Any:
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                return await self._try(method, *args)
            except RayActorError as error:  # another try does no harm, and Ray does not offer a dead replica again
                logger.warning("replica_died tries_left=%d", tries_left)
                if not tries_left:
                    raise unavailable() from error

    async def _try(self, method: str, *args: object) -> Any:
        if self._comeback is not None:
            raise unavailable()
        response = getattr(self._replicas, method).remote(*args)
        try:
            await self._accepted(response)
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError as error:
            raise overloaded() from error
        except DeploymentUnavailableError as error:
            raise unavailable() from error

    async def _accepted(self, response: DeploymentResponse[Any]) -> None:
        """Returns as soon as a replica has accepted the request."""
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                await response._to_object_ref()
        except TimeoutError as error:
            if self._comeback is None:
                logger.warning("no_replica")
                self._comeback = asyncio.create_task(self._await_replica())
            response.cancel()  # type: ignore[no-untyped-call]
            raise unavailable() from error

    async def _await_replica(self) -> None:
        try:
            await self._replicas.status.remote()
            logger.warning("replica_is_back")
        except (RayActorError, BackPressureError, DeploymentUnavailableError) as error:
            logger.warning("no_replica reason=%s", type(error).__name__)
        finally:
            self._comeback = None  # the next request tries again


class Gateway:
    """The process that speaks HTTP. Ray asks it for its ASGI application after the constructor."""

    def __init__(self, replicas: DeploymentHandle[Any], config: ServeConfig) -> None:
        log_to_stderr()
        self._keys = read_keys(config)  # from this process's own environment, so that no message holds them
        self._classifier = RemoteClassifier(replicas)
        self._config = config
        self._admission = Admission(config.max_queued * config.max_replicas)
        self._metrics = RequestMetrics()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the application that Ray serves."""
        return make_app(self._classifier, self._config, self._keys, self._metrics, self._admission)

    async def close(self) -> None:
        """Refuses every new request, and returns when those inside have their answers."""
        await self._admission.close()


def build(config: ServeConfig) -> Application:
    """Returns the application for `serve run serve.app:build` and for `import_path` in a deploy config.

    Raises:
        UsageError: There is no API key and `allow_unauthenticated` is off, or there are no samples in the folder.
    """
    read_keys(config)  # refuse here, because Ray would restart a failing gateway again and again
    find_samples(config.samples)
    shared: dict[str, Any] = {
        "graceful_shutdown_timeout_s": config.deadline_seconds,
        "health_check_period_s": HEALTH_CHECK_SECONDS,
    }
    replicas = ray_serve.deployment(
        **_replica_count(config),
        **shared,
        max_ongoing_requests=2 * config.max_queued,  # the replica itself refuses at once what exceeds max_queued
        max_queued_requests=config.max_queued,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica},
    )(ModelReplica).bind(config)
    gateway = ray_serve.deployment(
        num_replicas=config.num_gateways,
        **shared,
        max_surge_percent=100,  # a new gateway starts first; a new replica may have to wait for a GPU
        max_ongoing_requests=GATEWAY_REQUESTS,
        max_queued_requests=GATEWAY_REQUESTS,
        backpressure_config={"retry_after_s": OVERLOADED_SECONDS},
        ray_actor_options={"num_cpus": 0},
    )(ray_serve.ingress()(Gateway))
    application: Application = gateway.bind(replicas, config)
    return application


async def _settled(request_id: str, answer: Coroutine[Any, Any, AnswerT]) -> AnswerT | Refusal:
    REQUEST_ID.set(request_id)
    try:
        return await answer
    except Refusal as refusal:
        logger.info("refused code=%s", refusal.code)
        return refusal
    except ModelDied as error:  # the gateway tries another replica, and Ray restarts this one
        logger.critical("model_died reason=%s", error)
        os._exit(1)


def _replica_count(config: ServeConfig) -> dict[str, Any]:
    if config.autoscaling is None:
        return {"num_replicas": config.num_replicas}
    autoscaling = AutoscalingConfig(
        min_replicas=config.autoscaling.min_replicas,
        max_replicas=config.autoscaling.max_replicas,
        target_ongoing_requests=config.autoscaling.target_ongoing_requests,
        upscale_delay_s=config.autoscaling.upscale_delay_seconds,
        downscale_delay_s=config.autoscaling.downscale_delay_seconds,
    )
    return {"autoscaling_config": autoscaling}
