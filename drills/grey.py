"""Nothing is dead, and nothing works: the failures that no closed connection tells of."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from drills.broken import MODULE, let_a_group_fail_together, retry_without_a_key
from drills.drill import LONGEST_ANSWER, Case, Drill, observe
from drills.journal import Attempt
from drills.scenarios import writers
from drills.stage import Stage
from drills.timeline import Mark
from goals.limits import Limits

_NOTICE = 1.0
"""Seconds until somebody notices a primary that does not answer, and promotes a standby."""
_SHORT_OUTAGE = 2.0
_FLOW = 1.0
_HELD = 0.6
"""Seconds that a key is held: much longer than a group waits for it, less than a statement may take."""
_PATIENCE = {
    # The kernel repeats a SYN that was dropped at the last moment only after a second.
    "black hole": Limits().connect_timeout,
    # This fault has no end: each connection is found dead by a statement's time limit.
    "half-open": Limits().command_timeout,
}


async def run(drill: Drill) -> None:
    faults: dict[str, tuple[str, Callable[[Drill, Stage, Case], Awaitable[None]]]] = {
        "frozen primary": ("SIGSTOP to the primary and all its children, a standby promoted after a second", _freeze),
        "zombie primary": ("the frozen one resumes, and for a while the service is routed to it", _thaw),
        "black hole": ("the primary's host falls silent and drops every SYN, a standby promoted", _lose_host),
        "half-open": ("every connection falls silent and stays open, new ones work", _leave_half_open),
        "no standby": ("both standbys are killed: the primary lives and may acknowledge nothing", _lose_standbys),
        "lost replies": ("commits happen, their replies are lost with the connection", _drop_replies),
        "held keys": (f"another session holds one key in 32, for {_HELD:g} s each time", _hold_keys),
        "read-only": ("the address leads to a standby for a while (SQLSTATE 25006)", _lead_to_standby),
    }
    async with Stage() as stage:
        await stage.serve(2)
        load = await stage.load(writers(short=drill.short))
        await asyncio.sleep(1)
        for name, (explanation, inject) in faults.items():
            case = drill.begin(name, explanation)
            await inject(drill, stage, case)
            # Long enough for every answer that was under way.
            await asyncio.sleep(0.6 if drill.short else 2.0)
            drill.end(case)
        attempts = await load.stop()
        drill.account(await stage.reconcile(attempts), attempts)
        for case in drill.cases:
            _judge(case, attempts)
            drill.draw(case, attempts)
        await _control_key(drill, stage)
        await _control_group(drill, stage)


def _judge(case: Case, attempts: Sequence[Attempt]) -> None:
    case.figures = figures = observe(attempts, case.began, case.ended)
    (mark,) = case.marks
    flow = min((a.ended for a in attempts if a.is_write and a.is_done and a.ended > mark.until), default=float("inf"))
    patience = _PATIENCE.get(case.name, 0)
    late = max(flow - (case.healed or mark.until), 0)
    case.check("time from the fault's end to a write, s", late, "<", _FLOW + patience, kind="timing")
    case.check("longest answer, s", figures.longest_answer_s, "<", LONGEST_ANSWER, kind="timing")
    if mark.until - mark.at <= _SHORT_OUTAGE or case.name == "held keys":
        case.check("errors shown", figures.errors, "=", 0)
    if case.name in {"zombie primary", "no standby"}:
        tried = [a for a in attempts if a.begun < mark.until and a.ended > mark.at and a.is_write]
        case.check("writes that nobody could confirm", len(tried), ">", 0)
        # An answer that was on its way when the fault began is none of them.
        kept = [a for a in tried if a.is_done and a.ended < mark.until and max(a.begun, a.ended - 1) > mark.at]
        case.check("of them acknowledged", len(kept), "=", 0)


async def _freeze(drill: Drill, stage: Stage, case: Case) -> None:
    """Leaves the former primary frozen: it is the next case's zombie."""
    cluster = stage.cluster
    frozen_at = time.time()
    cluster.freeze(cluster.primary)
    await asyncio.sleep(_NOTICE)
    await cluster.promote()
    promoted_at = time.time()
    stage.database.route_to([cluster.port])
    case.marks.append(Mark(frozen_at, "frozen", promoted_at))
    await cluster.until_streaming(1)
    await asyncio.sleep(1)


async def _thaw(drill: Drill, stage: Stage, case: Case) -> None:
    cluster = stage.cluster
    (zombie,) = cluster.frozen
    cluster.thaw(zombie)
    await _lead_astray(stage, case, zombie, "zombie")
    await cluster.kill(zombie)
    await cluster.rejoin(zombie)
    await cluster.until_whole()


