"""The service's metrics: recorded with the OpenTelemetry API, exposed in Prometheus's formats.

Names, units and attributes follow the semantic conventions for HTTP and database metrics (v1.44). Recording adds
microseconds to each request, so attributes are built once, and counters are plain integers, read at each scrape.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

# Floats, so that the label is "1.0" in Prometheus 2 and 3 alike. The semantic conventions recommend the bounds of
# requests and of database operations.
REQUEST_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Buckets of a request's duration in seconds; the latency objective is only exact if it is one of them."""
_DATABASE_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_GROUP_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_OUTCOMES = {outcome: {"outcome": outcome} for outcome in ("committed", "undone", "failed")}
_DELAY_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

# The methods of our routes. The conventions allow a service to restrict the list; each method adds time series.
_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE"})
OTHER_METHOD = "_OTHER"
"""The conventions' value for an unknown method, so that clients cannot create new label values."""
_VERSIONS = frozenset({"1.0", "1.1"})
# part adoption
_ORIGINAL_PATHS = ("/", "/add_goal", "/remove_goal", "/health")
# end adoption
_LOOP_PERIOD = 0.5

Attributes = dict[str, str | int]


class Pool(NamedTuple):
    """The current connections, their maximum, and the number of statements that wait for one."""

    used: int
    idle: int
    size: int
    waiting: int


def describe_method(method: str) -> dict[str, str]:
    """Return the span attributes of a request's method."""
    if method in _METHODS:
        return {"http.request.method": method}
    return {"http.request.method": OTHER_METHOD, "http.request.method_original": method[:32]}


class Port(Protocol):
    """A listening port: its open connections, their limit, and the dropped ones by reason."""

    @property
    def name(self) -> str: ...
    @property
    def most(self) -> int: ...
    @property
    def open(self) -> int: ...
    @property
    def dropped(self) -> Mapping[str, int]: ...


class Reads(Protocol):
    """Shared reads of one kind."""

    @property
    def requests(self) -> int: ...
    @property
    def queries(self) -> int: ...


class RequestMetrics:
    """Requests of the public port."""

    def __init__(self, meter: Meter) -> None:
        self._duration = _histogram(
            meter, "http.server.request.duration", "Duration of HTTP server requests.", REQUEST_BOUNDS
        )
        self._attributes: dict[tuple[str, str, str, str | None, int, str | None], Attributes] = {}
        self._active = dict.fromkeys([*_METHODS, OTHER_METHOD], 0)
        meter.create_observable_up_down_counter(
            "http.server.active_requests",
            callbacks=[self._observe_active],
            unit="{request}",
            description="Number of active HTTP server requests.",
        )
        # part adoption
        # `add_goal_requests_total`, `remove_goal_requests_total` and `http_requests_total{path}` keep the names and the
        # meaning that dashboards of the original Go app expect: successes only, four paths.
        # They start at zero, because rate() would otherwise miss the first event.
        self._successes = dict.fromkeys(_ORIGINAL_PATHS, 0)
        _counter(
            meter,
            "http_requests",
            "Successful requests by path.",
            lambda: [(count, {"path": path}) for path, count in self._successes.items()],
        )
        _counter(
            meter, "add_goal_requests", "Goals added through the page.", lambda: [(self._successes["/add_goal"], {})]
        )
        _counter(
            meter,
            "remove_goal_requests",
            "Goals removed through the page.",
            lambda: [(self._successes["/remove_goal"], {})],
        )
        # end adoption

    def _observe_active(self, _options: CallbackOptions) -> Iterable[Observation]:
        for method, count in self._active.items():
            yield Observation(count, {"http.request.method": method, "url.scheme": "http"})

    def start(self, method: str) -> str:
        """Count an active request and return its method as a label: `_OTHER` if no route has the method."""
        label = method if method in _METHODS else OTHER_METHOD
        self._active[label] += 1
        return label

    def end(
        self, label: str, version: str, scheme: str, route: str | None, status: int, error: str | None, seconds: float
    ) -> None:
        """Record one request.

        `route` is the template, or None if no route matched, so that clients cannot create time series. `status` is 0
        if the client left before the response. `error` is the exception's class, or the text of a 5xx status.
        """
        self._active[label] -= 1
        key = (label, version, scheme, route, status, error)
        attributes = self._attributes.get(key)
        if attributes is None:
            attributes = self._attributes[key] = _describe_request(*key)
        self._duration.record(seconds, attributes)
        # part adoption
        if route in self._successes and 200 <= status < 400:  # noqa: PLR2004  HTTP's own borders of success
            self._successes[route] += 1
        # end adoption


