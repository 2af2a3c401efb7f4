"""Load profiles: k6's executors as data; each gives the number of users over time, or the times of arrivals."""

import re
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate, pairwise
from math import ceil, sqrt
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


def parse_duration(value: object) -> float:
    """Return the seconds of a duration in k6's and Go's notation: `500ms`, `30s`, `1m30s`, `1d`."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    message = f'a duration is text such as "500ms", "30s", "1m30s" or "1d", not {value!r}'
    if not isinstance(value, bool) and re.fullmatch(r"[0-9.]+", str(value)):
        message += f'; k6 takes a bare number as milliseconds: write "{value}ms" for that'
    raise ValueError(message)


def parse_unit(value: object) -> float:
    seconds = parse_duration(value)
    if seconds < _SHORTEST_UNIT:
        raise ValueError(f'the shortest `timeUnit` is "1ms", not {value!r}')
    return seconds


_SHORTEST_UNIT = 0.001

Span = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, le=7 * 86400)]
"""A duration that may be 0."""
Duration = Annotated[Span, Field(gt=0)]
Users = Annotated[int, Field(ge=1, le=50_000)]
"""In an open model, the maximum: an arrival that finds no free user is a dropped iteration."""
Rate = Annotated[float, Field(gt=0, le=1_000_000)]
"""Iterations per `timeUnit` (default: a second) in all processes together."""


class Strict(BaseModel):
    """Base of a scenario's parts: refuses unknown keys and wrong types, and converts nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class VusStage(Strict):
    duration: Span
    target: Annotated[int, Field(ge=0, le=50_000)]


class RateStage(Strict):
    duration: Span
    target: Annotated[float, Field(ge=0, le=1_000_000)]


_NOT_PLAYED = {
    "gracefulStop": "--stop-timeout limits how long iterations may still take at the end of a run",
    "gracefulRampDown": "a user that is removed finishes its iteration, within --stop-timeout",
    "startTime": "every scenario starts with the run; put a stage with the starting target first",
    "exec": "[[task]] defines what an iteration does",
    "env": "values of an iteration come from `save` and `${uuid}`",
    "tags": "metrics can be filtered by name, method, expected_response and check",
    "options": "there is no browser to configure",
    "iterations": "a run is limited by its duration",
    "maxDuration": "a run is limited by its duration",
}
"""Options of k6's executors that are not supported, with their alternatives."""


class Executor(Strict):
    """Base of the executors: accepts k6's names as well as ours, and rejects unsupported options of k6 by name."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_played(cls, content: object) -> object:
        for option, instead in _NOT_PLAYED.items():
            if isinstance(content, dict) and option in content:
                raise ValueError(f"k6's `{option}` is not supported: {instead}")
        return content


class ConstantVus(Executor):
    """A closed loop: each user sends its next request after the response to the previous one."""

    executor: Literal["constant-vus"]
    vus: Users
    duration: Duration

    @property
    def seconds(self) -> float:
        return self.duration

    def count_users(self, at: float) -> int:  # noqa: ARG002  the other closed executor depends on the time
        return self.vus


class RampingVus(Executor):
    """A closed loop whose number of users changes linearly from stage to stage; a stage of 0 s is a jump."""

    executor: Literal["ramping-vus"]
    start_vus: Annotated[int, Field(alias="startVUs", ge=0, le=50_000)] = 1
    stages: Annotated[list[VusStage], Field(min_length=1)]

    @property
    def seconds(self) -> float:
        return sum(stage.duration for stage in self.stages)

    def count_users(self, at: float) -> int:
        ends = list(accumulate((stage.duration for stage in self.stages), initial=0.0))
        levels = [self.start_vus, *(stage.target for stage in self.stages)]
        place = bisect(ends, at) - 1
        if place == len(self.stages):
            return levels[-1]
        share = (at - ends[place]) / self.stages[place].duration
        return round(levels[place] + (levels[place + 1] - levels[place]) * share)


class Arrivals(Executor):
    """Base of the open models: the unit of their rates, and the maximum number of users."""

    time_unit: Annotated[float, BeforeValidator(parse_unit), Field(alias="timeUnit", le=86400)] = 1.0
    pre_allocated_vus: Annotated[int | None, Field(alias="preAllocatedVUs", ge=0, le=50_000)] = None
    """Users are created on demand; as in k6, this is the maximum if `max_vus` is not given."""
    max_vus: Annotated[Users | None, Field(alias="maxVUs")] = None

    @property
    def most_users(self) -> int:
        return self.max_vus or self.pre_allocated_vus or 1000


class ConstantArrivalRate(Arrivals):
    """An open model: iterations start when they are due, whether or not earlier ones have finished."""

    executor: Literal["constant-arrival-rate"]
    rate: Rate
    duration: Duration

    @property
    def seconds(self) -> float:
        return self.duration

    def arrivals(self, part: int = 0, parts: int = 1) -> Iterator[float]:
        rate = self.rate / self.time_unit
        return _plan_arrivals([rate, rate], [self.duration], part, parts)


class RampingArrivalRate(Arrivals):
    """An open model whose rate changes linearly from stage to stage."""

    executor: Literal["ramping-arrival-rate"]
    start_rate: Annotated[float, Field(alias="startRate", ge=0, le=1_000_000)] = 0.0
    stages: Annotated[list[RateStage], Field(min_length=1)]

    @property
    def seconds(self) -> float:
        return sum(stage.duration for stage in self.stages)

    def arrivals(self, part: int = 0, parts: int = 1) -> Iterator[float]:
        rates = [rate / self.time_unit for rate in (self.start_rate, *(stage.target for stage in self.stages))]
        return _plan_arrivals(rates, [stage.duration for stage in self.stages], part, parts)


def _plan_arrivals(rates: list[float], durations: list[float], part: int, parts: int) -> Iterator[float]:
    """Yield the seconds after the start at which iterations are due: every `parts`-th one, starting at number `part`.

    `rates` are the rates at the boundaries of the stages, which last `durations`. The n-th iteration is due when the
    area under the rate reaches n, so that the parts of several processes interleave evenly.
    """
    begin, served = 0.0, 0.0
    for (first, last), duration in zip(pairwise(rates), durations, strict=True):
        if not duration:  # a jump
            continue
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
