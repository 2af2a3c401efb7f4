"""What the manifests must agree with in the service's own code: settings, routes and limits, read and not repeated."""

import functools
import os
from typing import NamedTuple

IMAGE = "goals"
"""The image's name without registry, by which the service's containers are known."""


class Service(NamedTuple):
    """Names of the environment's variables with their defaults; paths by port; seconds."""

    settings: dict[str, object]
    routes: dict[int, frozenset[str]]
    keep_alive: float
    request_deadline: float
    body_deadline: float
    retry_budget: float
    gate_timeout: float
    connect_timeout: float
    statement_timeout: float
    command_timeout: float


@functools.cache
def service() -> Service:
    """Import the service; raises `ImportError` where its dependencies are not installed."""
    from goals import app, database, middleware, settings  # noqa: PLC0415  only where manifests of the service are checked

    fields = {name.upper(): field.default for name, field in settings.Settings.model_fields.items()}
    return Service(
        settings=fields,
        routes={
            int(str(fields["GOALS_PORT"])): frozenset(route.path for route in app.PUBLIC_ROUTES),
            int(str(fields["GOALS_OPS_PORT"])): frozenset(route.path for route in app.OPERATORS_ROUTES),
        },
        keep_alive=app.KEEP_ALIVE_SECONDS,
        request_deadline=middleware.REQUEST_DEADLINE,
        body_deadline=middleware.BODY_DEADLINE,
        retry_budget=database.RETRY_BUDGET,
        gate_timeout=database.GATE_TIMEOUT,
        connect_timeout=database.CONNECT_TIMEOUT,
        statement_timeout=database.STATEMENT_TIMEOUT,
        command_timeout=database.COMMAND_TIMEOUT,
    )


def problem(values: dict[str, str]) -> str:
    """What the service would refuse of these variables at its start; empty where nothing."""
    service()
    from goals import errors, settings  # noqa: PLC0415  see above

    kept = dict(os.environ)
    os.environ.clear()
    # Files are the container's, not this machine's.
    os.environ.update({key: value for key, value in values.items() if not key.endswith("_FILE")})
    try:
        settings.read_settings()
    except errors.ConfigurationError as error:
        return str(error)
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return ""


def is_service(image: str) -> bool:
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0] == IMAGE
