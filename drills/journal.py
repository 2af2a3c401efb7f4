"""Compares the load test's journal of responses with the stored goals; it is the oracle of every drill."""

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
"""First words of the names of writing steps: add "drill UUID", rename it, remove it."""

_NAME = re.compile(r"drill ([0-9a-f-]{36})( renamed)?")
_GOAL_ID = re.compile(r"(?:/goals/|goal_id=)(\d+)")
_DONE = range(200, 400)
_REFUSED = range(400, 500)


class Attempt(NamedTuple):
    """A request and its response; `status` is 0 if there was none. Times are Unix seconds."""

    ended: float
    seconds: float
    step: str
    uuid: str | None
    status: int
    error: str | None
    goal_id: int | None = None
    """Id of the goal that it renames or removes."""
    shown: tuple[str, ...] | None = None
    """What a page or a list showed: for each goal the end of its UUID, and whether it is renamed."""
    cache: str | None = None
    """The header `Cache-Status`, which marks a standby's response."""
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
        """Whether the end of the load cut it off, so that no client waited for its response."""
        return self.error == "interrupted"

    @property
    def shows_error(self) -> bool:
        return not self.is_cut_off and not self.is_done


def read_journal(path: Path) -> list[Attempt]:
    """Return the attempts in the order in which they ended."""
    with path.open("rb") as file:
        lines = [json.loads(line) for line in file]
    return sorted(map(_read_attempt, lines), key=lambda attempt: attempt.ended)


def _read_attempt(line: Mapping[str, Any]) -> Attempt:
    answer = line.get("answer", {})
    found = _GOAL_ID.search(f"{line['path']} {line['sent']}")
    return Attempt(
        ended=line["time"],
        # From the wall clock at both ends, to know which writes had been acknowledged before.
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
    """How many writes were acknowledged, and what became of them; all numbers but the first must be 0.

    Lost: acknowledged, but not in the table. Duplicated: in the table more than once. Phantom: in the table although
    no client requested it, or although all requests for it were refused.
    """

    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    phantom: int = 0


def reconcile(attempts: Iterable[Attempt], names: Iterable[str]) -> Verdict:
    """Compare the attempts with the names of all stored goals."""
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
    """Return the attempts as of a moment between two times: later ones are left out, unfinished ones have no response.

    When these are compared with a restore to that moment, a missing acknowledged write is lost, and a later write is
    a phantom.
    """
    begun = [attempt for attempt in attempts if attempt.begun < answered]
    return [a if a.ended < asked else a._replace(status=0, error="under way") for a in begun]


def _judge(verdict: Verdict, steps: dict[str, list[Attempt]], stored: Counter[bool]) -> None:
    """Judge one goal: `stored` counts its rows, by whether they are renamed."""
    done = {step: any(attempt.is_done for attempt in attempts) for step, attempts in steps.items()}
    rows = stored.total()
    verdict.acknowledged += sum(done.values())
    verdict.duplicated += max(rows - 1, 0)
    if done[REMOVE]:
        verdict.lost += rows > 0
    elif not steps[REMOVE]:  # a removal with an unknown outcome allows both
        verdict.lost += done[ADD] and rows == 0
        verdict.lost += done[RENAME] and rows > 0 and not stored[True]
    verdict.phantom += stored[True] > 0 and not steps[RENAME]
    verdict.phantom += rows > 0 and all(attempt.status in _REFUSED for attempt in steps[ADD])


def longest_gap(attempts: Sequence[Attempt], began: float, ended: float) -> float:
    """Return the longest time between acknowledged writes; the ends of the span count as writes."""
    times = [began, *(a.ended for a in attempts if a.is_write and a.is_done and began < a.ended < ended), ended]
    return max(after - before for before, after in pairwise(times))


PAGE = 50
"""Goals on a page, and in a list."""
TAIL = 12
"""Characters of a UUID that identify a goal, so that the journal stays small."""


class _Goal:
    """When each change of a goal was requested and acknowledged; infinite if never."""

    def __init__(self, steps: Mapping[str, Sequence[Attempt]]) -> None:
        self.added, self.renamed, self.removed = (
            min((one.ended for one in steps[step] if one.is_done), default=inf) for step in (ADD, RENAME, REMOVE)
        )
        self.may_be_renamed, self.may_be_removed = (
            min((one.begun for one in steps[step]), default=inf) for step in (RENAME, REMOVE)
        )


def find_stale(attempts: Iterable[Attempt], ids: Mapping[str, int]) -> list[Attempt]:
    """Return the pages and lists that lack a write that was acknowledged before they were requested.

    Each page shows the goals with the highest ids. `ids` are the ids of the stored goals by UUID; a removed goal's id
    is in the journal of its removal.
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
        is_stale = any(_is_former(goals[tail], name, read) for tail, name in shown.items() if tail in goals)
        place = bisect_left(times, read.begun) - 1
        while place >= 0 and highest[place] >= lowest and not is_stale:
            _, number, tail = added[place]
            is_stale = number >= lowest and tail not in shown and goals[tail].may_be_removed > read.ended
            place -= 1
        if is_stale:
            stale.append(read)
    return stale


def _is_former(goal: _Goal, shown: str, read: Attempt) -> bool:
    """Whether a shown goal had already been removed, or renamed, before the page was requested."""
    return goal.removed < read.begun or (goal.renamed < read.begun and len(shown) == TAIL)
