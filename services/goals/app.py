"""The application: its routes, its middleware, and what starts and stops with it."""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from opentelemetry.sdk.resources import Resource
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from goals import __version__, api, capacity, connections, health, keys, otel, pages, server, signals, store
from goals.database import Database
from goals.errors import ConfigurationError, GoalsError
from goals.limits import Limits
from goals.logs import request_writer
from goals.middleware import Guard, Headers, Record, Trace
from goals.readiness import Readiness
from goals.reads import SharedReads
from goals.responses import answer
from goals.settings import Settings
from goals.state import State
from goals.telemetry import Telemetry
from goals.writes import Writes

if TYPE_CHECKING:
    from goals.traces import Traces

log = structlog.get_logger(__name__)

# fmt: off
PUBLIC_ROUTES = [
    Route("/",                        pages.get_page,     methods=["GET"]),
    Route("/add_goal",                pages.post_goal,    methods=["POST"]),
    Route("/remove_goal",             pages.post_removal, methods=["POST"]),
    Route("/goals/{goal_id}",         pages.get_goal,     methods=["GET"]),
    Route("/goals/{goal_id}",         pages.post_change,  methods=["POST"]),
    Route("/static/{name}",           pages.get_static,   methods=["GET"]),
    Route("/health",                  health.get_health,  methods=["GET"]),
    Route("/openapi.json",            api.get_openapi,    methods=["GET"]),
    Route("/api/v1/openapi.json",     api.get_openapi,    methods=["GET"]),
    Route("/api/v1/goals",            api.get_goals,      methods=["GET"]),
    Route("/api/v1/goals",            api.post_goal,      methods=["POST"]),
    Route("/api/v1/goals/{goal_id}",  api.get_goal,       methods=["GET"]),
    Route("/api/v1/goals/{goal_id}",  api.patch_goal,     methods=["PATCH"]),
    Route("/api/v1/goals/{goal_id}",  api.delete_goal,    methods=["DELETE"]),
]
OPS_ROUTES = [
    Route("/livez",                   health.get_livez,   methods=["GET"]),
    Route("/readyz",                  health.get_readyz,  methods=["GET"]),
    Route("/version",                 health.get_version, methods=["GET"]),
    Route("/metrics",                 health.get_metrics, methods=["GET"]),
]
# fmt: on


