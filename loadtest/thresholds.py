"""The verdict: thresholds in k6's grammar, the service level objectives as their defaults, and the exit code."""

import operator
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any

from loadtest.recorder import Recorder

PASSED, ERROR, USAGE, FAILED = 0, 1, 2, 99
"""Exit codes; 99 is k6's for thresholds that were crossed (its errext/exitcodes)."""

SLO_FILE = Path(__file__).resolve().parent.parent / "observability" / "slo.toml"

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
_METRIC = re.compile(r"(\w+)(?:\{(name|check):([^{}]+)\})?", re.ASCII)

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
"""The metrics that thresholds may name, with the aggregates that each of them has."""
_TAGS = {"http_req_duration": "name", "http_req_failed": "name", "http_reqs": "name", "checks": "check"}


@dataclass(frozen=True)
class Threshold:
    """One condition on one metric; times are in milliseconds."""

    metric: str
    tag: str | None
    expression: str
    aggregate: str
    compare: Callable[[float, float], bool]
    limit: float
    abort_on_fail: bool = False
    delay_abort: float = 0.0

    @property
    def selector(self) -> str:
        return self.metric if self.tag is None else f"{self.metric}{{{_TAGS[self.metric]}:{self.tag}}}"


@dataclass(frozen=True)
class Outcome:
    """A threshold, what was measured (`None` where nothing was) and whether it holds."""

    threshold: Threshold
    measured: float | None
    ok: bool


def parse_threshold(selector: str, expression: str, *, abort: bool = False, delay: float = 0.0) -> Threshold:
    """Read a selector such as `http_req_duration{name:page}` and an expression such as `p(95)<250`.

    Raises a `ValueError` that says what is wrong with them.
    """
    metric = _METRIC.fullmatch(selector)
    if not metric or metric[1] not in AGGREGATES:
        raise ValueError(f"there is no metric `{selector}`; there are {', '.join(AGGREGATES)}")
    name, label, tag = metric.groups()
    if label and _TAGS.get(name) != label:
        raise ValueError(f"`{name}` cannot be narrowed by `{label}`")
    parsed = _EXPRESSION.fullmatch(expression.strip())
    if not parsed:
        raise ValueError(f"`{expression}` is no threshold; write one such as `p(95)<250` or `rate>0.999`")
    aggregate = parsed[1]
    if re.sub(r"\(.*\)", "(N)", aggregate) not in AGGREGATES[name]:
        raise ValueError(f"`{name}` has no `{aggregate}`; it has {', '.join(AGGREGATES[name])}")
    if aggregate.startswith("p(") and float(aggregate[2:-1]) > 100:  # noqa: PLR2004  per cent
        raise ValueError(f"`{aggregate}` is beyond 100 %")
    return Threshold(name, tag, expression, aggregate, _COMPARISONS[parsed[2]], float(parsed[3]), abort, delay)


def read_objectives(path: Path | None = None, default: Path = SLO_FILE) -> list[Threshold]:
    """The thresholds that the service level objectives make.

    Only the default file may be absent: then there are none. Raises a `ValueError`, whose message is one line that
    names the file, for one that cannot be read or has not what it should.
    """
    if path is None and not default.exists():
        return []
    path = path or default
    try:
        slo = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        failures = 1 - _read_number(slo, "availability", "objective", 1)
        share = _read_number(slo, "latency", "objective", 1)
        limit = _read_number(slo, "latency", "threshold_seconds", inf)
    except OSError as error:
        raise ValueError(f"the objectives in {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return [
        parse_threshold("http_req_failed", f"rate<={_write_number(failures)}"),
        parse_threshold("http_req_duration", f"p({_write_number(100 * share)})<{_write_number(1000 * limit)}"),
    ]


def _read_number(slo: dict[str, Any], table: str, key: str, below: float) -> Decimal:
    content = slo.get(table)
    value = content.get(key) if isinstance(content, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        bounds = "a number above 0" if below == inf else f"a number between 0 and {below}"
        raise ValueError(f"`[{table}] {key}` must be {bounds}, and is {'missing' if value is None else repr(value)}")
    return Decimal(str(value))  # as it is written: 1 - 0.999 shall be 0.001


def _write_number(value: Decimal) -> str:
    """The shortest way to write a number without an exponent, which a threshold's grammar has not."""
    return f"{value.normalize():f}"


def complete(chosen: Iterable[Threshold], defaults: Iterable[Threshold]) -> list[Threshold]:
    """The chosen thresholds, and the defaults for those metrics that no chosen one is about."""
    chosen = list(chosen)
    named = {threshold.metric for threshold in chosen if threshold.tag is None}
    return [*chosen, *(threshold for threshold in defaults if threshold.metric not in named)]


def evaluate(thresholds: Iterable[Threshold], recorder: Recorder) -> list[Outcome]:
    """Hold the thresholds against what was measured; one about which nothing was measured fails."""
    outcomes = []
    for threshold in thresholds:
        metric = recorder.metric(threshold.metric, threshold.tag)
        if not metric.count and AGGREGATES[threshold.metric] is not _COUNTER:
            outcomes.append(Outcome(threshold, None, ok=False))
            continue
        measured = metric.aggregate(threshold.aggregate)
        outcomes.append(Outcome(threshold, measured, threshold.compare(measured, threshold.limit)))
    return outcomes
