"""The figures of a benchmark: their file, their tables, and their limits."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from loadtest.charts import draw_bars
from loadtest.pages import write_banner, write_charts, write_figures, write_markdown, write_page, write_table

HYPERCORN = "bare Hypercorn, as released"
SERVER = "the same application on our server"
HEALTH = "GET /health"
POST = "POST /add_goal"
_HEADS = ["request", "requests/s", "rate vs. bare", "CPU µs/request", "CPU vs. bare", "p50 ms", "p99 ms"]


def page_of(size: int) -> str:
    """Return the name of the request for the page of a table with `size` goals."""
    return f"GET / with {size:,} rows"


def list_of(size: int) -> str:
    """Return the name of the request for the API's list of a table with `size` goals."""
    return f"GET /api/v1/goals with {size:,} rows"


class Run(BaseModel):
    """One run of wrk against one server; all times in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def cost(self) -> float:
        """Seconds of the server's CPU time per request."""
        return self.cpu_seconds / self.requests


class Pair(BaseModel):
    """A run of bare Hypercorn, and a run of the service right after it."""

    bare: Run
    service: Run


class Comparison(BaseModel):
    """A request and all its rounds."""

    name: str
    pairs: list[Pair]

    def over_pairs(self, figure: Callable[[Pair], float]) -> list[float]:
        return [figure(pair) for pair in self.pairs]


class Memory(BaseModel):
    """Bytes of memory that the service uses after a number of requests."""

    requests: int
    rss: int


class Machine(BaseModel):
    """The machine and the versions of the measurement."""

    processors: int
    load: float
    system: str
    python: str
    hypercorn: str
    postgresql: str


class Figures(BaseModel):
    """All results of a benchmark."""

    machine: Machine
    rounds: int
    seconds: int
    connections: int
    comparisons: list[Comparison]
    seconds_to_first_answer: list[float]
    memory: list[Memory]

    def of(self, name: str) -> Comparison:
        return next(comparison for comparison in self.comparisons if comparison.name == name)


def save(figures: Figures, file: Path) -> None:
    file.write_text(figures.model_dump_json(indent=1) + "\n", encoding="utf-8")


def draw(figures: Figures) -> str:
    """Return the tables in Markdown: medians, with the minimum and maximum of all rounds in brackets."""
    promises = [[one.what, one.limit, one.measured, "yes" if one.holds else "**no**"] for one in _promises(figures)]
    rates = write_markdown(_HEADS, list(_rows(figures)))
    return "\n".join(
        [_conditions(figures), "", *rates, "", *write_markdown(["figure", "limit", "measured", "met"], promises)]
    )


def write_html(figures: Figures) -> str:
    """Return the same tables as one self-contained page."""
    promises = list(_promises(figures))
    missed = [f"{one.what}: {one.measured}, must be {one.limit}" for one in promises if not one.holds]
    page = figures.of(page_of(10))
    runs = {HYPERCORN: [pair.bare for one in figures.comparisons for pair in one.pairs]}
    runs |= {one.name: [pair.service for pair in one.pairs] for one in figures.comparisons}
    rates = {name: statistics.median(run.rate for run in of_name) for name, of_name in runs.items()}
    shown = [
        (page.name, f"{rates[page.name]:,.0f}", "requests/s"),
        ("CPU per request", f"{statistics.median(pair.service.cost for pair in page.pairs) * 1e6:,.0f} µs", ""),
        ("Compared with bare Hypercorn", f"{statistics.median(page.over_pairs(_relative_cost)):.2f}", "times its CPU"),
        ("Start to first response", f"{statistics.median(figures.seconds_to_first_answer):.2f} s", ""),
        ("Memory", f"{figures.memory[-1].rss / 1e6:.0f} MB", f"after {figures.memory[-1].requests:,} requests"),
    ]
    bars = [(name, rate, f"{rate:,.0f}") for name, rate in rates.items()]
    rows = [[one.what, one.measured, one.limit, "pass" if one.holds else "FAIL"] for one in promises]
    outcome = f"{len(missed)} of {len(promises)} limits missed" if missed else "within its limits"
    body = [
        write_banner("Benchmark", outcome, "bad" if missed else "good", reasons=missed, about=_conditions(figures)),
        write_figures(shown),
        write_table("Limits", ["Figure", "Measured", "Limit", "Result"], rows),
        write_charts([draw_bars("Requests/s", bars, across="longer is better")]),
        write_table("All requests", _HEADS, list(_rows(figures))),
    ]
    return write_page(f"Benchmark: {outcome}", "\n".join(body))


