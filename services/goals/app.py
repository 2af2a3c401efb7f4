"""The table of contents: what is started, which routes there are, and what every request passes on its way."""

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from hypercorn.asyncio import serve as serve_hypercorn
from hypercorn.config import Config
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from goals import __version__, api, health, pages, signals
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

if TYPE_CHECKING:
    from goals.traces import Traces

log = structlog.get_logger(__name__)

# fmt: off
PUBLIC_ROUTES = [
    Route("/",                        pages.get_page,     methods=["GET"]),
    Route("/add_goal",                pages.post_goal,    methods=["POST"]),
    Route("/remove_goal",             pages.post_removal, methods=["POST"]),
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
OPERATORS_ROUTES = [
    Route("/livez",                   health.get_livez,   methods=["GET"]),
    Route("/readyz",                  health.get_readyz,  methods=["GET"]),
    Route("/version",                 health.get_version, methods=["GET"]),
    Route("/metrics",                 health.get_metrics, methods=["GET"]),
]
# fmt: on


class Application:
    """Two ASGI applications on two ports in one process, told apart by the port a request came in by.

    Nothing for operators can be reached by the public port, whatever path or host is asked for.
    """

    def __init__(self, settings: Settings, limits: Limits, operators_port: int) -> None:
        self.readiness = Readiness(limits)
        self._settings = settings
        self._limits = limits
        self._operators_port = operators_port
        self._telemetry = Telemetry(__version__)
        self._traces = _make_traces(settings, limits)
        headers = Middleware(Headers, hsts=settings.goals_hsts, draining=lambda: self.readiness.draining)
        self.public = Starlette(
            routes=PUBLIC_ROUTES,
            lifespan=self._lifespan,
            # Outermost first.
            middleware=[
                headers,
                Middleware(Record, metrics=self._telemetry.requests, write=request_writer(settings.goals_log_format)),
                *([] if self._traces is None else [Middleware(Trace, tracer=self._traces.tracer)]),
                Middleware(Guard, limits=limits, hosts=settings.goals_hosts),
            ],
            exception_handlers={GoalsError: _answer_error, HTTPException: _answer_error},
        )
        self.operators = Starlette(routes=OPERATORS_ROUTES, middleware=[headers, Middleware(Guard, limits=limits)])
        for app in (self.public, self.operators):
            app.router.redirect_slashes = False  # an address we do not have is a 404, not a way to one like it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operators = scope["type"] != "lifespan" and scope["server"][1] == self._operators_port
        await (self.operators if operators else self.public)(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[State]:
        database = Database(self._settings, self._limits, self._telemetry.database, self._traces)

        shared_pages = SharedReads(partial(pages.load_page, database))
        shared_lists = SharedReads(partial(api.load_list, database))
        shared_goals = SharedReads(partial(api.load_goal, database))
        self._telemetry.observe_reads({"page": shared_pages, "list": shared_lists, "goal": shared_goals})
        tasks = [
            asyncio.create_task(self._get_ready(database)),
            asyncio.create_task(self._telemetry.watch_loop()),
        ]
        try:
            yield State(
                database=database,
                pages=shared_pages,
                lists=shared_lists,
                goals=shared_goals,
                readiness=self.readiness,
                telemetry=self._telemetry,
                revision=self._settings.goals_revision,
            )
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await database.close()
            self._telemetry.close()
            if self._traces is not None:
                self._traces.close()

    async def _get_ready(self, database: Database) -> None:
        await self.readiness.wait_for_schema(database)
        try:
            await database.fill()
        except (GoalsError, OSError, SQLAlchemyError) as error:
            log.warning("connections will be opened when they are needed", error=type(error).__name__)
        # What is alive now stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()


def _make_traces(settings: Settings, limits: Limits) -> "Traces | None":
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    try:
        from goals.traces import Traces  # noqa: PLC0415  so that without a collector nothing of it is loaded
    except ModuleNotFoundError as error:
        remedy = "install requirements/goals.txt, or unset the variable"
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_ENDPOINT needs {error.name}: {remedy}") from None
    return Traces(str(settings.otel_exporter_otlp_endpoint), __version__, limits)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette names the methods of one matching route; the address has those of all (RFC 9110, 10.2.1).
        routes = (route for route in PUBLIC_ROUTES if route.matches(request.scope)[0] is not Match.NONE)
        allowed = sorted({method for route in routes for method in route.methods or ()})
        error = HTTPException(error.status_code, error.detail, {"allow": ", ".join(allowed)})
    return answer(request.scope, error)


def log_ports(port: int, operators_port: int) -> None:
    log.info("listening", port=port, operators_port=operators_port)


async def serve(
    settings: Settings,
    limits: Limits,
    *,
    announce: Callable[[int, int], None] = log_ports,
    heed: Callable[[Callable[[], None]], None] = signals.call,
) -> None:
    """Serve until told to stop; then drain, and stop listeners, requests, pool and telemetry, in this order.

    `announce` is told the public and the operators' port once both are bound. `heed` is given the function that stops
    the service, and at once when it is called again. A port that cannot be had raises a `ConfigurationError`.
    """
    listeners = [_listen(settings.goals_bind, port) for port in (settings.goals_port, settings.goals_ops_port)]
    public_port, operators_port = (listener.getsockname()[1] for listener in listeners)
    application = Application(settings, limits, operators_port)
    config = hypercorn_config(listeners, limits)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    hurrying = asyncio.Event()

    def stop() -> None:
        if application.readiness.draining:
            hurrying.set()
            return
        application.readiness.draining = True
        loop.call_later(settings.goals_drain_seconds, stopping.set)
        log.info("draining", seconds=settings.goals_drain_seconds)

    heed(stop)
    server = asyncio.create_task(serve_hypercorn(application, config, shutdown_trigger=stopping.wait))  # type: ignore[arg-type]  # Starlette's ASGI types are looser
    announce(public_port, operators_port)
    await _wait_for_stop(server, stopping, hurrying, limits)
    log.info("stopped")


def hypercorn_config(listeners: Iterable[socket.socket], limits: Limits) -> Config:
    """How Hypercorn is run, whatever it serves on `listeners`; it takes them over."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}" for listener in listeners]
    config.backlog = limits.backlog
    config.include_server_header = False
    config.keep_alive_timeout = limits.keep_alive
    config.keep_alive_max_requests = limits.keep_alive_requests
    config.graceful_timeout = limits.body_deadline + limits.request_deadline
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


async def _wait_for_stop(
    server: asyncio.Task[None], stopping: asyncio.Event, hurrying: asyncio.Event, limits: Limits
) -> None:
    """Wait for Hypercorn, but not for a client that neither reads nor leaves once the requests' deadline is over."""

    async def lose_patience() -> None:
        await stopping.wait()
        await asyncio.sleep(limits.body_deadline + limits.request_deadline + limits.stop_margin)

    impatience = [asyncio.create_task(hurrying.wait()), asyncio.create_task(lose_patience())]
    await asyncio.wait({server, *impatience}, return_when=asyncio.FIRST_COMPLETED)
    for task in impatience:
        task.cancel()
    if server.done():
        return server.result()
    while not server.done():
        server.cancel()  # each time ends one of the waits in Hypercorn's own stop
        await asyncio.sleep(0)
    with contextlib.suppress(asyncio.CancelledError):
        server.exception()  # marks it as seen: however that ended was our doing
    return None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or "").partition(" (while")[0]  # the rest names the address once more
        remedy = "stop what uses it, or choose another by GOALS_BIND, GOALS_PORT and GOALS_OPS_PORT"
        raise ConfigurationError(f"cannot listen on {host} port {port} ({reason}): {remedy}") from None