async def _lose_host(drill: Drill, stage: Stage, case: Case) -> None:
    cluster = stage.cluster
    lost, lost_at = cluster.primary, time.time()
    await stage.database.swallow()
    cluster.freeze(lost)
    await asyncio.sleep(_NOTICE)
    await cluster.promote()
    stage.database.route_to([cluster.port])
    await stage.database.reappear()
    case.marks.append(Mark(lost_at, "black hole", time.time()))
    await cluster.kill(lost)
    await cluster.rejoin(lost)
    await cluster.until_whole()


async def _leave_half_open(drill: Drill, stage: Stage, case: Case) -> None:
    at = time.time()
    stage.database.silence()
    # There is nothing to be ended: each connection has to be found dead by its user.
    case.marks.append(Mark(at, "half-open", at))
    await asyncio.sleep(2)


async def _lose_standbys(drill: Drill, stage: Stage, case: Case) -> None:
    cluster = stage.cluster
    lost = cluster.standbys
    for name in lost:
        await cluster.kill(name)
    lost_at = time.time()
    await asyncio.sleep(3.5 if drill.short else 8.0)
    back_at = time.time()  # what is acknowledged later may have been confirmed
    await asyncio.gather(*(cluster.start_standby(name) for name in lost))
    await cluster.until_streaming(1)
    case.healed = time.time()
    await cluster.until_whole()
    case.marks.append(Mark(lost_at, "no standby", back_at))


async def _drop_replies(drill: Drill, stage: Stage, case: Case) -> None:
    repeated = "SELECT count(*) FROM goal_keys WHERE repeats > 0"
    before = await stage.cluster.fetch(repeated)
    at = time.time()
    for _ in range(2 if drill.short else 8):
        stage.database.replies_to_drop = 10
        await asyncio.sleep(drill.random.uniform(0.2, 0.4))
    stage.database.replies_to_drop = 0
    case.marks.append(Mark(at, "replies lost", time.time()))
    case.check("committed adds that were sent again", await stage.cluster.fetch(repeated) - before, ">", 0)


_HOLD = """
CREATE FUNCTION drill_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF get_byte(uuid_send(NEW.key), 15) % 32 = 0 THEN
    PERFORM pg_advisory_xact_lock_shared(1);
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER drill_hold BEFORE INSERT ON goal_keys FOR EACH ROW EXECUTE FUNCTION drill_hold();
"""
"""Whose key it is can be known only when it comes, so it waits for a lock that another session has in its stead."""
_RELEASE = "DROP TRIGGER drill_hold ON goal_keys; DROP FUNCTION drill_hold()"


async def _hold_keys(drill: Drill, stage: Stage, case: Case) -> None:
    at = time.time()
    await _hold(stage, 1 if drill.short else 5)
    case.marks.append(Mark(at, "keys held", time.time()))


async def _hold(stage: Stage, times: int) -> None:
    holder = await stage.cluster.connect()
    await holder.execute(_HOLD)
    for _ in range(times):
        await holder.execute("SELECT pg_advisory_lock(1)")
        await asyncio.sleep(_HELD)
        await holder.execute("SELECT pg_advisory_unlock(1)")
        await asyncio.sleep(_HELD / 2)
    await holder.execute(_RELEASE)
    await holder.close()


async def _lead_to_standby(drill: Drill, stage: Stage, case: Case) -> None:
    await _lead_astray(stage, case, stage.cluster.standbys[0], "read-only")


async def _lead_astray(stage: Stage, case: Case, name: str, what: str) -> None:
    """Lead the service to an instance that is not the primary, for a second and a half."""
    stage.database.route_to([stage.cluster.ports[name]])
    stage.database.sever()
    at = time.time()
    await asyncio.sleep(1.5)
    case.marks.append(Mark(at, what, time.time()))
    stage.database.route_to([stage.cluster.port])
    # Its connections stay, as those of a moved Service do: each user must leave its own.


async def _control_key(drill: Drill, stage: Stage) -> None:
    await stage.clear()
    await stage.serve(1, (MODULE, retry_without_a_key.__name__))
    load = await stage.load(writers(short=drill.short))
    for _ in range(2):
        stage.database.replies_to_drop = 10
        await asyncio.sleep(0.5)
    verdict = await stage.reconcile(await load.stop(), standbys=False)
    drill.control(
        "retry without a key",
        "replies to commits are lost and statements sent again",
        "writes duplicated",
        verdict.duplicated,
    )


async def _control_group(drill: Drill, stage: Stage) -> None:
    await stage.clear()
    await stage.serve(1, (MODULE, let_a_group_fail_together.__name__))
    load = await stage.load(writers(short=False))
    await asyncio.sleep(0.5)
    await _hold(stage, 1)
    attempts = await load.stop()
    drill.control(
        "groups that fail together",
        "another session holds one key in 32, and an add that has to wait takes its group with it",
        "errors shown",
        sum(attempt.shows_error for attempt in attempts),
    )
