"""The service with routes that fail on purpose, for a Prometheus to see; nothing of them is in the product."""

import asyncio
import time

import structlog
from sqlalchemy import func, literal, select
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from goals import app, logs
from goals.limits import Limits
from goals.settings import read_settings
from goals.state import State


async def crash(_request: Request[State]) -> Response:
    raise RuntimeError("on purpose")


async def fail(request: Request[State]) -> Response:
    """A statement that PostgreSQL refuses: SQLSTATE 22012."""
    await request.state["database"].fetch(select(literal(1) / literal(0)))
    raise AssertionError("the database divides by zero")


async def sleep(request: Request[State]) -> Response:
    """A statement slower than the latency objective."""
    await request.state["database"].fetch(select(func.pg_sleep(0.3)))
    return PlainTextResponse("slept")


async def block(_request: Request[State]) -> Response:
    """A handler that forgets that others wait for the event loop."""
    time.sleep(0.02)  # noqa: ASYNC251  that is the fault
    return PlainTextResponse("blocked")


def main() -> None:
    app.PUBLIC_ROUTES.extend(
        Route(f"/fault/{handler.__name__}", handler, methods=["GET"]) for handler in (crash, fail, sleep, block)
    )
    settings = read_settings()
    logs.configure(settings.goals_log_format)
    log = structlog.get_logger(__name__)
    asyncio.run(
        app.serve(settings, Limits(), announce=lambda *ports: log.info("serving", port=ports[0], ops_port=ports[1]))
    )


if __name__ == "__main__":
    main()
