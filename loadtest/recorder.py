"""The measurements of a run: histograms, checks and counts, cheap to record, exact to merge across processes."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, exp, inf, log
from types import MappingProxyType
from typing import Any, NamedTuple

GROWTH = 1.02
"""Each bucket of a histogram is 2 % wider than the previous one, so values are accurate to 1 % at any scale."""
SHORTEST = 1e-6
"""Upper bound of the first bucket in seconds."""
_SCALE = 1 / log(GROWTH)
_SHIFT = ceil(-log(SHORTEST) * _SCALE)  # keeps bucket numbers positive

SLOTS = 600
"""Maximum points of the timeline; in a longer run, pairs of points are joined, so that memory stays bounded."""


class Trend:
    """A distribution of seconds."""

    __slots__ = ("count", "counts", "max", "min", "sum")

    def __init__(self) -> None:
        self.counts: dict[int, int] = defaultdict(int)
        self.count = 0
        self.sum = 0.0
        self.min = inf
        self.max = 0.0

    def add(self, seconds: float) -> None:
        self.counts[int(log(seconds) * _SCALE + _SHIFT) if seconds > SHORTEST else 0] += 1
        self.count += 1
        self.sum += seconds
        # Comparisons, because this runs for every request, and `min` and `max` cost several times as much.
        if seconds > self.max:  # noqa: PLR1730  see above
            self.max = seconds
        if seconds < self.min:  # noqa: PLR1730  see above
            self.min = seconds

    def merge(self, other: "Trend") -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] += count
        self.count += other.count
        self.sum += other.sum
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)

    def percentile(self, percent: float) -> float:
        """Return the value in seconds that `percent` % of all values do not exceed (nearest rank)."""
        rank = max(ceil(self.count * percent / 100), 1)
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank <= 0:
                return min(max(middle(bucket), self.min), self.max)
        return 0.0

    def aggregate(self, name: str) -> float:
        """Return `avg`, `min`, `med`, `max`, `count` or `p(N)`; times are in milliseconds, as in k6."""
        match name:
            case "count":
                return self.count
            case "avg":
                return 1000 * self.sum / self.count if self.count else 0.0
            case "min":
                return 1000 * self.min if self.count else 0.0
            case "max":
                return 1000 * self.max
            case "med":
                return 1000 * self.percentile(50)
        return 1000 * self.percentile(float(name[2:-1]))

    def dump(self) -> list[Any]:
        return [dict(self.counts), self.count, self.sum, self.min if self.count else None, self.max]

    @classmethod
    def load(cls, dumped: list[Any]) -> "Trend":
        trend = cls()
        trend.counts.update(dumped[0])
        _, trend.count, trend.sum, minimum, trend.max = dumped
        trend.min = inf if minimum is None else minimum
        return trend


def middle(bucket: int) -> float:
    """Return the value in seconds that represents a histogram's bucket."""
    return exp((bucket - _SHIFT + 0.5) / _SCALE)


@dataclass
class Rate:
    """How often something was true or false."""

    passes: int = 0
    fails: int = 0

    @property
    def count(self) -> int:
        return self.passes + self.fails

    def aggregate(self, name: str) -> float:  # noqa: ARG002  a rate has one aggregate, `rate`
        return self.passes / self.count if self.count else 0.0


@dataclass
class Counter:
    """A count, and its rate per second of the run."""

    count: int
    seconds: float

    def aggregate(self, name: str) -> float:
        if name == "count":
            return self.count
        return self.count / self.seconds if self.seconds else 0.0


Metric = Trend | Rate | Counter


def join(trends: Iterable[Trend]) -> Trend:
    whole = Trend()
    for trend in trends:
        whole.merge(trend)
    return whole


class Series:
    """The requests of one name and method: those since the last flush, and the trends of all earlier ones.

    Expected and failed requests are separate, as with k6's tag `expected_response`.
    """

    __slots__ = (
        "expected",
        "failed",
        "fresh",
        "fresh_bytes",
        "fresh_errors",
        "fresh_failed",
        "is_foreign",
        "method",
        "name",
        "received",
    )

    def __init__(self, name: str, method: str) -> None:
        self.name = name
        self.method = method
        self.is_foreign = False
        """Whether Locust's own statistics already include these requests."""
        self.fresh = Trend()
        self.fresh_failed = Trend()
        self.fresh_errors: dict[str, int] = defaultdict(int)
        self.fresh_bytes = 0
        """Bytes of response bodies, which Locust calls a request's size."""
        self.received = 0
        self.expected = Trend()
        self.failed = Trend()

    def add(self, seconds: float, failure: str | None, size: int) -> None:
        self.fresh_bytes += size
        if failure is None:
            self.fresh.add(seconds)
        else:
            self.fresh_failed.add(seconds)
            self.fresh_errors[failure] += 1

    @property
    def trend(self) -> Trend:
        return join((self.expected, self.failed))


