"""The command that holds the drills: `python -m tests.drills [NAME...] [--short] [--seed N]`."""

import argparse
import asyncio
import secrets
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from tests.drills import failover, grey, overload, report, rollout
from tests.drills.cluster import DrillError
from tests.drills.drill import Drill

DRILLS: dict[str, Callable[[Drill], Coroutine[None, None, None]]] = {
    "failover": failover.run,
    "grey": grey.run,
    "rollout": rollout.run,
    "overload": overload.run,
}
"""All drills there are, in the order in which they are held. A new one is one line here."""

PASSED, FAILED, NOT_HELD = 0, 1, 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which drills: {', '.join(DRILLS)}; none means all")
    parser.add_argument("--short", action="store_true", help="a form of each that takes seconds")
    parser.add_argument("--seed", type=int, help="of the moments at which faults happen; else another one every time")
    parser.add_argument("--out", type=Path, default=Path("out/drills"), help="folder of the reports")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in DRILLS]
    if unknown:
        parser.error(f"there is no drill `{unknown[0]}`; there are {', '.join(DRILLS)}")
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    worst = PASSED
    for name in options.names or DRILLS:
        drill = Drill(name, short=options.short, seed=seed)
        try:
            asyncio.run(DRILLS[name](drill))
        except DrillError as error:
            sys.stderr.write(f"error: the drill `{name}` could not be held: {error}\n")
            worst = NOT_HELD
            continue
        drill.seconds = time.time() - drill.started
        sys.stdout.write(report.write_text(drill))
        report.write_files(drill, options.out)
        if not drill.passed:
            worst = max(worst, FAILED)
    return worst


sys.exit(main())
