"""Runs the drills: `python -m drills [NAME...] [--short] [--seed N] [--promotion PACE]`."""

import argparse
import asyncio
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import get_args

import httpx2

from drills import report
from drills.catalogue import DRILLS
from drills.cluster import DrillError
from drills.drill import Drill, Promotion

_ENDS = (signal.SIGTERM, signal.SIGHUP)
PASSED, FAILED, NOT_RUN, ENDED_EARLY = 0, 1, 2, 130


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m drills", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"drills to run: {', '.join(DRILLS)} (default: all)")
    parser.add_argument("--short", action="store_true", help="run the short form")
    parser.add_argument("--seed", type=int, help="seed for the times of the faults (default: random)")
    parser.add_argument(
        "--promotion",
        choices=get_args(Promotion),
        default="cnpg",
        help="how fast the primary changes in failover and grey: as with CloudNativePG, or immediately",
    )
    parser.add_argument("--out", type=Path, default=Path("out/drills"), help="folder for the reports")
    parser.add_argument(
        "--again",
        action="store_true",
        help="repeat a drill once if only timing checks failed, a wait was too long, or a control showed "
        "no damage, but never after a failed safety check; both attempts leave a report",
    )
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in DRILLS]
    if unknown:
        parser.error(f"there is no drill `{unknown[0]}`; the drills are {', '.join(DRILLS)}")
    # A drill that is ended early, by Ctrl-C, a time limit or a closed terminal, cleans up. Shells start background
    # processes with SIGINT ignored, and nohup with SIGHUP ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _ENDS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end_early)
    try:
        return _run_all(options)
    except KeyboardInterrupt:
        sys.stderr.write("error: ended early, without a result; all the drills' processes have been stopped\n")
        return ENDED_EARLY


def _end_early(_number: int, _frame: object) -> None:
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)  # a second signal would disturb the cleanup
    signal.raise_signal(signal.SIGINT)


def _run_all(options: argparse.Namespace) -> int:
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    drills = [
        Drill(name, short=options.short, seed=seed, promotion=options.promotion) for name in options.names or DRILLS
    ]
    # One after the other: when two drills shared two cores, requests failed for lack of CPU.
    results = {drill: asyncio.run(_run(drill, options.out)) for drill in drills}
    if options.again:
        failed = [drill for drill, result in results.items() if result == FAILED or drill.is_late]
        for first in (drill for drill in failed if drill.may_be_tried_again):
            sys.stdout.write(f"{first.name}: a second attempt, because a busy machine may explain the first failure\n")
            report.keep_files(first, options.out)
            second = Drill(first.name, short=first.short, seed=seed, promotion=first.promotion)
            second.first_attempt = first
            del results[first]
            results[second] = asyncio.run(_run(second, options.out))
    if len(drills) > 1:
        reports = [report.summarize(drill) for drill, result in results.items() if result != NOT_RUN]
        if reports:
            (options.out / "drills.md").write_text(report.write_tables(reports), encoding="utf-8")
        sys.stdout.write(report.write_total(sorted(results, key=lambda drill: list(DRILLS).index(drill.name))))
        sys.stdout.write(f"reports: {options.out}/\n")
    return max(results.values())


async def _run(drill: Drill, folder: Path) -> int:
    drill.started = time.time()
    report.remove_files(drill, folder)  # an earlier run's reports must not be mistaken for this one's
    about = (sys.modules[DRILLS[drill.name].__module__].__doc__ or "").partition("\n")[0]
    sys.stdout.write(f"{drill.name}: {about} Starting PostgreSQL and the service (seed {drill.seed}) …\n")
    sys.stdout.flush()
    try:
        await DRILLS[drill.name](drill)
    except (DrillError, TimeoutError, httpx2.TimeoutException) as error:
        why = str(error) or "a response did not arrive in time"
        sys.stderr.write(f"error: the drill `{drill.name}` could not be run: {why}\n")
        drill.is_late = not isinstance(error, DrillError)
        drill.broken_off = why
        report.write_files(drill, folder)
        sys.stdout.write(f"report: {folder / drill.name}.html\n")
        return NOT_RUN
    drill.seconds = time.time() - drill.started
    report.write_files(drill, folder)
    sys.stdout.write(f"{report.write_text(drill)}report: {folder / drill.name}.html\n")
    sys.stdout.flush()
    return NOT_RUN if not drill.held else PASSED if drill.passed else FAILED


sys.exit(main())