class Fresh(NamedTuple):
    """The requests of a series since the last flush."""

    series: Series
    trend: Trend
    failed: int
    errors: dict[str, int]
    size: int


@dataclass
class Slot:
    """One point of the timeline."""

    trend: Trend = field(default_factory=Trend)
    failed: int = 0
    user_seconds: float = 0.0

    def merge(self, other: "Slot") -> None:
        self.trend.merge(other.trend)
        self.failed += other.failed
        self.user_seconds += other.user_seconds


class Recorder:
    """All measurements of one process, or, once merged, of all processes.

    Active users are counted as an integral over time (user-seconds), so that Little's law can be checked: the seconds
    that requests took, divided by the seconds that users were active, is 1 if the load generator itself adds no delays.

    Times are from this process's monotonic `perf_counter`; only `date` is a time of day, for display.
    """

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}
        """By name and method."""
        self.checks: dict[str, Rate] = {}
        self.errors: dict[str, int] = defaultdict(int)
        self.service = Trend()
        self.connecting = Trend()
        self.iterations = 0
        self.dropped = 0
        self.interrupted = 0
        self.foreign = 0
        """Requests by clients other than ours, whose connections are not recorded."""
        self.sent_seconds = 0.0
        self.user_seconds = 0.0
        self.vus = 0
        self.vus_max = 0
        self.cpu = 0.0
        """The share of a core that the busiest generator process used in its busiest five seconds."""
        self.busy = 0.0
        """The share that it needed: what it used, and the time that it waited for a core."""
        self.started = inf
        """When the first user started."""
        self.ended = -inf
        """When a user last became active or inactive."""
        self.date: float | None = None
        """When the first user started, in Unix seconds."""
        self.timeline: dict[int, Slot] = {}
        """The requests of each slot, by its first second."""
        self.width = 1
        """Seconds per slot of the timeline."""
        self._vus_max_by_source: dict[str, int] = {}
        self._offsets: dict[str, float] = {}
        """What to add to another process's clock to get this one's."""
        self._at_work = 0
        self._changed = time.perf_counter()
        self._slot_user_seconds = 0.0

    # Filled by the users.

    def add_series(self, name: str, method: str) -> Series:
        return self.series.get((name, method)) or self.series.setdefault((name, method), Series(name, method))

    def add_check(self, name: str) -> Rate:
        return self.checks.get(name) or self.checks.setdefault(name, Rate())

    def adjust_active_users(self, change: int) -> None:
        """Record that a user becomes active (1) or inactive (-1), at the start and end of its iterations and pauses."""
        self._advance()
        self._at_work += change
        if self.date is None:
            self.started, self.date = self._changed, time.time()
        self.ended = self._changed

    def add_connection(self, seconds: float) -> None:
        """Record a new connection; a method, because `drain` replaces the trend."""
        self.connecting.add(seconds)

    def add_users(self, number: int) -> None:
        self.vus += number
        self.vus_max = max(self.vus_max, self.vus)

    def note_usage(self, used: float, wanted: float) -> None:
        self.cpu = max(self.cpu, used)
        self.busy = max(self.busy, wanted)

    def _advance(self) -> None:
        now = time.perf_counter()
        worked = self._at_work * (now - self._changed)
        self.user_seconds += worked
        self._slot_user_seconds += worked
        self._changed = now

    # Read during the run.

    def flush(self) -> Iterator[Fresh]:
        """Move new requests into the trends and the timeline, and yield them for each series that has any."""
        self._advance()
        slot = self._slot(int(self._changed))
        slot.user_seconds += self._slot_user_seconds
        self._slot_user_seconds = 0.0
        for series in self.series.values():
            expected, failed, errors, size = series.fresh, series.fresh_failed, series.fresh_errors, series.fresh_bytes
            if not expected.count and not failed.count:
                continue
            series.fresh, series.fresh_failed, series.fresh_errors, series.fresh_bytes = (
                Trend(),
                Trend(),
                defaultdict(int),
                0,
            )
            series.expected.merge(expected)
            series.failed.merge(failed)
            for error, count in errors.items():
                self.errors[f"{series.name}: {error}"] += count
            fresh = join((expected, failed))
            slot.trend.merge(fresh)
            slot.failed += failed.count
            yield Fresh(series, fresh, failed.count, errors, size)

    def _slot(self, second: int) -> Slot:
        place = second - second % self.width
        if place not in self.timeline and len(self.timeline) == SLOTS:
            self._widen(self.width * 2)
            place = second - second % self.width
        return self.timeline.setdefault(place, Slot())

    def _widen(self, width: int) -> None:
        self.width = width
        old, self.timeline = self.timeline, {}
        for second, slot in old.items():
            self.timeline.setdefault(second - second % width, Slot()).merge(slot)

    def metric(self, name: str, tags: Mapping[str, str] = MappingProxyType({})) -> Metric:
        """Return a metric by its name, k6's or ours, over everything that matches all tags.

        Raises a `KeyError` for an unknown name; with tags that match nothing, the metric is empty.
        """
        if name == "checks":
            checks = [check for key, check in self.checks.items() if tags.get("check", key) == key]
            return Rate(sum(check.passes for check in checks), sum(check.fails for check in checks))
        if name in {"http_req_duration", "http_req_failed", "http_reqs"}:
            return self._requests(name, tags)
        if name in {"http_req_service", "http_req_connecting"}:
            return self.service if name == "http_req_service" else self.connecting
        counts = {
            "iterations": self.iterations,
            "dropped_iterations": self.dropped,
            "interrupted_requests": self.interrupted,
            "connections": self.connecting.count,
            "data_received": sum(series.received for series in self.series.values()),
        }
        return Counter(counts[name], self.seconds)

    def _requests(self, name: str, tags: Mapping[str, str]) -> Metric:
        chosen = [
            series
            for (step, method), series in self.series.items()
            if tags.get("name", step) == step and tags.get("method", method) == method
        ]
        wanted = tags.get("expected_response")
        expected = [series.expected for series in chosen if wanted != "false"]
        failed = [series.failed for series in chosen if wanted != "true"]
        if name == "http_req_duration":
            return join((*expected, *failed))
        passes, fails = sum(trend.count for trend in expected), sum(trend.count for trend in failed)
        return Rate(fails, passes) if name == "http_req_failed" else Counter(passes + fails, self.seconds)

    @property
    def age(self) -> float:
        """Seconds since the first user started; 0 before that."""
        return 0.0 if self.date is None else time.perf_counter() - self.started

    @property
    def seconds(self) -> float:
        """Seconds from the first user's start to the last one's end."""
        return max(self.ended - self.started, 0.0)

    @property
    def littles_law_ratio(self) -> float | None:
        """Seconds of requests divided by seconds of active users; `None` if no user was active."""
        return self.sent_seconds / self.user_seconds if self.user_seconds else None

    # Sent from process to process.

    _SUMS = ("iterations", "dropped", "interrupted", "foreign", "sent_seconds", "user_seconds")

    def drain(self) -> dict[str, Any]:
        """Return the measurements since the last drain as plain data, and reset them. Call `flush` first."""
        report = {
            "series": [
                [series.name, series.method, series.expected.dump(), series.failed.dump(), series.received]
                for series in self.series.values()
            ],
            "checks": {name: [check.passes, check.fails] for name, check in self.checks.items()},
            "errors": dict(self.errors),
            "service": self.service.dump(),
            "connecting": self.connecting.dump(),
            "sums": [getattr(self, name) for name in self._SUMS],
            "vus_max": self.vus_max,
            "usage": [self.cpu, self.busy],
            "span": None if self.date is None else [self.started, self.ended, self.date],
            "now": time.perf_counter(),
            "width": self.width,
            "timeline": [
                [second, slot.trend.dump(), slot.failed, slot.user_seconds] for second, slot in self.timeline.items()
            ],
        }
        for series in self.series.values():
            series.expected, series.failed, series.received = Trend(), Trend(), 0
        for check in self.checks.values():
            check.passes = check.fails = 0
        self.errors.clear()
        self.service, self.connecting = Trend(), Trend()
        for name in self._SUMS:
            setattr(self, name, 0)
        self.timeline.clear()
        return report

    def merge(self, report: dict[str, Any], source: str) -> None:
        """Add the data that another process drained; `source` identifies the process."""
        for name, method, expected, failed, received in report["series"]:
            series = self.add_series(name, method)
            series.expected.merge(Trend.load(expected))
            series.failed.merge(Trend.load(failed))
            series.received += received
        for name, (passes, fails) in report["checks"].items():
            check = self.add_check(name)
            check.passes += passes
            check.fails += fails
        for error, count in report["errors"].items():
            self.errors[error] += count
        self.service.merge(Trend.load(report["service"]))
        self.connecting.merge(Trend.load(report["connecting"]))
        for name, value in zip(self._SUMS, report["sums"], strict=True):
            setattr(self, name, getattr(self, name) + value)
        self._vus_max_by_source[source] = max(self._vus_max_by_source.get(source, 0), report["vus_max"])
        self.vus_max = sum(self._vus_max_by_source.values())
        self.note_usage(*report["usage"])
        # Aligned by age, because times of day differ between machines. The fastest report is the most accurate.
        offset = min(self._offsets.get(source, inf), time.perf_counter() - report["now"])
        self._offsets[source] = offset
        if report["span"]:
            started, ended, date = report["span"]
            self.started, self.ended = min(self.started, started + offset), max(self.ended, ended + offset)
            self.date = date if self.date is None else min(self.date, date)
        if report["width"] > self.width:
            self._widen(report["width"])
        for second, trend, failed, user_seconds in report["timeline"]:
            self._slot(round(second + offset)).merge(Slot(Trend.load(trend), failed, user_seconds))
