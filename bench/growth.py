"""Compares the same requests with a million and with ten million goals, alternating: `make growth`."""

import argparse
import http.client
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from bench import databases
from bench.servers import Servers
from bench.wrk import MeasurementError
from goals.errors import ConfigurationError
from loadtest.pages import write_markdown

SIZES = (1_000_000, 10_000_000)
LIMIT = 1.15
"""Maximum ratio to the time with the smaller table."""
REQUESTS = 40
"""Requests of each kind in each round."""
OUT = Path("out/growth.json")


class Client:
    """One connection to the service on the table with `size` goals."""

    def __init__(self, url: str, size: int) -> None:
        self.size = size
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        self._added: list[int] = []

    def first_page(self) -> None:
        self._ask("GET", "/")

    def middle_page(self) -> None:
        self._ask("GET", f"/?before={self.size // 2}")

    def last_page(self) -> None:
        self._ask("GET", "/?before=51")

    def add(self) -> None:
        body = json.dumps({"goal_name": "Read a book"})
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid4())}
        self._added.append(json.loads(self._ask("POST", "/api/v1/goals", body, headers))["id"])

    def remove(self) -> None:
        self._ask("DELETE", f"/api/v1/goals/{self._added.pop()}")

    def _ask(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> bytes:
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status not in {200, 201, 204}:
            raise MeasurementError(f"{method} {path} got status {answer.status}")
        return content


KINDS: dict[str, Callable[[Client], None]] = {
    "first page": Client.first_page,
    "middle page": Client.middle_page,
    "last page": Client.last_page,
    "add": Client.add,
    "removal": Client.remove,
}
"""In this order, because a removal removes the goal of an add."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the figures; return 1 if one exceeds the limit or cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="paired rounds (15)")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter of the service")
    chosen = parser.parse_args(arguments)
    try:
        measured = measure(Servers(chosen.python.absolute()), chosen.rounds)
    except (MeasurementError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # a shell's exit code after Ctrl-C
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    rows, worst = [], 0.0
    for kind, rounds in measured.items():
        ratios = [large / small for small, large in rounds]
        ratio = statistics.median(ratios)
        worst = max(worst, ratio)
        times = (f"{1000 * statistics.median(column):.2f}" for column in zip(*rounds, strict=True))
        holds = "yes" if ratio <= LIMIT else "**no**"
        rows.append([kind, *times, f"{ratio:.2f} [{min(ratios):.2f}-{max(ratios):.2f}]", holds])
    heads = ["request", *(f"ms with {size:,}" for size in SIZES), f"ratio (at most {LIMIT})", "met"]
    print("\n".join(write_markdown(heads, rows)))
    return 0 if worst <= LIMIT else 1


def measure(servers: Servers, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of a request with the smaller and the larger table, as medians of a round, by kind."""
    measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with ExitStack() as running:
        _say(f"filling tables of {' and '.join(f'{size:,}' for size in SIZES)} goals")
        socket = running.enter_context(databases.run(SIZES))
        clients = [
            Client(running.enter_context(servers.service(socket, databases.name(size))).url, size) for size in SIZES
        ]
        for number in range(rounds + 1):
            _say(f"round {number} of {rounds}" if number else "warming up")
            for kind, ask in KINDS.items():
                taken: list[list[float]] = [[] for _ in clients]
                # Alternating, so that other work on the machine affects both equally.
                for _, (client, seconds) in itertools.product(range(REQUESTS), zip(clients, taken, strict=True)):
                    began = time.perf_counter()
                    ask(client)
                    seconds.append(time.perf_counter() - began)
                if number:
                    small, large = map(statistics.median, taken)
                    measured[kind].append((small, large))
    return measured


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
