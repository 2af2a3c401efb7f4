"""What the clients were answered, compared with what is stored: the harness's journal is the oracle of every drill."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ADD, RENAME, REMOVE = "add", "rename", "remove"
"""What the name of a step begins with that writes: adds "drill UUID", gives it another name, removes it."""

_NAME = re.compile(r"drill ([0-9a-f-]{36})( renamed)?")
_DONE = range(200, 400)
_REFUSED = range(400, 500)


class Attempt(NamedTuple):
    """A request and its answer: `status` 0 for none. Times are Unix seconds."""

    ended: float
    seconds: float
    step: str
    uuid: str | None
    status: int
    error: str | None

    @property
    def begun(self) -> float:
        return self.ended - self.seconds

    @property
    def is_write(self) -> bool:
        return self.step.startswith((ADD, RENAME, REMOVE))

    @property
    def is_done(self) -> bool:
        return self.status in _DONE

    @property
    def is_cut_off(self) -> bool:
        """Ended by the end of the load: nobody waits for its answer."""
        return self.error == "interrupted"

    @property
    def shows_error(self) -> bool:
        return not self.is_cut_off and not self.is_done


def read_journal(path: Path) -> list[Attempt]:
    """The attempts, in the order in which they ended."""
    with path.open("rb") as file:
        lines = [json.loads(line) for line in file]
    attempts = [
        Attempt(line["time"], line["seconds"], line["step"], line["uuid"], line["status"], line["error"])
        for line in lines
    ]
    return sorted(attempts, key=lambda attempt: attempt.ended)


@dataclass
class Verdict:
    """How many writes were acknowledged, and what has become of them; all but the first ought to be 0.

    Lost: acknowledged, and not in the table. Duplicated: there more than once. Phantom: there although nobody asked for
    it, or although everybody who did was refused.
    """

    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    phantom: int = 0


def reconcile(attempts: Iterable[Attempt], names: Iterable[str]) -> Verdict:
    """Hold the attempts against the names of all goals there are."""
    wanted: defaultdict[str, dict[str, list[Attempt]]] = defaultdict(lambda: {ADD: [], RENAME: [], REMOVE: []})
    for attempt in attempts:
        if attempt.is_write and attempt.uuid is not None:
            wanted[attempt.uuid][attempt.step.split()[0]].append(attempt)
    stored: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    verdict = Verdict()
    for name in names:
        found = _NAME.fullmatch(name)
        if found and found[1] in wanted:
            stored[found[1]][found[2] is not None] += 1
        else:
            verdict.phantom += 1
    for uuid, steps in wanted.items():
        _judge(verdict, steps, stored[uuid])
    return verdict


def cut(attempts: Iterable[Attempt], asked: float, answered: float) -> list[Attempt]:
    """What was answered at a moment between two times: what began later is left out, what ended later is open.

    Compared with what a restore to that moment has brought back, an acknowledged write that is missing is lost, and one
    that came later is a phantom.
    """
    begun = [attempt for attempt in attempts if attempt.begun < answered]
    return [a if a.ended < asked else a._replace(status=0, error="under way") for a in begun]


def _judge(verdict: Verdict, steps: dict[str, list[Attempt]], stored: Counter[bool]) -> None:
    """Add one goal: `stored` counts its rows, those renamed and those not."""
    done = {step: any(attempt.is_done for attempt in attempts) for step, attempts in steps.items()}
    rows = stored.total()
    verdict.acknowledged += sum(done.values())
    verdict.duplicated += max(rows - 1, 0)
    if done[REMOVE]:
        verdict.lost += rows > 0
    elif not steps[REMOVE]:  # a removal whose outcome is not known allows both
        verdict.lost += done[ADD] and rows == 0
        verdict.lost += done[RENAME] and rows > 0 and not stored[True]
    verdict.phantom += stored[True] > 0 and not steps[RENAME]
    verdict.phantom += rows > 0 and all(attempt.status in _REFUSED for attempt in steps[ADD])


def longest_gap(attempts: Sequence[Attempt], began: float, ended: float) -> float:
    """The longest time from one acknowledged write to the next, the borders of the span counted as writes."""
    times = [began, *(a.ended for a in attempts if a.is_write and a.is_done and began < a.ended < ended), ended]
    return max(after - before for before, after in pairwise(times))
