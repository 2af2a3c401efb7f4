"""How load comes: the executors of k6 as data, each saying how many users or which arrivals there are at a time."""

import re
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate, pairwise
from math import ceil, sqrt
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds of a duration as k6 and Go write it: `500ms`, `30s`, `1m30s`."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", value))
    raise ValueError('a duration is text such as "500ms", "30s" or "1m30s"')


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=7 * 86400)]
Users = Annotated[int, Field(ge=1, le=50_000)]
"""In an open model, those made at most: an arrival that finds none of them free is a dropped iteration."""
Rate = Annotated[float, Field(gt=0, le=1_000_000)]
"""Iterations a second, over all processes."""


class Strict(BaseModel):
    """What a scenario's file may hold: an unknown key or another type is refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class VusStage(Strict):
    duration: Duration
    target: Annotated[int, Field(ge=0, le=50_000)]


class RateStage(Strict):
    duration: Duration
    target: Annotated[float, Field(ge=0, le=1_000_000)]


class ConstantVus(Strict):
    """A closed loop: each user sends its next request when the last was answered."""

    executor: Literal["constant-vus"]
    vus: Users
    duration: Duration

    @property
    def seconds(self) -> float:
        return self.duration

    def count_users(self, at: float) -> int:  # noqa: ARG002  the other closed executor depends on the time
        return self.vus


class RampingVus(Strict):
    """A closed loop whose number of users goes in straight lines from stage to stage; at least one user stays."""

    executor: Literal["ramping-vus"]
    start_vus: Users = 1
    stages: Annotated[list[VusStage], Field(min_length=1)]

    @property
    def seconds(self) -> float:
        return sum(stage.duration for stage in self.stages)

    def count_users(self, at: float) -> int:
        ends = list(accumulate((stage.duration for stage in self.stages), initial=0.0))
        levels = [self.start_vus, *(stage.target for stage in self.stages)]
        place = min(bisect(ends, at), len(self.stages)) - 1
        share = min((at - ends[place]) / self.stages[place].duration, 1)
        return max(round(levels[place] + (levels[place + 1] - levels[place]) * share), 1)


class ConstantArrivalRate(Strict):
    """An open model: iterations start when they are due, whether or not the earlier ones are answered."""

    executor: Literal["constant-arrival-rate"]
    rate: Rate
    duration: Duration
    max_vus: Users = 1000

    @property
    def seconds(self) -> float:
        return self.duration

    def arrivals(self, part: int = 0, parts: int = 1) -> Iterator[float]:
        return _plan_arrivals([self.rate, self.rate], [self.duration], part, parts)


class RampingArrivalRate(Strict):
    """An open model whose rate goes in straight lines from stage to stage."""

    executor: Literal["ramping-arrival-rate"]
    start_rate: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    stages: Annotated[list[RateStage], Field(min_length=1)]
    max_vus: Users = 1000

    @property
    def seconds(self) -> float:
        return sum(stage.duration for stage in self.stages)

    def arrivals(self, part: int = 0, parts: int = 1) -> Iterator[float]:
        rates = [self.start_rate, *(stage.target for stage in self.stages)]
        return _plan_arrivals(rates, [stage.duration for stage in self.stages], part, parts)


def _plan_arrivals(rates: list[float], durations: list[float], part: int, parts: int) -> Iterator[float]:
    """Seconds after the start at which iterations are due: every `parts`-th, from number `part` on.

    `rates` are those at the borders of the stages that last `durations`. The n-th iteration is due where the area
    under the rate reaches n, so that the parts of several processes interleave evenly.
    """
    begin, served = 0.0, 0.0
    for (first, last), duration in zip(pairwise(rates), durations, strict=True):
        area = (first + last) / 2 * duration
        slope = (last - first) / duration
        number = part + parts * max(ceil((served - part) / parts), 0)
        while (inside := number - served) < area:
            yield begin + (2 * inside / (first + sqrt(max(first**2 + 2 * slope * inside, 0))) if inside else 0.0)
            number += parts
        begin, served = begin + duration, served + area


Closed = ConstantVus | RampingVus
Open = ConstantArrivalRate | RampingArrivalRate
Load = Annotated[Closed | Open, Field(discriminator="executor")]
