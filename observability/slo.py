"""The objectives of `slo.toml`, checked as a whole so that a slip is a message and not a rule that never fires."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from goals.app import PUBLIC_ROUTES
from goals.telemetry import REQUEST_BOUNDS

FILE = Path(__file__).with_name("slo.toml")

Window = Annotated[str, Field(pattern=r"^[1-9][0-9]*[mhd]$")]
Objective = Annotated[float, Field(gt=0, lt=1)]


class Table(BaseModel):
    """A table of the file; a key it does not know is a slip."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Availability(Table):
    objective: Objective


class Latency(Table):
    objective: Objective
    threshold_seconds: float

    @model_validator(mode="after")
    def _is_bucket(self) -> Self:
        if self.threshold_seconds not in REQUEST_BOUNDS:
            bounds = ", ".join(f"{bound:g}" for bound in REQUEST_BOUNDS)
            raise ValueError(f"threshold_seconds must be a bucket of the duration histogram, one of {bounds}")
        return self


class Requests(Table):
    excluded_routes: tuple[str, ...] = Field(min_length=1)
    least_per_second: float = Field(ge=0)

    @field_validator("excluded_routes")
    @classmethod
    def _exist(cls, routes: tuple[str, ...]) -> tuple[str, ...]:
        known = {route.path for route in PUBLIC_ROUTES}
        for route in routes:
            if route not in known:
                raise ValueError(f"there is no route {route}; there are {', '.join(sorted(known))}")
        return routes


class Burn(Table):
    """One pair of windows; see the file."""

    rate: float = Field(gt=0)
    long: Window
    short: Window
    for_: Window = Field(alias="for")
    severity: Literal["critical", "warning"]

    @model_validator(mode="after")
    def _is_shorter(self) -> Self:
        if _minutes(self.short) >= _minutes(self.long):
            raise ValueError(f"the short window ({self.short}) must be shorter than the long one ({self.long})")
        return self


class Links(Table):
    # Neither Prometheus, whose templates read {{ }}, nor Grafana, whose variables begin with $, finds anything in it.
    runbooks: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~@%+-]+)*$")]


class Objectives(Table):
    """The whole file."""

    availability: Availability
    latency: Latency
    requests: Requests
    burn: tuple[Burn, ...] = Field(min_length=1)
    links: Links

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        for name in ("availability", "latency"):
            budget = 1 - getattr(self, name).objective
            for burn in self.burn:
                if burn.rate * budget >= 1:
                    raise ValueError(
                        f"{name}: a burn rate of {burn.rate:g} cannot be reached with a budget of {budget:g}"
                    )
        return self

    @property
    def windows(self) -> list[str]:
        """Every window that a rule needs, the shortest first."""
        return sorted({window for burn in self.burn for window in (burn.long, burn.short)}, key=_minutes)


def _minutes(window: str) -> int:
    return int(window[:-1]) * {"m": 1, "h": 60, "d": 1440}[window[-1]]


def read(file: Path | None = None) -> Objectives:
    """Read and check the file; what is wrong with it is a `ValueError` of one line for each slip."""
    file = file or FILE
    try:
        return Objectives.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file.name}: {error}") from None
    except ValidationError as error:
        slips = [f"{'.'.join(map(str, slip['loc']))}: {slip['msg']}" for slip in error.errors(include_url=False)]
        raise ValueError("\n".join(f"{file.name}: {slip}" for slip in slips)) from None
