"""The endpoints for operators: liveness, readiness, version and metrics; and `/health` on the public port."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from goals import __version__
from goals.models import SCHEMA_REVISION
from goals.responses import JSON
from goals.state import State


async def get_health(_request: Request[State]) -> Response:
    """The original Go app's health check, on the public port: it only shows that the process answers."""
    return PlainTextResponse("OK")


async def get_livez(_request: Request[State]) -> Response:
    """Report liveness without a query to the database: restarting this process would not repair it."""
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
    """Return the metrics in Prometheus's text format, or in OpenMetrics if `Accept` asks for it."""
    body, content_type = request.state["telemetry"].expose(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
