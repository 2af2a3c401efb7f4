"""Every replica is replaced, and some are removed, while three kinds of clients use them."""

import asyncio
import time
from collections.abc import Sequence
from itertools import chain

from drills.broken import MODULE, stop_without_a_drain
from drills.cluster import DrillError
from drills.drill import Case, Drill, observe
from drills.scenarios import visitors
from drills.stage import Load, Replica, Stage
from drills.timeline import Mark
from goals.limits import Limits
from goals.settings import Settings

REQUESTS = 20_000
_PROPAGATION = 0.5
"""Seconds for which new connections are still routed to a stopping replica, because kube-proxy is updated late."""
_STOP = Settings.model_fields["goals_drain_seconds"].default + Limits().request_deadline + 2.0
"""Seconds within which a replica must end: its drain, its last requests, and the shutdown."""

_HALF = (
    b"POST /add_goal HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n"
)


async def run(drill: Drill) -> None:
    async with Stage() as stage:
        await stage.serve(2)
        loads = await _load(drill, stage)
        await asyncio.sleep(1)
        cases = [await _restart(drill, stage, loads), await _scale_in(drill, stage)]
        attempts = [await load.stop() for load in loads]
        everything = sorted(chain.from_iterable(attempts), key=lambda attempt: attempt.ended)
        drill.account(await stage.reconcile(everything), everything)
        for case in cases:
            case.figures = observe(everything, case.began, case.ended)
            case.check("requests failed", case.figures.errors, "=", 0)
            drill.draw(case, everything)
        if not drill.short:
            cases[0].check("requests", drill.requests, ">=", REQUESTS)
        await _control(drill, stage)


async def _load(drill: Drill, stage: Stage) -> Sequence[Load]:
    dense = visitors(12, pause="60ms" if drill.short else None)
    sparse = visitors(60, pause="2500ms")
    fresh = visitors(6, pause="50ms", close=True)
    return await asyncio.gather(*(stage.load(scenario) for scenario in (dense, sparse, fresh)))


async def _terminate(stage: Stage, case: Case, leaving: Sequence[Replica]) -> None:
    """Stop replicas; a moment later, new connections are no longer routed to them. Wait until they have ended."""
    at = time.time()
    for replica in leaving:
        replica.terminate()
    await asyncio.sleep(_PROPAGATION)
    stage.replicas = [replica for replica in stage.replicas if replica not in leaving]
    stage.balance()
    codes = await asyncio.gather(*(replica.wait() for replica in leaving))
    case.marks.append(Mark(at, "SIGTERM", time.time()))
    if any(codes):
        raise DrillError(f"a replica that was stopped ended with exit code {codes}")


async def _restart(drill: Drill, stage: Stage, loads: Sequence[Load]) -> Case:
    case = drill.begin(
        "rolling restart", "each replica is replaced by a new one, which is ready before the old one drains"
    )
    rounds = 0
    while rounds < (1 if drill.short else 3) or (not drill.short and sum(map(Load.count, loads)) < 0.9 * REQUESTS):
        rounds += 1
        leaving = []
        for old in list(stage.replicas):
            stage.replicas.append(await stage.start_replica())
            stage.balance()
            leaving.append(asyncio.create_task(_terminate(stage, case, [old])))
            await asyncio.sleep(1)
        await asyncio.gather(*leaving)
        drill.say(f"round {rounds}: every replica has been replaced, after {sum(map(Load.count, loads)):,} requests")
    drill.end(case)
    _check_stop(case)
    return case


async def _scale_in(drill: Drill, stage: Stage) -> Case:
    case = drill.begin(
        "scale-in", "all replicas but one are stopped, one of them while it is still receiving two requests"
    )
    leaving = stage.replicas[1:]
    form = b"goal_name=half-sent"
    clients = [await asyncio.open_connection("127.0.0.1", leaving[0].port) for _ in range(2)]
    for _, writer in clients:
        writer.write(_HALF % len(form) + form[:4])
    await asyncio.sleep(0.1)  # so that they have been read
    stopping = asyncio.create_task(_terminate(stage, case, leaving))
    await asyncio.sleep(1)
    clients[0][1].write(form[4:])
    completed, cut = [await _read_status(reader) for reader, _ in clients]
    await stopping
    await asyncio.sleep(0.5)
    drill.end(case)
    for _, writer in clients:
        writer.close()
    case.check("status for the half-sent request that was completed", completed, "=", 303)
    case.check("status for the half-sent request that was not", cut, "=", 408)
    _check_stop(case)
    await stage.cluster.execute("DELETE FROM goals WHERE goal_name = 'half-sent'")
    return case


async def _read_status(reader: asyncio.StreamReader) -> int:
    line = await asyncio.wait_for(reader.readline(), 10)
    return int(line.split()[1]) if line else 0


def _check_stop(case: Case) -> None:
    longest = max(mark.until - mark.at for mark in case.marks)
    case.check("longest time from SIGTERM to the end of the process, s", longest, "<", _STOP, kind="timing")


async def _control(drill: Drill, stage: Stage) -> None:
    await stage.clear()
    broken = await stage.start_replica((MODULE, stop_without_a_drain.__name__))
    stage.replicas.append(broken)
    stage.balance()
    load = await stage.load(visitors(12))
    await asyncio.sleep(0.5)
    await _terminate(stage, Case("control", ""), [broken])
    attempts = await load.stop()
    failed = sum(attempt.shows_error for attempt in attempts)
    drill.control(
        "stop without a drain", "one of two replicas stops as soon as it gets SIGTERM", "requests failed", failed
    )
