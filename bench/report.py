"""The figures of a benchmark: their file, their table, and what they are meant to be."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel

from loadtest.pages import write_markdown

HYPERCORN = "bare Hypercorn, as released"
SERVER = "the same application in our server"
HEALTH = "GET /health"
POST = "POST /add_goal"


def page_of(size: int) -> str:
    """Name the page of a table with `size` goals."""
    return f"GET / of {size:,}"


def list_of(size: int) -> str:
    """Name the API's list of a table with `size` goals."""
    return f"GET /api/v1/goals of {size:,}"


class Run(BaseModel):
    """One run of wrk against one server; everything in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cost(self) -> float:
        """Seconds of the server's processor time for one request."""
        return self.cpu_seconds / self.requests


class Pair(BaseModel):
    """Bare Hypercorn and the service, one right after the other."""

    bare: Run
    service: Run


class Comparison(BaseModel):
    """What was asked of the service, and all its rounds."""

    name: str
    pairs: list[Pair]

    def over_pairs(self, figure: Callable[[Pair], float]) -> list[float]:
        return [figure(pair) for pair in self.pairs]


class Memory(BaseModel):
    """Bytes held by the service after a number of requests."""

    requests: int
    rss: int


class Machine(BaseModel):
    """What it was measured on."""

    processors: int
    load: float
    system: str
    python: str
    hypercorn: str
    postgresql: str


class Figures(BaseModel):
    """Everything one benchmark has found."""

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
    """Draw the tables in Markdown: medians, in brackets the least and the most of all rounds."""
    machine = figures.machine
    conditions = (
        f"{machine.system}, {machine.processors} processors for client, service and database, "
        f"load before {machine.load:.1f}; "
        f"Python {machine.python}, Hypercorn {machine.hypercorn}, PostgreSQL {machine.postgresql}; "
        f"{figures.connections} connections, {figures.rounds} rounds of {figures.seconds} s. "
        "Medians, in brackets least and most; each run is compared with one of bare Hypercorn right before it."
    )
    heads = ["request", "requests/s", "of bare", "CPU µs each", "times bare", "p50 ms", "p99 ms"]
    rates, promises = (
        write_markdown(heads, list(_rows(figures))),
        write_markdown(["must hold", "limit", "measured"], list(_promises(figures))),
    )
    return "\n".join([conditions, "", *rates, "", *promises])


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


def _promises(figures: Figures) -> Iterable[list[str]]:
    thousand, million = figures.of(page_of(1_000)), figures.of(page_of(1_000_000))
    flat = [big.service.rate / small.service.rate for small, big in zip(thousand.pairs, million.pairs, strict=True)]
    early, late = figures.memory
    yield _promise("requests/s of our server, of bare", "≥ 1.3", figures.of(SERVER).over_pairs(_relative_rate), ".2f")
    yield _promise(
        "CPU of `GET /` of 10, times bare", "≤ 1.55", figures.of(page_of(10)).over_pairs(_relative_cost), ".2f"
    )
    yield _promise("requests/s of `GET /` of 1,000,000, of those of 1,000", "≥ 0.85", flat, ".2f")
    yield _promise(
        "requests/s of `POST /add_goal`, of bare", "≥ 0.20", figures.of(POST).over_pairs(_relative_rate), ".2f"
    )
    yield _promise("process start to first 200 of `GET /`, s", "≤ 0.8", figures.seconds_to_first_answer, ".2f")
    yield _promise(f"RSS after {early.requests:,} requests, MB", "< 100", [early.rss / 1e6], ".1f")
    yield _promise(f"RSS after {late.requests:,} requests, of that", "≤ 1.05", [late.rss / early.rss], ".3f")


def _promise(what: str, limit: str, figures: list[float], form: str) -> list[str]:
    return [what, limit, _spread(figures, form)]


def _spread(figures: list[float], form: str) -> str:
    median = format(statistics.median(figures), form)
    return median if len(figures) == 1 else f"{median} [{min(figures):{form}}-{max(figures):{form}}]"


def _relative_rate(pair: Pair) -> float:
    return pair.service.rate / pair.bare.rate


def _relative_cost(pair: Pair) -> float:
    return pair.service.cost / pair.bare.cost
