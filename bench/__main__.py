"""Measures speed relative to bare Hypercorn, the CPU time of a request, the time to start, and the memory."""

import argparse
import compileall
import contextlib
import itertools
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import goals
from bench import databases, report, wrk
from bench.report import Comparison, Figures, Machine, Memory, Pair, Run
from bench.servers import Server, Servers
from bench.wrk import MeasurementError
from goals import embedded
from goals.errors import ConfigurationError

OUT = Path("out/bench.json")
STARTS = 5
"""How many times the service is started to measure the time to its first response."""
MEMORY_CHECKPOINTS = (10_000, 100_000)
"""The numbers of requests after which its memory is measured."""
MOST_RUNS = 100
"""The maximum of runs to get there."""
TRIES = 3
"""How often a run is tried before giving up: on a busy machine, one fails now and then."""


class Target(NamedTuple):
    """A request and the server that it goes to."""

    name: str
    server: Server
    path: str
    post: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the figures; return 1 if something cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=_positive, default=7, help="paired rounds (7)")
    parser.add_argument("--seconds", type=_positive, default=2, help="seconds for each run of wrk (2)")
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="Python of the servers (default: this interpreter)"
    )
    chosen = parser.parse_args(arguments)
    try:
        figures = measure(Servers(chosen.python.absolute()), chosen.rounds, chosen.seconds)
        OUT.parent.mkdir(exist_ok=True)
        report.save(figures, OUT)
        OUT.with_suffix(".html").write_text(report.write_html(figures), encoding="utf-8")
    except (MeasurementError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # a shell's exit code after Ctrl-C
    print(f"{report.draw(figures)}\n\nreport: {OUT.with_suffix('.html')}")
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def measure(servers: Servers, rounds: int, seconds: int) -> Figures:
    """Measure everything; raise a `MeasurementError` if something cannot be measured."""
    program = wrk.find()
    machine = _machine()
    if machine.load > machine.processors / 2:
        _say(f"the machine is busy (load {machine.load:.1f}): rates will be unreliable, and ratios somewhat less so")
    compileall.compile_dir(Path(goals.__file__).parent, quiet=1)
    with contextlib.ExitStack() as running:
        _say("starting PostgreSQL and filling its databases")
        socket = running.enter_context(databases.run())
        _say(f"starting the service {STARTS} times")
        starts = list(_start_times(servers, socket))
        bare = Target(report.HYPERCORN, running.enter_context(servers.bare("hypercorn")), "/")
        ours = running.enter_context(servers.bare("server"))
        reads = [
            (size, running.enter_context(servers.service(socket, databases.name(size)))) for size in databases.SIZES
        ]
        writes = running.enter_context(servers.service(socket, databases.WRITES))
        _, smallest = reads[0]
        targets = [
            Target(report.SERVER, ours, "/"),
            Target(report.HEALTH, smallest, "/health"),
            *(Target(report.page_of(size), server, "/") for size, server in reads),
            *(Target(report.list_of(size), server, "/api/v1/goals") for size, server in reads),
            Target(report.POST, writes, "/add_goal", post=True),
        ]
        page = targets[2]
        _say("warming up")
        for target in {target.server: target for target in (bare, *targets)}.values():
            _run(program, target, 1)  # the first responses of a process are slower
        early, late = MEMORY_CHECKPOINTS
        requests = _ask_until(program, page, 0, early)
        memory = [Memory(requests=requests, rss=smallest.rss())]
        pairs: dict[str, list[Pair]] = {target.name: [] for target in targets}
        steps = list(itertools.product(range(1, rounds + 1), targets))
        for step, (number, target) in enumerate(steps):
            left = (len(steps) - step) * 2 * (seconds + 0.1)
            _say(f"round {number} of {rounds}, {left:.0f} s left: {target.name}")
            pair = Pair(bare=_run(program, bare, seconds), service=_run(program, target, seconds))
            pairs[target.name].append(pair)
            requests += pair.service.requests if target.server is smallest else 0
        requests = _ask_until(program, page, requests, late)
        memory.append(Memory(requests=requests, rss=smallest.rss()))
    return Figures(
        machine=machine,
        rounds=rounds,
        seconds=seconds,
        connections=wrk.CONNECTIONS,
        comparisons=[Comparison(name=name, pairs=of_name) for name, of_name in pairs.items()],
        seconds_to_first_answer=starts,
        memory=memory,
    )


def _ask_until(program: str, target: Target, asked: int, wanted: int) -> int:
    for _ in range(MOST_RUNS):
        if asked >= wanted:
            return asked
        _say(f"memory: after {asked:,} of {wanted:,} requests")
        asked += _run(program, target, 2).requests
    raise MeasurementError(f"{target.name} takes too long: {asked:,} requests after {MOST_RUNS} runs")


def _start_times(servers: Servers, socket: Path) -> Iterator[float]:
    for _ in range(STARTS):
        with servers.service(socket, databases.name(databases.SIZES[0])) as server:
            yield server.seconds_to_first_answer


def _run(program: str, target: Target, seconds: int) -> Run:
    for _ in range(TRIES - 1):
        try:
            return _run_once(program, target, seconds)
        except MeasurementError as error:
            _say(f"retrying: {error}")
    return _run_once(program, target, seconds)


def _run_once(program: str, target: Target, seconds: int) -> Run:
    target.server.forget_output()
    cpu = target.server.cpu()
    seen = wrk.run(program, target.server.url + target.path, seconds, post=target.post)
    return Run(cpu_seconds=target.server.cpu() - cpu, **seen._asdict())


def _machine() -> Machine:
    return Machine(
        processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        load=os.getloadavg()[0],
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        hypercorn=version("hypercorn"),
        postgresql=embedded.VERSION,
    )


def _say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Exit as after an error, so that the servers are stopped and their data removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
