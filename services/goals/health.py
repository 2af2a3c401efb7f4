"""What operators ask: does the process live, may requests come, what is it, what has it measured."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from goals import __version__
from goals.models import SCHEMA_REVISION
from goals.responses import JSON
from goals.state import State


async def get_health(_request: Request[State]) -> Response:
    """The original Go app's health check, on the public port: the process answers."""
    return PlainTextResponse("OK")


async def get_livez(_request: Request[State]) -> Response:
    """Never asks the database: a restart would not repair it."""
    return PlainTextResponse("live")


async def get_readyz(request: Request[State]) -> Response:
    readiness = request.state["readiness"]
    if readiness.draining:
        return PlainTextResponse("not ready: draining", 503)
    if readiness.obstacle is not None:
        return PlainTextResponse(f"not ready: {readiness.obstacle}", 503)
    return PlainTextResponse("ready")


async def get_version(request: Request[State]) -> Response:
    return JSON({"version": __version__, "revision": request.state["revision"], "schema": SCHEMA_REVISION})


async def get_metrics(request: Request[State]) -> Response:
    """Prometheus's text format, or OpenMetrics where `Accept` asks for it."""
    body, content_type = request.state["telemetry"].expose(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
