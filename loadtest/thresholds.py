"""Evaluates thresholds in k6's syntax, with defaults from the service level objectives; `report` judges the run."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from loadtest.recorder import Recorder
from observability import slo

PASSED, ERROR, USAGE, FAILED = 0, 1, 2, 99
"""Exit codes; 99 is k6's code for crossed thresholds (its errext/exitcodes)."""

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "===": operator.eq,
    "!=": operator.ne,
    "!==": operator.ne,
}
_EXPRESSION = re.compile(r"(\w+|p\(\d+(?:\.\d+)?\))\s*(<=|>=|===?|!==?|<|>)\s*(\d+(?:\.\d+)?|\.\d+)", re.ASCII)
_METRIC = re.compile(r"(\w+)(?:\{([^{}]+)\})?", re.ASCII)
_NEXT_TAG = re.compile(r", ?(?=\w+:)")

_TREND, _RATE, _COUNTER = ("avg", "min", "med", "max", "count", "p(N)"), ("rate",), ("count", "rate")
AGGREGATES = {
    "http_req_duration": _TREND,
    "http_req_service": _TREND,
    "http_req_connecting": _TREND,
    "http_req_failed": _RATE,
    "checks": _RATE,
    "http_reqs": _COUNTER,
    "iterations": _COUNTER,
    "dropped_iterations": _COUNTER,
    "interrupted_requests": _COUNTER,
    "connections": _COUNTER,
    "data_received": _COUNTER,
}
"""The metrics for thresholds, and the aggregates of each."""
_REQUEST_TAGS = ("name", "method", "expected_response")
_TAGS = {
    "http_req_duration": _REQUEST_TAGS,
    "http_req_failed": _REQUEST_TAGS,
    "http_reqs": _REQUEST_TAGS,
    "checks": ("check",),
}


@dataclass(frozen=True)
class Threshold:
    """One condition on one metric; times are in milliseconds."""

    metric: str
    tags: Mapping[str, str]
    expression: str
    aggregate: str
    compare: Callable[[float, float], bool]
    limit: float
    abort_on_fail: bool = False
    delay_abort: float = 0.0

    @property
    def selector(self) -> str:
        tags = ",".join(f"{key}:{value}" for key, value in self.tags.items())
        return f"{self.metric}{{{tags}}}" if tags else self.metric


@dataclass(frozen=True)
class Outcome:
    """A threshold, the measured value (`None` if nothing was measured) and whether the threshold is met."""

    threshold: Threshold
    measured: float | None
    ok: bool


def parse_threshold(selector: str, expression: str, *, abort: bool = False, delay: float = 0.0) -> Threshold:
    """Read a selector such as `http_req_duration{name:page}` and an expression such as `p(95)<250`.

    A `ValueError` says what is wrong with them.
    """
    metric = _METRIC.fullmatch(selector)
    if not metric or metric[1] not in AGGREGATES:
        raise ValueError(f"there is no metric `{selector}`; choose one of {', '.join(AGGREGATES)}")
    name, narrowed = metric.groups()
    tags = _parse_tags(name, narrowed) if narrowed else {}
    parsed = _EXPRESSION.fullmatch(expression.strip())
    if not parsed:
        raise ValueError(f"`{expression}` is not a threshold; write one such as `p(95)<250` or `rate>0.999`")
    aggregate = parsed[1]
    if re.sub(r"\(.*\)", "(N)", aggregate) not in AGGREGATES[name]:
        raise ValueError(f"`{name}` has no `{aggregate}`; it has {', '.join(AGGREGATES[name])}")
    if aggregate.startswith("p(") and float(aggregate[2:-1]) > 100:  # noqa: PLR2004  per cent
        raise ValueError(f"`{aggregate}` is above 100 %")
    return Threshold(name, tags, expression, aggregate, _COMPARISONS[parsed[2]], float(parsed[3]), abort, delay)


def _parse_tags(metric: str, text: str) -> dict[str, str]:
    """Read `name:page,expected_response:true`; a value may contain commas, because a step's name may."""
    tags: dict[str, str] = {}
    for part in _NEXT_TAG.split(text):
        key, colon, value = part.partition(":")
        if not colon or not value or key in tags:
            raise ValueError(f"`{metric}{{{text}}}` is not a selector; write one such as `{metric}{{name:page}}`")
        if key not in _TAGS.get(metric, ()):
            known = ", ".join(f"`{tag}`" for tag in _TAGS.get(metric, ())) or "none"
            raise ValueError(f"`{metric}` cannot be filtered by the tag `{key}`; its tags are: {known}")
        if key == "expected_response" and value not in {"true", "false"}:
            raise ValueError(f"`expected_response` is `true` or `false`, not `{value}`")
        tags[key] = value
    return tags


def read_objectives(path: Path | None = None, default: Path = slo.FILE) -> list[Threshold]:
    """Return the thresholds that follow from the service level objectives.

    Only the default file may be missing: then there are none. A file that cannot be read or is invalid raises a
    `ValueError` that names the file in a message of one line.
    """
    if path is None and not default.exists():
        return []
    try:
        promises = slo.read_promises(path or default)
    except ValueError as error:
        raise ValueError("; ".join(str(error).splitlines())) from None
    availability, latency = promises.availability, promises.latency
    # In decimal arithmetic, so that 1 - 0.999 is exactly 0.001.
    failures, share, limit = (
        1 - Decimal(str(availability.objective)),
        100 * Decimal(str(latency.objective)),
        1000 * Decimal(str(latency.threshold_seconds)),
    )
    return [
        parse_threshold("http_req_failed", f"rate<={_write_number(failures)}"),
        parse_threshold("http_req_duration", f"p({_write_number(share)})<{_write_number(limit)}"),
    ]


def _write_number(value: Decimal) -> str:
    """Write a number as short as possible, without an exponent, which thresholds do not support."""
    return f"{value.normalize():f}"


def complete(chosen: Iterable[Threshold], defaults: Iterable[Threshold]) -> list[Threshold]:
    """Return the chosen thresholds, and the defaults for metrics without a chosen one."""
    chosen = list(chosen)
    named = {threshold.metric for threshold in chosen if not threshold.tags}
    return [*chosen, *(threshold for threshold in defaults if threshold.metric not in named)]


def evaluate(thresholds: Iterable[Threshold], recorder: Recorder) -> list[Outcome]:
    """Compare the thresholds with the measurements; a threshold without measurements fails."""
    outcomes = []
    for threshold in thresholds:
        metric = recorder.metric(threshold.metric, threshold.tags)
        if not metric.count and AGGREGATES[threshold.metric] is not _COUNTER:
            outcomes.append(Outcome(threshold, None, ok=False))
            continue
        measured = metric.aggregate(threshold.aggregate)
        outcomes.append(Outcome(threshold, measured, threshold.compare(measured, threshold.limit)))
    return outcomes
