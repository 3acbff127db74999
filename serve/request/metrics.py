"""The server's metrics. Ray shows them to Prometheus on the port of its own metrics, each with the prefix `ray_`.

Ray adds labels of its own: `deployment`, `replica`, `application` and more. A histogram's buckets are exact, but its
`_sum` is not, because Ray passes each value on as the middle of its bucket. After each refusal for the reason
`decoder_crash`, `out_of_memory` or `timeout` a decoder process is restarted.
"""

from ray.serve import metrics

from serve.messages.schema import Timing
from serve.request.record import ClassifierObserver, RequestObserver, RequestRecord

SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
CLIPS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


class RequestMetrics(RequestObserver):
    """The counts of a gateway or a proxy; created in its process."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "clipstream_requests_total",
            "requests that have ended",
            ("route", "code"),  # type: ignore[arg-type]  # Ray means tuple[str, ...]
        )
        self._seconds = metrics.Histogram(
            "clipstream_request_seconds", "from a request's headers to the end of its answer", SECONDS, ("route",)
        )
        self._bytes = metrics.Counter("clipstream_received_bytes_total", "bytes of bodies that were read", ("route",))
        self._refusals = metrics.Counter("clipstream_refusals_total", "refused requests and files", ("reason",))

    def request(self, record: RequestRecord) -> None:
        """Counts a request."""
        route = {"route": record.route}
        self._requests.inc(tags=route | {"code": str(record.status)})
        self._seconds.observe(record.seconds, route)
        if record.num_bytes:
            self._bytes.inc(record.num_bytes, route)
        for reason in record.refusals:
            self._refusals.inc(tags={"reason": reason})


class ModelMetrics(ClassifierObserver):
    """The counts of a model replica; created in its process."""

    def __init__(self) -> None:
        self._stages = {
            stage: metrics.Histogram(f"clipstream_{stage}", str(field.description), SECONDS)
            for stage, field in Timing.model_fields.items()
        }
        self._clips = metrics.Counter("clipstream_clips_total", "clips that the model classified")
        self._batch = metrics.Histogram("clipstream_batch_clips", "clips per forward pass", CLIPS)
        self._model = metrics.Gauge(
            "clipstream_model_info",
            "1: the version that is served",
            ("name", "version"),  # type: ignore[arg-type]  # Ray means tuple[str, ...]
        )
        self._served: dict[str, str] | None = None

    def answered(self, timing: Timing) -> None:
        """Counts a video."""
        for stage, histogram in self._stages.items():
            histogram.observe(getattr(timing, stage))

    def batch(self, num_clips: int) -> None:
        """Counts a forward pass."""
        self._clips.inc(num_clips)
        self._batch.observe(num_clips)

    def serves(self, name: str, version: str) -> None:
        """Sets the version that is served to 1 and the previous one to 0."""
        if self._served is not None:
            self._model.set(0, self._served)
        self._served = {"name": name, "version": version}
        self._model.set(1, self._served)