def _conditions(figures: Figures) -> str:
    machine = figures.machine
    return (
        f"The machine ran {machine.system} on {machine.processors} processors, shared by the client, the service and "
        f"the database. Its load average before the run was {machine.load:.1f}. "
        f"The versions were Python {machine.python}, Hypercorn {machine.hypercorn} and PostgreSQL "
        f"{machine.postgresql}. wrk used {figures.connections} connections and ran each kind of request "
        f"for {figures.seconds} s in each of {figures.rounds} rounds. "
        "The figures are medians, with the minimum and maximum in brackets. "
        "Each run is compared with a run of bare Hypercorn immediately before it."
    )


def _rows(figures: Figures) -> Iterable[list[str]]:
    bare = [pair.bare for comparison in figures.comparisons for pair in comparison.pairs]
    yield _row(HYPERCORN, bare, "1", "1")
    for comparison in figures.comparisons:
        rates = comparison.over_pairs(_relative_rate)
        costs = comparison.over_pairs(_relative_cost)
        yield _row(
            comparison.name, [pair.service for pair in comparison.pairs], _spread(rates, ".2f"), _spread(costs, ".2f")
        )


def _row(name: str, runs: list[Run], of_bare: str, times_bare: str) -> list[str]:
    return [
        name,
        _spread([run.rate for run in runs], ",.0f"),
        of_bare,
        _spread([run.cost * 1e6 for run in runs], ".0f"),
        times_bare,
        format(statistics.median(run.p50 for run in runs) * 1e3, ".1f"),
        format(statistics.median(run.p99 for run in runs) * 1e3, ".1f"),
    ]


class Promise(NamedTuple):
    """A figure of all rounds, and the limit for its median."""

    what: str
    comparison: str
    bound: float
    figures: list[float]
    form: str

    @property
    def measured(self) -> str:
        return _spread(self.figures, self.form)

    @property
    def limit(self) -> str:
        return f"{self.comparison} {self.bound:g}"

    @property
    def holds(self) -> bool:
        median = statistics.median(self.figures)
        return median >= self.bound if self.comparison == "≥" else median <= self.bound


def _promises(figures: Figures) -> Iterable[Promise]:
    thousand, million = figures.of(page_of(1_000)), figures.of(page_of(1_000_000))
    flat = [big.service.rate / small.service.rate for small, big in zip(thousand.pairs, million.pairs, strict=True)]
    early, late = figures.memory
    server, page, post = figures.of(SERVER), figures.of(page_of(10)), figures.of(POST)
    yield Promise("rate of our server vs. bare", "≥", 1.3, server.over_pairs(_relative_rate), ".2f")
    yield Promise("CPU of `GET /` with 10 rows vs. bare", "≤", 1.55, page.over_pairs(_relative_cost), ".2f")
    yield Promise("rate of `GET /` with 1,000,000 rows vs. 1,000 rows", "≥", 0.85, flat, ".2f")
    yield Promise("rate of `POST /add_goal` vs. bare", "≥", 0.45, post.over_pairs(_relative_rate), ".2f")
    yield Promise(
        "time from process start to the first 200 of `GET /`, s", "≤", 0.8, figures.seconds_to_first_answer, ".2f"
    )
    yield Promise(f"RSS after {early.requests:,} requests, MB", "≤", 100, [early.rss / 1e6], ".1f")
    yield Promise(
        f"RSS after {late.requests:,} requests vs. after {early.requests:,}", "≤", 1.05, [late.rss / early.rss], ".3f"
    )


def _spread(figures: list[float], form: str) -> str:
    median = format(statistics.median(figures), form)
    return median if len(figures) == 1 else f"{median} [{min(figures):{form}}-{max(figures):{form}}]"


def _relative_rate(pair: Pair) -> float:
    return pair.service.rate / pair.bare.rate


def _relative_cost(pair: Pair) -> float:
    return pair.service.cost / pair.bare.cost
