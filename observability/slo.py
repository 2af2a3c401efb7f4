"""Reads `slo.toml` for the rules and for the load test: a mistake is an error, not a rule that never fires."""

import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FILE = Path(__file__).with_name("slo.toml")

Window = Annotated[str, Field(pattern=r"^[1-9][0-9]*[mhd]$")]
Objective = Annotated[float, Field(gt=0, lt=1, strict=True)]


class Table(BaseModel):
    """A table of the file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Availability(Table):
    objective: Objective


class Latency(Table):
    objective: Objective
    threshold_seconds: float = Field(gt=0, allow_inf_nan=False, strict=True)


class Requests(Table):
    excluded_routes: tuple[str, ...] = Field(min_length=1)
    least_per_second: float = Field(ge=0)


class Burn(Table):
    """A burn rate and its pair of windows; see the file."""

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
    # Without {{ }} and $, which Prometheus's templates and Grafana's variables would expand.
    runbooks: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~@%+-]+)*$")]


class Promises(BaseModel):
    """The objectives that a run of the load test is judged by; it ignores the rest of the file."""

    availability: Availability
    latency: Latency


class Objectives(Promises, Table):
    """The whole file."""

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
        """All windows of the rules, the shortest first."""
        return sorted({window for burn in self.burn for window in (burn.long, burn.short)}, key=_minutes)


def _minutes(window: str) -> int:
    return int(window[:-1]) * {"m": 1, "h": 60, "d": 1440}[window[-1]]


def read(file: Path | None = None) -> Objectives:
    """Read and validate the file; a `ValueError` has one line for each mistake."""
    file = file or FILE
    with _naming(file):
        return Objectives.model_validate(tomllib.loads(file.read_text(encoding="utf-8-sig")))


def read_promises(file: Path) -> Promises:
    """Read and validate only the objectives that a run is judged by."""
    with _naming(file):
        return Promises.model_validate(tomllib.loads(file.read_text(encoding="utf-8-sig")))


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"the objectives in {file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        slips = [f"{'.'.join(map(str, slip['loc']))}: {slip['msg']}" for slip in error.errors(include_url=False)]
        raise ValueError("\n".join(f"{file}: {slip}" for slip in slips)) from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
