"""The primary is lost or handed over, again and again, while people write."""

import asyncio
import time

import httpx2

from drills.broken import MODULE, answer_before_the_commit
from drills.cluster import QUORUM
from drills.drill import LONGEST_ANSWER, Case, Drill, observe
from drills.journal import Attempt
from drills.scenarios import writers
from drills.stage import Load, Stage
from drills.timeline import Mark
from goals.limits import Limits

FAILOVERS = 20
WRITES = 50_000
_MOST_FAILOVERS = 60
"""Where a slow machine takes longer to acknowledge so many writes, there are more failovers, up to so many."""
_OUTAGE = 2.0
_FLOW = 1.0


async def run(drill: Drill) -> None:
    async with Stage() as stage:
        await stage.serve(2)
        load = await stage.load(writers(short=drill.short))
        await asyncio.sleep(1)
        kill = await _kill_again_and_again(drill, stage, load)
        switchover = await _switch_over(drill, stage)
        outage = await _lose_for_long(drill, stage)
        attempts = await load.stop()
        drill.account(await stage.reconcile(attempts), attempts)
        for case in (kill, switchover, outage):
            _judge(case, attempts)
            drill.draw(case, attempts)
        if not drill.short:
            kill.check("failovers", len(kill.marks), ">=", FAILOVERS)
            kill.check("writes acknowledged", drill.verdict.acknowledged, ">=", WRITES)
        await _control_early(drill, stage)
        await _control_asynchronous(drill, stage)
        await _control_stale(drill, stage)


async def _kill_again_and_again(drill: Drill, stage: Stage, load: Load) -> Case:
    case = drill.begin("kill", "SIGKILL to the primary and all its children, the best standby promoted")
    cluster = stage.cluster
    wanted = 2 if drill.short else FAILOVERS
    while len(case.marks) < wanted or _is_too_quiet(drill, load, case):
        await asyncio.sleep(drill.random.uniform(0.3, 1.5))
        lost, killed_at = cluster.primary, time.time()
        await cluster.kill(lost)
        await asyncio.sleep(drill.random.uniform(0, 0.7 if drill.short else 1.2))  # until somebody notices
        promoted = await cluster.promote()
        promoted_at = time.time()
        stage.database.route_to([cluster.port])
        case.marks.append(Mark(killed_at, "kill", promoted_at))
        drill.say(f"{len(case.marks)}: {lost} killed, {promoted} promoted after {promoted_at - killed_at:.2f} s")
        await cluster.rejoin(lost)
        await cluster.until_whole()
    await asyncio.sleep(0.5)
    drill.end(case)
    return case


def _is_too_quiet(drill: Drill, load: Load, case: Case) -> bool:
    """Whether fewer writes than promised can have been acknowledged so far."""
    if drill.short or len(case.marks) >= _MOST_FAILOVERS:
        return False
    # A few more, as the last attempts may be on their way.
    return load.count() < 1.02 * WRITES


async def _switch_over(drill: Drill, stage: Stage) -> Case:
    case = drill.begin("switchover", "the primary shut down in order (mode fast), a standby promoted at once")
    cluster = stage.cluster
    for _ in range(1 if drill.short else 3):
        old, asked_at = cluster.primary, time.time()
        await cluster.stop(old)
        await cluster.promote()
        promoted_at = time.time()
        stage.database.route_to([cluster.port])
        case.marks.append(Mark(asked_at, "switchover", promoted_at))
        await cluster.rejoin(old, rewind=False)
        await cluster.until_whole()
        await asyncio.sleep(0.5)
    drill.end(case)
    return case


async def _lose_for_long(drill: Drill, stage: Stage) -> Case:
    seconds = 3.5 if drill.short else 8.0
    case = drill.begin("long outage", f"nobody promotes for {seconds:g} s, which is longer than the retry budget")
    cluster = stage.cluster
    lost, killed_at = cluster.primary, time.time()
    await cluster.kill(lost)
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"http://127.0.0.1:{stage.balancer.port}/")
    case.check("status in the outage", answer.status_code, "=", 503)
    case.check("Retry-After in the outage, s", float(answer.headers.get("retry-after", 0)), ">", 0)
    await asyncio.sleep(max(killed_at + seconds - time.time(), 0))
    await cluster.promote()
    promoted_at = time.time()
    stage.database.route_to([cluster.port])
    case.marks.append(Mark(killed_at, "kill", promoted_at))
    await cluster.rejoin(lost)
    await cluster.until_whole()
    await asyncio.sleep(0.5)
    drill.end(case)
    return case


def _judge(case: Case, attempts: list[Attempt]) -> None:
    case.figures = figures = observe(attempts, case.began, case.ended)
    writes = [attempt for attempt in attempts if attempt.is_write and attempt.is_done]
    flows, outages = [], []
    for mark in case.marks:
        first = min((write.ended for write in writes if write.ended > mark.until), default=float("inf"))
        # The last writes before the loss may be acknowledged a moment after it.
        last = max((write.ended for write in writes if write.ended < mark.until), default=case.began)
        flows.append(first - mark.until)
        outages.append(first - last)
    case.check("longest time from a promotion to a write, s", max(flows), "<", _FLOW, kind="timing")
    case.check("longest answer, s", figures.longest_answer_s, "<", LONGEST_ANSWER, kind="timing")
    if case.name == "long outage":
        case.check("errors shown", figures.errors, ">", 0)
    else:
        case.check("longest outage, s", max(outages), "<=", _OUTAGE, kind="timing")
        case.check("errors shown", figures.errors, "=", 0)


async def _control_asynchronous(drill: Drill, stage: Stage) -> None:
    cluster = stage.cluster
    former = cluster.primary
    await cluster.replicate("")
    # Over loopback even an asynchronous standby is hardly ever behind; over a network it is.
    lost = await _count_lost(drill, stage, behind=cluster.standbys, promoted=cluster.standbys)
    explanation = "commits wait for no standby, both are half a second behind, and the primary is killed"
    drill.control("asynchronous replication", explanation, "acknowledged writes lost", lost)
    await cluster.replicate(QUORUM)
    await cluster.rejoin(former)
    await cluster.until_whole()
    stage.database.route_to([cluster.port])


async def _control_stale(drill: Drill, stage: Stage) -> None:
    cluster = stage.cluster
    stale = cluster.standbys[:1]
    lost = await _count_lost(drill, stage, behind=stale, promoted=stale)
    explanation = "the standby that is half a second behind is promoted, not the one that has everything"
    drill.control("stale standby", explanation, "acknowledged writes lost", lost)


async def _control_early(drill: Drill, stage: Stage) -> None:
    cluster = stage.cluster
    await stage.clear()
    await stage.serve(1, (MODULE, answer_before_the_commit.__name__))
    load = await stage.load(writers(short=False))
    await asyncio.sleep(0.5)
    lost = cluster.primary
    await cluster.kill(lost)
    await asyncio.sleep(1.2 * Limits().retry_budget)  # until then, what was answered is still tried
    await cluster.promote()
    stage.database.route_to([cluster.port])
    await cluster.rejoin(lost)
    await cluster.until_whole()
    verdict = await stage.reconcile(await load.stop())
    explanation = "a group of adds is answered when it is sent, and there is no primary for longer than it is tried"
    drill.control("answers before the commit", explanation, "acknowledged writes lost", verdict.lost)
    await stage.serve(2)


async def _count_lost(drill: Drill, stage: Stage, behind: list[str], promoted: list[str]) -> int:
    """Let some standbys fall behind under load, then kill the primary and promote the best of others."""
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
