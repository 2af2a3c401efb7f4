"""The command that holds the drills: `python -m tests.drills [NAME...] [--short] [--seed N]`."""

import argparse
import asyncio
import secrets
import sys
import time
from pathlib import Path

from tests.drills import report
from tests.drills.catalogue import ALONE, DRILLS
from tests.drills.cluster import DrillError
from tests.drills.drill import Drill

AT_ONCE = 3
"""How many short drills are held side by side: more would only measure how two cores are shared."""
PASSED, FAILED, NOT_HELD = 0, 1, 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which drills: {', '.join(DRILLS)}; none means all")
    parser.add_argument("--short", action="store_true", help="a form that takes seconds, most drills side by side")
    parser.add_argument("--seed", type=int, help="of the moments at which faults happen; else another one every time")
    parser.add_argument("--out", type=Path, default=Path("out/drills"), help="folder of the reports")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in DRILLS]
    if unknown:
        parser.error(f"there is no drill `{unknown[0]}`; there are {', '.join(DRILLS)}")
    names = options.names or list(DRILLS)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    drills = [Drill(name, short=options.short, seed=seed) for name in names]
    together = [drill for drill in drills if options.short and drill.name not in ALONE]
    groups = [together[first : first + AT_ONCE] for first in range(0, len(together), AT_ONCE)]
    groups += [[drill] for drill in drills if drill not in together]
    results = [result for group in groups for result in asyncio.run(_hold(group, options.out))]
    if len(drills) > 1:
        sys.stdout.write(report.write_total(drills))
    return max(results)


async def _hold(drills: list[Drill], folder: Path) -> list[int]:
    return await asyncio.gather(*(_hold_one(drill, folder) for drill in drills))


async def _hold_one(drill: Drill, folder: Path) -> int:
    drill.started = time.time()
    report.remove_files(drill, folder)  # an earlier run's must not stand for this one's
    try:
        await DRILLS[drill.name](drill)
    except DrillError as error:
        sys.stderr.write(f"error: the drill `{drill.name}` could not be held: {error}\n")
        return NOT_HELD
    drill.seconds = time.time() - drill.started
    report.write_files(drill, folder)
    sys.stdout.write(report.write_text(drill))
    sys.stdout.flush()
    return NOT_HELD if not drill.held else PASSED if drill.passed else FAILED


sys.exit(main())
