"""What the service measures of itself, by the OpenTelemetry API, shown in Prometheus's formats."""

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

# The semantic convention's bounds. Floats: printed as "1.0" they are the same label in Prometheus 2 and 3.
_DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
_SEED_PATHS = ("/", "/add_goal", "/remove_goal", "/health")

Attributes = dict[str, str | int]


class Telemetry:
    """The instruments and their exposition; one for each application, nothing global.

    HTTP follows OpenTelemetry's semantic conventions for HTTP metrics; `add_goal_requests_total`,
    `remove_goal_requests_total` and `http_requests_total{path}` keep the names and the meaning that dashboards made
    for the seed expect: successes only, four paths.
    """

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        reader = PrometheusMetricReader(scope_info_enabled=False, registry=self.registry)
        resource = Resource.create({"service.name": "goals", "service.version": version})
        self._provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        for collector in (ProcessCollector, GCCollector, PlatformCollector):
            collector(registry=self.registry)
        meter = self._provider.get_meter("goals", version)
        self._duration = meter.create_histogram(
            "http.server.request.duration",
            unit="s",
            description="Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDS,
        )
        # Observed at each scrape: adding up and down at every request would cost more than the rest of this class.
        self.active: dict[str, int] = {}
        meter.create_observable_up_down_counter(
            "http.server.active_requests",
            callbacks=[self._observe_active],
            unit="{request}",
            description="Number of active HTTP server requests.",
        )
        # Counted as plain integers, observed at each scrape; zero from the start, or rate() would miss the first event.
        self._successes = dict.fromkeys(_SEED_PATHS, 0)
        meter.create_observable_counter(
            "http_requests",
            callbacks=[lambda _: [Observation(count, {"path": path}) for path, count in self._successes.items()]],
            description="Successful requests by path.",
        )
        meter.create_observable_counter(
            "add_goal_requests",
            callbacks=[lambda _: [Observation(self._successes["/add_goal"])]],
            description="Goals added by the page.",
        )
        meter.create_observable_counter(
            "remove_goal_requests",
            callbacks=[lambda _: [Observation(self._successes["/remove_goal"])]],
            description="Goals removed by the page.",
        )
        self._attributes: dict[tuple[str, str, str, str | None, int, str | None], Attributes] = {}

    def _observe_active(self, _options: CallbackOptions) -> list[Observation]:
        return [
            Observation(count, {"http.request.method": method, "url.scheme": "http"})
            for method, count in self.active.items()
        ]

    def start_request(self, method: str) -> str:
        """Count an active request and return its method as a label: `_OTHER` for one that HTTP does not know."""
        label = method if method in _KNOWN_METHODS else "_OTHER"
        self.active[label] = self.active.get(label, 0) + 1
        return label

    def end_request(
        self, label: str, version: str, scheme: str, route: str | None, status: int, error: str | None, seconds: float
    ) -> None:
        """Record one request; `route` is the template, None where no route matched, so that nobody can make series."""
        self.active[label] -= 1
        key = (label, version, scheme, route, status, error)
        attributes = self._attributes.get(key)
        if attributes is None:
            attributes = {
                "http.request.method": label,
                "url.scheme": scheme,
                "network.protocol.version": version,
                "http.response.status_code": status,
            }
            if route is not None:
                attributes["http.route"] = route
            if error is not None:
                attributes["error.type"] = error
            self._attributes[key] = attributes
        self._duration.record(seconds, attributes)
        if status < 400 and route in self._successes:  # noqa: PLR2004  HTTP's own border of success
            self._successes[route] += 1

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that `Accept` asks for (text or OpenMetrics), and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def close(self) -> None:
        self._provider.shutdown()
