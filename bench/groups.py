"""Measures the cost of several concurrent statements with adds: `make groups`.

`python -m bench.groups serve NUMBER` works like `python -m goals serve`, with that many concurrent statements. No
setting allows this.
"""

import asyncio
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench import databases, wrk
from bench.servers import Server, Servers
from bench.wrk import MeasurementError
from goals import app, logs
from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.settings import read_settings
from loadtest.pages import write_markdown

NUMBERS = (1, 2, 4, 10, 1000)
"""With the last one, each add has its own statement."""
ROUNDS = 5
SECONDS = 2


def main(arguments: Sequence[str]) -> int:
    """Print the median rate and cost of adds for each number; return 1 if they cannot be measured."""
    if arguments:
        _, number = arguments
        settings = read_settings()
        logs.configure(settings.goals_log_format)
        asyncio.run(app.serve(settings, replace(Limits(), groups=int(number))))
        return 0
    try:
        rows = measure(Servers(Path(sys.executable)))
    except (MeasurementError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # a shell's exit code after Ctrl-C
    columns = ["concurrent statements", "adds/s relative to bare Hypercorn", "CPU µs/add", "p99 ms"]
    print("\n".join(write_markdown(columns, rows)))
    return 0


def measure(servers: Servers) -> list[list[str]]:
    """Return the rows of the table; each round measures every number, compared with the bare server."""
    program = wrk.find()
    with ExitStack() as running:
        socket = running.enter_context(databases.run(()))
        bare = running.enter_context(servers.bare("hypercorn"))
        serving: dict[int, Server] = {
            number: running.enter_context(
                servers.service(socket, databases.WRITES, module=("bench.groups", "serve", str(number)))
            )
            for number in NUMBERS
        }
        seen: dict[int, list[tuple[float, float, float]]] = {number: [] for number in NUMBERS}
        for turn in range(ROUNDS + 1):
            print(f"round {turn} of {ROUNDS}" if turn else "warming up", file=sys.stderr, flush=True)
            for number, server in serving.items():
                rate = wrk.run(program, f"{bare.url}/", SECONDS).rate
                before = server.cpu()
                run = wrk.run(program, f"{server.url}/add_goal", SECONDS, post=True)
                if turn:
                    seen[number].append((run.rate / rate, (server.cpu() - before) / run.requests * 1e6, run.p99 * 1e3))
    rows = []
    for number, figures in seen.items():
        rate, cpu, p99 = (statistics.median(column) for column in zip(*figures, strict=True))
        rows.append([f"{number:,}", f"{rate:.2f}", f"{cpu:.0f}", f"{p99:.0f}"])
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