class Application:
    """Two ASGI applications, one for each port: the public port serves nothing that is meant for operators."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self.readiness = Readiness(limits)
        self._settings = settings
        self._limits = limits
        self.telemetry = Telemetry(__version__)
        self._traces = _make_traces(settings, limits, self.telemetry.resource)
        self._on_drain: Callable[[], None] = lambda: None
        loopback = settings.loopback_hosts()
        headers = Middleware(Headers, hsts=settings.goals_hsts, draining=lambda: self.readiness.draining)
        self.public = Starlette(
            routes=PUBLIC_ROUTES,
            lifespan=self._lifespan,
            # Outermost first.
            middleware=[
                headers,
                Middleware(Record, metrics=self.telemetry.requests, write=request_writer(settings.goals_log_format)),
                *([] if self._traces is None else [Middleware(Trace, tracer=self._traces.tracer)]),
                Middleware(Guard, limits=limits, hosts=settings.goals_hosts or loopback),
            ],
            exception_handlers={GoalsError: _answer_error, HTTPException: _answer_error},
        )
        operators_hosts = loopback and (*loopback, *settings.goals_hosts)
        self.operators = Starlette(
            routes=OPS_ROUTES, middleware=[headers, Middleware(Guard, limits=limits, hosts=operators_hosts)]
        )
        for app in (self.public, self.operators):
            app.router.redirect_slashes = False  # an unknown address is a 404, not a redirect to a similar one

    def drain(self) -> None:
        """Stop taking new traffic, and shorten the time that requests may wait for the database."""
        self.readiness.drain()
        self._on_drain()

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[State]:
        database = Database(self._settings, self._limits, self.telemetry.database, self._traces)

        shared_pages = SharedReads(partial(pages.load_page, database))
        shared_lists = SharedReads(partial(api.load_list, database))
        shared_goals = SharedReads(partial(api.load_goal, database))
        self.telemetry.observe_reads({"page": shared_pages, "list": shared_lists, "goal": shared_goals})
        self._on_drain = database.drain
        tasks = [
            asyncio.create_task(self._prepare(database)),
            asyncio.create_task(self.telemetry.watch_loop()),
            *([] if database.standbys is None else [asyncio.create_task(database.standbys.watch())]),
        ]
        try:
            yield State(
                database=database,
                pages=shared_pages,
                lists=shared_lists,
                goals=shared_goals,
                writes=Writes(database, self._limits, self.telemetry.groups, self._traces),
                readiness=self.readiness,
                telemetry=self.telemetry,
                revision=self._settings.goals_revision,
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # if one had failed, the loop logs why
            await database.close()
            self.telemetry.close()
            if self._traces is not None:
                self._traces.close()

    async def _prepare(self, database: Database) -> None:
        """Prepare the service, then run the background tasks."""
        await self._get_ready(database)
        kept = timedelta(hours=self._settings.goals_key_hours)
        async with asyncio.TaskGroup() as background:
            background.create_task(keys.remove_old_keys(database, kept, self._limits))
            background.create_task(
                self.telemetry.watch_ids(partial(store.select_ids_used, database), self._limits.ids_interval)
            )

    async def _get_ready(self, database: Database) -> None:
        await self.readiness.wait_for_schema(database)
        try:
            await database.fill()
        except Exception as error:  # noqa: BLE001  any error, of the driver too: it must not end the background tasks
            log.warning("pool warm-up failed; connections open on demand", error=type(error).__name__)
        # Objects that exist now live as long as the process: the garbage collector need not scan them again.
        gc.collect()
        gc.freeze()
        self.readiness.open()


def _make_traces(settings: Settings, limits: Limits, resource: Resource) -> "Traces | None":
    if otel.is_disabled(os.environ):
        log.warning("OTEL_SDK_DISABLED is true: no traces, and only process metrics")
        return None
    if settings.otel_exporter_otlp_endpoint is None or otel.exports_no_traces(os.environ):
        return None
    try:
        from goals.traces import Traces  # noqa: PLC0415  loads the exporter, so only with a collector
    except ModuleNotFoundError as error:
        remedy = "install requirements/goals.txt, or unset the variable"
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_ENDPOINT needs {error.name}: {remedy}") from None
    return Traces(str(settings.otel_exporter_otlp_endpoint), resource, __version__, limits)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette lists the methods of one matching route; `Allow` must list those of all (RFC 9110, 10.2.1).
        routes = (route for route in PUBLIC_ROUTES if route.matches(request.scope)[0] is not Match.NONE)
        allowed = sorted({method for route in routes for method in route.methods or ()})
        error = HTTPException(error.status_code, error.detail, {"allow": ", ".join(allowed)})
    return answer(request.scope, error)


def log_ports(port: int, ops_port: int) -> None:
    log.info("listening", port=port, ops_port=ops_port)


async def serve(
    settings: Settings,
    limits: Limits,
    *,
    announce: Callable[[int, int], None] = log_ports,
    on_signal: Callable[[Callable[[], None]], None] = signals.call,
) -> None:
    """Serve until asked to stop, then drain and stop.

    `announce` is called with the public and the ops port once both are bound. `on_signal` is called with the function
    that stops the service; a second call stops it immediately. A port in use raises a `ConfigurationError`.
    """
    asyncio.get_running_loop().set_exception_handler(connections.handle_loop_error)
    sockets = [server.listen(settings.goals_bind, port) for port in (settings.goals_port, settings.goals_ops_port)]
    most = capacity.most_connections(settings.goals_max_connections, limits)
    application = Application(settings, limits)
    listeners = [
        server.Listener("public", sockets[0], application.public, most),
        server.Listener("operators", sockets[1], application.operators, limits.operators_connections),
    ]
    application.telemetry.observe_connections(listeners)
    http = server.Server(listeners, limits, application.drain, settings.goals_drain_seconds)
    on_signal(http.stop)
    announce(*(listener.port for listener in listeners))
    await http.serve()
