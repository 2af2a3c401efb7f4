"""What the manifests must agree with in the service's own code: settings, routes and limits, read and not repeated."""

import dataclasses
import functools
import os

from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.settings import Settings, read_settings

IMAGE = "goals"
"""The image's name without registry, by which the service's containers are known."""


LIMITS: dict[str, float] = dataclasses.asdict(Limits())
"""The service's limits by their names."""
SETTINGS = {name.upper(): field.default for name, field in Settings.model_fields.items()}
"""Names of the environment's variables with their defaults."""


@functools.cache
def routes() -> dict[int, frozenset[str]]:
    """The service's paths by port."""
    from goals import app  # noqa: PLC0415  half a second, only where a path is looked for

    return {
        int(str(SETTINGS["GOALS_PORT"])): frozenset(route.path for route in app.PUBLIC_ROUTES),
        int(str(SETTINGS["GOALS_OPS_PORT"])): frozenset(route.path for route in app.OPS_ROUTES),
    }


def problem(values: dict[str, str]) -> str:
    """What the service would refuse of these variables at its start; empty where nothing."""
    kept = dict(os.environ)
    os.environ.clear()
    # Files are the container's, not this machine's.
    os.environ.update({key: value for key, value in values.items() if not key.endswith("_FILE")})
    try:
        read_settings()
    except ConfigurationError as error:
        return str(error)
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return ""


def is_service(image: str) -> bool:
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0] == IMAGE