def _describe_request(
    label: str, version: str, scheme: str, route: str | None, status: int, error: str | None
) -> Attributes:
    attributes: Attributes = {"http.request.method": label, "url.scheme": scheme}
    if version in _VERSIONS:
        attributes["network.protocol.version"] = version
    if status:
        attributes["http.response.status_code"] = status
    if route is not None and status != 405:  # noqa: PLR2004  the path matched but the method did not: no route did
        attributes["http.route"] = route
    if error is not None:
        attributes["error.type"] = error
    return attributes


class DatabaseMetrics:
    """Metrics of statements and of the connection pool, which has the service's name."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._pool: Attributes = {"db.client.connection.pool.name": "goals"}
        self._operation = _histogram(
            meter, "db.client.operation.duration", "Duration of database client operations.", _DATABASE_BOUNDS
        )
        self._attributes: dict[tuple[str, str, str | None, str | None], Attributes] = {}
        self._wait, self._use, self._create = (
            _histogram(meter, f"db.client.connection.{name}", description, _DATABASE_BOUNDS)
            for name, description in (
                (
                    "wait_time",
                    "The time it took to obtain an open connection from the pool, including the wait in its queue.",
                ),
                ("use_time", "The time between borrowing a connection and returning it to the pool."),
                ("create_time", "The time it took to create a new connection."),
            )
        )
        self._standby_reads = dict.fromkeys(("standby", "primary", "refused"), 0)
        _counter(
            meter,
            "goals.standby.reads",
            "Reads that queried all servers, by outcome: answered by a standby, by a primary, or not at all (refused).",
            lambda: [(count, {"outcome": outcome}) for outcome, count in self._standby_reads.items()],
        )

    def record_statement(
        self, namespace: str, operation: str, collection: str | None, error: str | None, seconds: float
    ) -> None:
        """Record one attempt; `error` is the SQLSTATE, or the class of an error that did not come from the server."""
        key = (namespace, operation, collection, error)
        attributes = self._attributes.get(key)
        if attributes is None:
            attributes = {"db.system.name": "postgresql", "db.namespace": namespace, "db.operation.name": operation}
            if collection is not None:
                attributes["db.collection.name"] = collection
            if error is not None:
                attributes["error.type"] = error
            self._attributes[key] = attributes
        self._operation.record(seconds, attributes)

    def record_standby_read(self, outcome: str) -> None:
        """Count a read that queried all servers; `outcome` is standby, primary or refused."""
        self._standby_reads[outcome] += 1

    def record_wait(self, seconds: float) -> None:
        self._wait.record(seconds, self._pool)

    def record_use(self, seconds: float) -> None:
        self._use.record(seconds, self._pool)

    def record_creation(self, seconds: float) -> None:
        self._create.record(seconds, self._pool)

    def observe_pool(self, look: Callable[[], Pool]) -> None:
        """Register `look`, which returns the state of the pool at each scrape."""

        def observe_connections(_options: CallbackOptions) -> Iterable[Observation]:
            pool = look()
            yield Observation(pool.used, {**self._pool, "db.client.connection.state": "used"})
            yield Observation(pool.idle, {**self._pool, "db.client.connection.state": "idle"})

        for name, unit, description, observe in (
            (
                "count",
                "{connection}",
                "The number of connections that are currently in the state described by the state attribute.",
                observe_connections,
            ),
            (
                "max",
                "{connection}",
                "The maximum number of open connections allowed.",
                lambda _: [Observation(look().size, self._pool)],
            ),
            (
                "pending_requests",
                "{request}",
                "The number of current pending requests for an open connection.",
                lambda _: [Observation(look().waiting, self._pool)],
            ),
        ):
            self._meter.create_observable_up_down_counter(
                f"db.client.connection.{name}", callbacks=[observe], unit=unit, description=description
            )

    def observe_gate(self, rejections: Mapping[str, int]) -> None:
        """Register the counts of statements that were rejected before they got a connection, by reason."""
        _counter(
            self._meter,
            "goals.gate.rejections",
            "Statements rejected before they got a connection, by reason: the queue was full (full), or they waited "
            "too long while the database was slow (slow) or down (down).",
            lambda: [(count, {"reason": reason}) for reason, count in rejections.items()],
        )
        _counter(
            self._meter,
            "db.client.connection.timeouts",
            "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
            lambda: [(rejections["slow"] + rejections["down"], self._pool)],
        )


class GroupMetrics:
    """Statements that add goals, one or several each."""

    def __init__(self, meter: Meter) -> None:
        self._size = meter.create_histogram(
            "goals.add.group.size",
            unit="{add}",
            description="Adds per statement, by outcome: committed or failed (including single adds), or undone (each "
            "add is then retried alone).",
            explicit_bucket_boundaries_advisory=_GROUP_BOUNDS,
        )
        self._wait = _histogram(
            meter,
            "goals.add.group.wait",
            "How long the oldest add in a statement waited before the statement started.",
            _DATABASE_BOUNDS,
        )

    def record(self, size: int, outcome: str, wait: float) -> None:
        """Record a statement; `outcome` is committed, undone or failed."""
        self._size.record(size, _OUTCOMES[outcome])
        self._wait.record(wait)


class Telemetry:
    """The instruments and their exposition; one for each application, nothing global."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        reader = PrometheusMetricReader(scope_info_enabled=False, registry=self.registry)
        # Attributes from the environment are merged last, so they take precedence.
        self.resource = Resource.create({"service.name": "goals", "service.version": version}).merge(
            OTELResourceDetector().detect()
        )
        self._provider = MeterProvider(
            [reader],
            resource=self.resource,
            exemplar_filter=AlwaysOffExemplarFilter(),  # the exporter would drop them
            shutdown_on_exit=False,
        )
        for collector in (ProcessCollector, GCCollector, PlatformCollector):
            collector(registry=self.registry)
        self._meter = self._provider.get_meter("goals", version)
        self.requests = RequestMetrics(self._meter)
        self.database = DatabaseMetrics(self._meter)
        self.groups = GroupMetrics(self._meter)
        self._delay = _histogram(
            self._meter,
            "goals.eventloop.delay",
            "Event loop lag in seconds.",
            _DELAY_BOUNDS,
        )
        self._ids_used: float | None = None
        self._meter.create_observable_gauge(
            "goals.ids.used_ratio",  # the exporter does not add Prometheus's suffix for a unit of 1
            callbacks=[self._observe_ids],
            unit="1",
            description="The last id divided by the highest id that the column and its sequence allow.",
        )

    def _observe_ids(self, _options: CallbackOptions) -> Iterable[Observation]:
        if self._ids_used is not None:
            yield Observation(self._ids_used)

    def observe_reads(self, reads: Mapping[str, Reads]) -> None:
        """Register the counts of requested reads and of the queries that served them, by kind."""
        _counter(
            self._meter,
            "goals.reads",
            "Read requests by kind.",
            lambda: [(one.requests, {"kind": kind}) for kind, one in reads.items()],
        )
        _counter(
            self._meter,
            "goals.read.queries",
            "Queries that served read requests; concurrent reads of the same kind and key share one query.",
            lambda: [(one.queries, {"kind": kind}) for kind, one in reads.items()],
        )

    def observe_connections(self, ports: Iterable[Port]) -> None:
        """Register the counts of open and dropped connections of both ports."""
        self._meter.create_observable_up_down_counter(
            "goals.connections",
            callbacks=[lambda _: [Observation(port.open, {"port": port.name}) for port in ports]],
            unit="{connection}",
            description="Open client connections.",
        )
        self._meter.create_observable_up_down_counter(
            "goals.connections.limit",
            callbacks=[lambda _: [Observation(port.most, {"port": port.name}) for port in ports]],
            unit="{connection}",
            description="Maximum number of client connections to a port; further connections are closed immediately.",
        )
        _counter(
            self._meter,
            "goals.connections.dropped",
            "Connections dropped, by reason: the port was at its limit (full), the client did not read (unread), the "
            "HTTP version is not supported (version), or the connection could not be accepted (accept).",
            lambda: [
                (count, {"port": port.name, "reason": reason})
                for port in ports
                for reason, count in port.dropped.items()
            ],
        )

    async def watch_loop(self) -> None:
        """Measure the lag of the event loop until cancelled: the saturation of a single-threaded service."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOP_PERIOD
            await asyncio.sleep(_LOOP_PERIOD)
            self._delay.record(max(0.0, loop.time() - due))

    async def watch_ids(self, read: Callable[[], Awaitable[float | None]], interval: float) -> None:
        """Call `read` until cancelled to get the share of used ids; a scrape shows the last result."""
        while True:
            # After a failure, the last result stays. `Database` logs and counts failures.
            with contextlib.suppress(Exception):
                self._ids_used = await read()
            await asyncio.sleep(interval)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that `Accept` asks for (text or OpenMetrics), and the content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is not a number
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type

    def close(self) -> None:
        self._provider.shutdown()


def _histogram(meter: Meter, name: str, description: str, bounds: tuple[float, ...]) -> Histogram:
    return meter.create_histogram(name, unit="s", description=description, explicit_bucket_boundaries_advisory=bounds)


def _counter(meter: Meter, name: str, description: str, look: Callable[[], Iterable[tuple[int, Attributes]]]) -> None:
    """Create a counter whose values `look` returns as plain integers."""
    meter.create_observable_counter(
        name,
        callbacks=[lambda _: [Observation(count, attributes) for count, attributes in look()]],
        description=description,
    )
