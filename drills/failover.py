"""The primary is lost or switched over repeatedly, at the operator's pace, while clients read and write."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import httpx2

from drills.broken import FEW_WRITES, MODULE, answer_before_the_commit, let_few_writes_wait
from drills.cluster import QUORUM
from drills.drill import LONGEST_READ, Case, Drill, median, observe
from drills.journal import Attempt, find_stale, longest_gap
from drills.operator import Event, Operator
from drills.scenarios import crowd, readers, writers
from drills.stage import SECOND, Load, Replica, Stage
from drills.timeline import Mark
from goals.limits import Limits
from tools.polling import until

KILLS, DELETIONS, SWITCHOVERS, LOST_NODES = 20, 5, 10, 2
WRITES = 50_000
_READS = 20.0
"""Per second."""
_LONGEST_READ = 1.5
_LATE = 1.0
"""Seconds until a write is answered after a synchronous commit becomes possible."""
_LAG = 12.0
"""Seconds until the second node's Service follows a switchover."""
_SUCCEED = 0.9
"""Share of the writes that succeed when repeated after `Retry-After`."""


class Events:
    """A case and its events."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.all: list[Event] = []

    def add(self, event: Event) -> None:
        self.all.append(event)
        self.case.marks.append(Mark(event.began, event.what, event.routed))


async def run(drill: Drill) -> None:
    async with Stage(standbys=True) as stage:
        operator = Operator(drill, stage)
        first, second, alone = await asyncio.gather(
            stage.start_replica(),
            stage.start_replica(DB_HOST=SECOND),
            stage.start_replica(DB_STANDBY_HOST="", DB_STANDBY_REPLIES=""),
        )
        stage.replicas = [first, second]
        stage.balance()
        reading = await stage.load(readers(_READS))
        writing = await stage.load(writers(short=drill.short, waiting=drill.promotion == "cnpg"))
        await asyncio.sleep(1)
        cases = await _hand_over_again_and_again(drill, operator, alone)
        await alone.kill()
        crowding: list[Attempt] = []
        if not drill.short:
            cases.append(await _lag_behind(drill, operator))
            cases.append(await _crowd(drill, stage, operator, crowding))
            await _write_enough(writing)
        attempts = [*await writing.stop(), *await reading.stop(), *crowding]
        attempts.sort(key=lambda attempt: attempt.ended)
        drill.account(await stage.reconcile(attempts), attempts)
        stale = find_stale(attempts, await stage.read_ids())
        for events in cases:
            _judge_reads(events.case, attempts, stale)
            _judge(drill, events, attempts)
            drill.draw(events.case, attempts)
        if not drill.short:
            _judge_crowd(cases[-1], crowding)
            drill.cases[0].check("writes acknowledged in all cases", drill.verdict.acknowledged, ">=", WRITES)
        await _control_early(drill, stage)
        if not drill.short:  # they test PostgreSQL's own safeguards, which rarely change
            await _control_asynchronous(drill, stage)
            await _control_stale(drill, stage)


async def _hand_over_again_and_again(drill: Drill, operator: Operator, alone: Replica) -> list[Events]:
    """Lose the primary in each way, several times. The first outage that is long enough also serves the control."""
    at_once = drill.promotion == "at-once"
    ways: dict[str, tuple[str, Callable[[], Awaitable[Event]], int, int]] = {
        "kill": ("SIGKILL is sent to the primary and all its children", operator.lose, KILLS, 1 + at_once),
        "deletion": (
            "the primary's pod is deleted, which shuts PostgreSQL down cleanly",
            operator.delete,
            DELETIONS,
            0,
        ),
        "switchover": (
            "a switchover is requested: the former primary is shut down cleanly and becomes a standby",
            operator.switch_over,
            SWITCHOVERS,
            1,
        ),
        "lost node": (
            "the primary and its host stop responding, and Kubernetes stops routing to the node after 40 s",
            operator.lose_node,
            LOST_NODES,
            int(at_once),
        ),
    }
    cases = []
    for name, (explanation, lose, times, short_times) in ways.items():
        number = short_times if drill.short else times
        if not number:
            continue
        events = Events(drill.begin(name, explanation))
        for turn in range(number):
            await asyncio.sleep(_LATE + drill.random.uniform(0, 1))
            if not turn and name == ("lost node" if at_once else "kill"):
                await _control_alone(drill, alone, lose, events)
            else:
                events.add(await lose())
        await asyncio.sleep(_LATE)
        drill.end(events.case)
        cases.append(events)
    return cases


async def _lag_behind(drill: Drill, operator: Operator) -> Events:
    explanation = f"after a switchover, one of two nodes routes to the new primary only after {_LAG:g} s"
    events = Events(drill.begin("lagging Service", explanation))
    await asyncio.sleep(drill.random.uniform(0.3, 1.5))
    events.add(await operator.switch_over(lag=_LAG))
    await asyncio.sleep(2)
    drill.end(events.case)
    return events


async def _crowd(drill: Drill, stage: Stage, operator: Operator, attempts: list[Attempt]) -> Events:
    """Run more writers than can wait at a replica; each repeats its write after the time in `Retry-After`."""
    programs = 2 * FEW_WRITES
    explanation = (
        f"{programs} clients write to a replica whose queue holds {FEW_WRITES} writes, during kills and switchovers"
    )
    events = Events(drill.begin("crowd", explanation))
    narrow = await stage.start_replica((MODULE, let_few_writes_wait.__name__))
    for lose in (operator.lose, operator.switch_over, operator.lose, operator.switch_over):
        crowding = await stage.load(crowd(programs), narrow.port)
        await asyncio.sleep(3)  # they all start at once, which itself is an overload
        event = await lose()
        events.add(event)
        await asyncio.sleep(max(event.possible + 10 - time.time(), 0))  # `Retry-After` is a few seconds
        attempts += await crowding.stop()
    drill.end(events.case)
    return events


async def _write_enough(writing: Load) -> None:
    """Wait until slightly more than the promised number of attempts have ended, because some were refused."""

    async def are_enough() -> bool:
        return writing.count() >= 1.05 * WRITES

    await until(are_enough, f"{WRITES} writes are acknowledged", 600)


def _judge(drill: Drill, events: Events, attempts: Sequence[Attempt]) -> None:
    case = events.case
    writes = [a for a in attempts if a.is_write and case.began <= a.ended < case.ended]
    spans = list(pairwise([*(event.began for event in events.all), case.ended]))
    if case.name not in {"lost node", "crowd"}:
        case.check("writes refused or failed", sum(a.shows_error for a in writes), "=", 0)
    if case.name not in {"lagging Service", "crowd"}:
        answered_after = [
            write.ended - max(write.begun, event.possible)
            for event, (_, ended) in zip(events.all, spans, strict=True)
            for write in writes
            if event.possible <= write.ended < ended and not write.is_cut_off
        ]
        late = max(answered_after, default=float("inf"))
        case.check("longest time to a write's response once a commit was possible, s", late, "<=", _LATE, kind="timing")
    waits = [longest_gap(writes, began, ended) for began, ended in spans]
    by_standby = [_measure_standby(attempts, began, ended) for began, ended in spans]
    if drill.promotion == "cnpg":
        case.check("events with reads from a standby", sum(seconds > 0 for seconds in by_standby), "=", len(spans))
    times = f"in {len(spans)} repetitions, " if len(spans) > 1 else ""
    case.explanation += (
        f"; {times}reads came from a standby for {_show(by_standby)}, and no write was acknowledged for {_show(waits)}"
    )


def _show(seconds: Sequence[float]) -> str:
    """Return the median of several times and, in parentheses, their maximum; return a single time as it is."""
    return f"{median(seconds):.1f} s" + (f" (at most {max(seconds):.1f} s)" if len(seconds) > 1 else "")


def _judge_reads(case: Case, attempts: Sequence[Attempt], stale: Sequence[Attempt]) -> None:
    case.figures = observe(attempts, case.began, case.ended)
    reads = [a for a in attempts if a.is_read and case.began <= a.ended < case.ended and not a.is_cut_off]
    case.check("pages and lists read", len(reads), ">", 0)
    case.check("reads that failed", sum(a.shows_error for a in reads), "=", 0)
    old = sum(case.began <= a.ended < case.ended for a in stale)
    case.check("reads that lack a write acknowledged earlier", old, "=", 0)
    case.check(LONGEST_READ, max((a.seconds for a in reads), default=0.0), "<=", _LONGEST_READ, kind="timing")


def _measure_standby(attempts: Sequence[Attempt], began: float, ended: float) -> float:
    """Return the number of seconds for which a standby answered reads."""
    answered = [a for a in attempts if a.is_from_standby and began <= a.ended < ended]
    return answered[-1].ended - answered[0].begun if answered else 0.0


def _judge_crowd(events: Events, crowding: Sequence[Attempt]) -> None:
    case = events.case
    tries: dict[str | None, list[Attempt]] = {}
    for attempt in crowding:
        tries.setdefault(attempt.uuid, []).append(attempt)
    repeats = [
        after
        for of_one in tries.values()
        for refused, after in pairwise(of_one)
        if refused.retry_after and any(event.began <= refused.ended < event.possible for event in events.all)
        if not after.is_cut_off
    ]
    case.check("refused writes that were repeated after Retry-After", len(repeats), ">", 0)
    share = sum(after.is_done for after in repeats) / max(len(repeats), 1)
    case.check("share of these that then succeeded", share, ">=", _SUCCEED)


async def _control_alone(drill: Drill, alone: Replica, lose: Callable[[], Awaitable[Event]], events: Events) -> None:
    """Watch the page of a replica without standbys during one event."""
    statuses: list[int] = []
    asking = asyncio.create_task(_watch_page(alone, statuses))
    events.add(await lose())
    asking.cancel()
    await asyncio.wait({asking})
    drill.control(
        "no standby reads",
        "one replica reads only from the primary",
        "page requests failed",
        sum(status != httpx2.codes.OK for status in statuses),
    )


async def _watch_page(replica: Replica, statuses: list[int]) -> None:
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
        while True:
            statuses.append((await client.get(f"http://127.0.0.1:{replica.port}/")).status_code)
            await asyncio.sleep(0.2)


async def _control_asynchronous(drill: Drill, stage: Stage) -> None:
    cluster = stage.cluster
    former = cluster.primary
    await cluster.replicate("")
    # Over loopback, even an asynchronous standby is hardly ever behind; over a network, it is.
    lost = await _count_lost(drill, stage, behind=cluster.standbys, promoted=cluster.standbys)
    explanation = "commits wait for no standby, both standbys are half a second behind, and the primary is killed"
    drill.control("asynchronous replication", explanation, "acknowledged writes lost", lost)
    await cluster.replicate(QUORUM)
    await cluster.rejoin(former)
    await cluster.until_whole()
    stage.route_to([cluster.port])


async def _control_stale(drill: Drill, stage: Stage) -> None:
    cluster = stage.cluster
    stale = cluster.standbys[:1]
    lost = await _count_lost(drill, stage, behind=stale, promoted=stale)
    explanation = "a standby that is half a second behind is promoted instead of the one that has every commit"
    drill.control("stale standby", explanation, "acknowledged writes lost", lost)


async def _control_early(drill: Drill, stage: Stage) -> None:
    cluster, tried = stage.cluster, Limits().retry_budget
    await stage.clear()
    await stage.serve(1, (MODULE, answer_before_the_commit.__name__), GOALS_WRITE_WAIT_SECONDS=f"{tried:g}")
    load = await stage.load(writers(short=False))
    await asyncio.sleep(0.5)
    lost = cluster.primary
    await cluster.kill(lost)
    await asyncio.sleep(1.2 * tried)  # until then, adds that were acknowledged are still retried
    await cluster.promote()
    stage.route_to([cluster.port])
    await cluster.rejoin(lost)
    await cluster.until_whole()
    verdict = await stage.reconcile(await load.stop())
    explanation = "groups of adds are acknowledged when they are sent, and the outage outlasts the retries"
    drill.control("acknowledgement before the commit", explanation, "acknowledged writes lost", verdict.lost)
    await stage.serve(2)


async def _count_lost(drill: Drill, stage: Stage, behind: list[str], promoted: list[str]) -> int:
    """Let some standbys fall behind under load, then kill the primary and promote the best of `promoted`."""
    cluster = stage.cluster
    await stage.clear()
    load = await stage.load(writers(short=drill.short))
    await cluster.detach(behind)
    await asyncio.sleep(0.5)
    attempts = await load.stop()
    await cluster.detach(cluster.standbys)
    await cluster.kill(cluster.primary)
    await cluster.promote(promoted)
    verdict = await stage.reconcile(attempts, standbys=False)
    return verdict.lost
