"""The state of a drill: its cases and controls, what each must show, and what was measured."""

import operator
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple

from drills.journal import Attempt, Verdict, longest_gap
from drills.timeline import Mark, Timeline

LONGEST_ANSWER = 3.5
"""Seconds: the service's request deadline, plus the time to notice it on two busy cores."""
LONGEST_READ = "longest read, s"

_REFUSED = 503
_MOST_TOLD = 20
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}


Promotion = Literal["cnpg", "at-once"]
"""With `cnpg`, a change of the primary takes as long as CloudNativePG took on a cluster."""
Kind = Literal["safety", "timing"]
"""A safety check must pass on every machine, however busy; a timing check may fail on a shared machine."""


class Check(NamedTuple):
    """A measured value and its limit."""

    what: str
    measured: float
    comparison: str
    limit: float
    kind: Kind = "safety"

    @property
    def holds(self) -> bool:
        return _COMPARISONS[self.comparison](self.measured, self.limit)


class Figures(NamedTuple):
    """What clients saw in a time span."""

    requests: int
    acknowledged: int
    errors: int
    longest_answer_s: float
    write_gap_s: float


def observe(attempts: Sequence[Attempt], began: float, ended: float) -> Figures:
    """Summarize the attempts that ended between two times, as clients saw them."""
    seen = [a for a in attempts if began <= a.ended < ended and not a.is_cut_off]
    return Figures(
        requests=len(seen),
        acknowledged=sum(a.is_write and a.is_done for a in seen),
        errors=sum(a.shows_error for a in seen),
        longest_answer_s=round(max((a.seconds for a in seen), default=0.0), 3),
        write_gap_s=round(longest_gap(seen, began, ended), 3),
    )


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which this share of the values lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


SHORT_PATIENCE = 2.0
"""Factor for the limits in seconds of short drills, which run on shared machines; limits on counts stay the same.
Full drills use all limits unchanged."""


@dataclass
class Case:
    """A part of a drill: one kind of fault, from its start until the system has recovered."""

    name: str
    explanation: str
    began: float = 0.0
    ended: float = 0.0
    marks: list[Mark] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    figures: Figures | None = None
    healed: float | None = None
    """When the system had recovered, if not at the end of the last mark."""
    patience: float = 1.0
    """Factor for upper limits in seconds."""
    not_run: str = ""
    """Why it could not be run here, if something that it needs is missing."""

    def check(self, what: str, measured: float, comparison: str, limit: float, *, kind: Kind = "safety") -> None:
        if what.endswith(", s") and kind == "timing":
            limit *= self.patience
        self.checks.append(Check(what, round(measured, 4), comparison, limit, kind))

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)


class Control(NamedTuple):
    """The same drill with one safeguard removed: unless it shows damage, the drill cannot detect that damage."""

    name: str
    explanation: str
    damage: str
    measured: float
    limit: float

    @property
    def shown(self) -> bool:
        return self.measured > self.limit


