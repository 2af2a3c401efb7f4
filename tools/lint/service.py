"""Settings, routes and limits of the service, read from its code, which the manifests must match."""

import dataclasses
import functools
import os

from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.settings import Settings, read_settings

IMAGE = "goals"
"""The image's name without its registry, which identifies the service's containers."""


LIMITS: dict[str, float] = dataclasses.asdict(Limits())
"""The service's limits by name."""
SETTINGS = {name.upper(): field.default for name, field in Settings.model_fields.items()}
"""Environment variables with their defaults."""


@functools.cache
def routes() -> dict[int, frozenset[str]]:
    """The service's paths by port."""
    from goals import app  # noqa: PLC0415  takes half a second, and only some rules need it

    return {
        int(str(SETTINGS["GOALS_PORT"])): frozenset(route.path for route in app.PUBLIC_ROUTES),
        int(str(SETTINGS["GOALS_OPS_PORT"])): frozenset(route.path for route in app.OPS_ROUTES),
    }


def problem(values: dict[str, str]) -> str:
    """Return the service's error for these variables at startup; empty if there is none."""
    kept = dict(os.environ)
    os.environ.clear()
    # Files are in the container, not on this machine.
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
