"""What the clients were answered, compared with what is stored: the harness's journal is the oracle of every drill."""

import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

ADD, RENAME, REMOVE = "add", "rename", "remove"
"""What the name of a step begins with that writes: adds "drill UUID", gives it another name, removes it."""

_NAME = re.compile(r"drill ([0-9a-f-]{36})( renamed)?")
_GOAL_ID = re.compile(r"(?:/goals/|goal_id=)(\d+)")
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
    goal_id: int | None = None
    """Of the goal that it renames or removes."""
    shown: tuple[str, ...] | None = None
    """What a page or a list showed: of each goal the end of its UUID, and whether it is renamed."""
    cache: str | None = None
    """The header `Cache-Status`, which says that the answer is a standby's."""
    retry_after: int | None = None

    @property
    def is_read(self) -> bool:
        return self.shown is not None

    @property
    def is_from_standby(self) -> bool:
        return self.is_done and self.cache is not None

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
    return sorted(map(_read_attempt, lines), key=lambda attempt: attempt.ended)


def _read_attempt(line: Mapping[str, Any]) -> Attempt:
    answer = line.get("answer", {})
    found = _GOAL_ID.search(f"{line['path']} {line['sent']}")
    return Attempt(
        ended=line["time"],
        # By the clock at both ends, to know which writes had been acknowledged before.
        seconds=line["time"] - line["begun"],
        step=line["step"],
        uuid=line["uuid"],
        status=line["status"],
        error=line["error"],
        goal_id=int(found[1]) if found else None,
        shown=tuple(answer["shown"]) if "shown" in answer else None,
        cache=answer.get("cache"),
        retry_after=int(answer["retry_after"]) if answer.get("retry_after") else None,
    )


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


PAGE = 50
"""Goals on a page, and in a list."""
TAIL = 12
"""Characters of a UUID that tell goals apart, so that the journal stays small."""


class _Goal:
    """When what was asked for of a goal, and acknowledged; never is infinite."""

    def __init__(self, steps: Mapping[str, Sequence[Attempt]]) -> None:
        self.added, self.renamed, self.removed = (
            min((one.ended for one in steps[step] if one.is_done), default=inf) for step in (ADD, RENAME, REMOVE)
        )
        self.may_be_renamed, self.may_be_removed = (
            min((one.begun for one in steps[step]), default=inf) for step in (RENAME, REMOVE)
        )


def find_stale(attempts: Iterable[Attempt], ids: Mapping[str, int]) -> list[Attempt]:
    """Give the pages and lists that lack a write which was acknowledged to anyone before they were requested.

    Each shows the goals of the highest ids. `ids` are those of the goals there are, by UUID; a client that removed one
    knew its id.
    """
    steps: defaultdict[str, dict[str, list[Attempt]]] = defaultdict(lambda: {ADD: [], RENAME: [], REMOVE: []})
    reads, known = [], {uuid[-TAIL:]: number for uuid, number in ids.items()}
    for attempt in attempts:
        if attempt.is_write and attempt.uuid is not None:
            tail = attempt.uuid[-TAIL:]
            steps[tail][attempt.step.split()[0]].append(attempt)
            if attempt.goal_id is not None:
                known[tail] = attempt.goal_id
        elif attempt.is_read and attempt.is_done:
            reads.append(attempt)
    goals = {tail: _Goal(of_one) for tail, of_one in steps.items()}
    added = sorted((goals[tail].added, number, tail) for tail, number in known.items() if tail in goals)
    times = [at for at, _, _ in added]
    highest = list(accumulate((number for _, number, _ in added), max))
    stale = []
    for read in reads:
        shown = {text[:TAIL]: text for text in read.shown or ()}
        lowest = min((known.get(tail, inf) for tail in shown), default=0) if len(shown) >= PAGE else 0
        is_stale = any(tail in goals and _is_former(goals[tail], name, read) for tail, name in shown.items())
        place = bisect_left(times, read.begun) - 1
        while place >= 0 and highest[place] >= lowest and not is_stale:
            _, number, tail = added[place]
            is_stale = number >= lowest and tail not in shown and goals[tail].may_be_removed > read.ended
            place -= 1
        if is_stale:
            stale.append(read)
    return stale


def _is_former(goal: _Goal, shown: str, read: Attempt) -> bool:
    """Whether a goal that is shown was gone, or had its other name, when it was requested."""
    return goal.removed < read.begun or (goal.renamed < read.begun and len(shown) == TAIL)