class Drill:
    """The options of a drill and its results.

    `short` selects the form that takes seconds, `promotion` the pace at which the operator changes the primary. The
    times of faults come from `random`, whose seed is recorded.
    """

    def __init__(self, name: str, *, short: bool, seed: int, promotion: Promotion = "cnpg") -> None:
        self.name = name
        self.short = short
        self.seed = seed
        self.promotion = promotion
        self.random = random.Random(f"{name} {seed}")  # noqa: S311  no secret
        self.started = time.time()
        self.load_before = os.getloadavg()[0]
        self.seconds = 0.0
        self.cases: list[Case] = []
        self.controls: list[Control] = []
        self.timelines: list[Timeline] = []
        self.verdict = Verdict()
        self.requests = 0
        self.failed = 0
        self.first_attempt: Drill | None = None
        """The failed attempt before this one."""
        self.broken_off = ""
        """Why it did not finish."""
        self.is_late = False
        """Whether it did not finish because a wait was too long."""

    def say(self, text: str) -> None:
        """Write a line of progress."""
        sys.stderr.write(f"{self.name} {time.time() - self.started:6.1f} s  {text}\n")
        sys.stderr.flush()

    @property
    def warning(self) -> str:
        """A warning if the machine was already busy when the drill started, or ""."""
        cores = os.cpu_count() or 1
        if self.load_before <= cores / 2:
            return ""
        return f"the machine was already busy (load {self.load_before:.1f} on {cores} cores), which may affect times"

    def begin(self, name: str, explanation: str) -> Case:
        self.say(f"{name}: {explanation}")
        case = Case(name, explanation, began=time.time(), patience=SHORT_PATIENCE if self.short else 1.0)
        self.cases.append(case)
        return case

    def leave_out(self, name: str, explanation: str, why: str) -> None:
        """Record a case that cannot be run on this machine: it counts as not run, never as passed."""
        self.say(f"{name}: not run: {why}")
        now = time.time()
        self.cases.append(Case(name, explanation, began=now, ended=now, not_run=why))

    def end(self, case: Case) -> None:
        case.ended = time.time()

    def control(self, name: str, explanation: str, damage: str, measured: float, limit: float = 0) -> None:
        control = Control(name, explanation, damage, round(measured, 3), limit)
        self.controls.append(control)
        self.say(f"control {name}: {measured:g} {damage}" + ("" if control.shown else ": NO DAMAGE SHOWN"))

    def account(self, verdict: Verdict, attempts: Sequence[Attempt]) -> None:
        """Add the verdict of a run to that of the drill."""
        for name, value in vars(verdict).items():
            setattr(self.verdict, name, getattr(self.verdict, name) + value)
        self.requests += sum(not attempt.is_cut_off for attempt in attempts)
        failed = [a for a in attempts if a.shows_error and a.status != _REFUSED]
        self.failed += len(failed)
        for one in failed[:_MOST_TOLD]:
            self.say(f"failed at {one.ended - self.started:.1f} s: {one.step}: {one.error or one.status}")

    def draw(self, case: Case, attempts: Sequence[Attempt]) -> None:
        self.timelines.append(Timeline.make(case.name, attempts, case.marks, case.began, case.ended))

    @property
    def whole(self) -> list[Check]:
        """The checks over all responses that the drill's clients got."""
        verdict = self.verdict
        return [
            Check("acknowledged writes", verdict.acknowledged, ">", 0),
            Check("acknowledged writes lost", verdict.lost, "=", 0),
            Check("writes duplicated", verdict.duplicated, "=", 0),
            Check("writes that no client sent", verdict.phantom, "=", 0),
            Check("requests that failed with anything but 503", self.failed, "=", 0),
        ]

    @property
    def held(self) -> list[Case]:
        """The cases that were run."""
        return [case for case in self.cases if not case.not_run]

    @property
    def not_run(self) -> int:
        """How many cases were not run."""
        return len(self.cases) - len(self.held)

    @property
    def outcome(self) -> str:
        """`passed`, `FAILED`, or `NOT RUN` if no case was run, with the number of cases that were not run."""
        if self.not_run and not self.held:
            return "NOT RUN"
        left_out = f", {self.not_run} of {len(self.cases)} cases NOT RUN" if self.not_run else ""
        return f"{'passed' if self.passed else 'FAILED'}{left_out}"

    @property
    def may_be_tried_again(self) -> bool:
        """Whether only timing checks, a wait that was too long, or controls without damage made it fail.

        A failed safety check is never retried. A case without checks counts as failed unless the drill broke off in it.
        """
        if not (self.is_late or all(case.checks for case in self.held)):
            return False
        checks = [*chain.from_iterable(case.checks for case in self.held), *self.whole[1:]]
        return not self.passed and all(check.holds or check.kind == "timing" for check in checks)

    @property
    def passed(self) -> bool:
        return (
            bool(self.held)
            and not self.broken_off
            and bool(self.controls)
            and all(case.passed for case in self.held)
            and all(check.holds for check in self.whole)
            and all(control.shown for control in self.controls)
        )
