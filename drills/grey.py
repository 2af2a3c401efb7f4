"""Grey failures: processes and connections stay open but do not work, and no closed connection reveals the fault."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import httpx2

from drills.broken import (
    MODULE,
    accept_a_former_primary,
    let_a_group_fail_together,
    read_before_replay,
    retry_without_a_key,
)
from drills.cluster import DrillError
from drills.drill import LONGEST_READ, Case, Drill, observe
from drills.journal import Attempt, find_stale
from drills.operator import Operator
from drills.scenarios import readers, writers
from drills.stage import SECOND, Replica, Stage
from drills.timeline import Mark
from goals.limits import Limits
from tools.polling import until

_READS = 20.0
"""Per second."""
_LONGEST_READ = 1.5
_LONGEST_WRITE = Limits().write_wait + 0.5
"""The time that a write waits for the primary, plus the time to notice its end on two busy cores."""
_FLOW = 1.0
_HELD = 0.6
"""Seconds that a key is locked: much longer than a group waits for it, less than a statement may take."""
_PATIENCE = {
    # The kernel repeats a SYN that was dropped only after a second.
    "black hole": Limits().connect_timeout,
    # This fault has no end: a statement's time limit detects each dead connection.
    "half-open": Limits().command_timeout,
}
_BEHIND = 120.0
_CUT_OFF = "page from the replica that is cut off"
_MAY_REFUSE_READS = {"two primaries", "two failovers", "no rewind"}
"""Cases in which it may be unclear who has the newest state: then no page is better than an old one."""
_NEWEST_UNKNOWN = {"no rewind"}
"""Cases in which an old page cannot be distinguished from the newest: old pages are only counted."""


async def run(drill: Drill) -> None:
    looked: list[Attempt] = []
    faults: dict[str, tuple[str, Callable[[Drill, Stage, Case], Awaitable[None]]]] = {
        "frozen primary": ("SIGSTOP is sent to the primary and all its children, and a standby is promoted", _freeze),
        "zombie primary": ("the frozen primary resumes, and for a while the service is connected to it", _thaw),
        "two primaries": (
            "a frozen primary resumes after another was promoted, and keeps a standby that can confirm its commits",
            _split,
        ),
        "black hole": (
            "the primary's host stops responding and drops every SYN, and a standby is promoted",
            _lose_host,
        ),
        "half-open": ("every existing connection stops responding but stays open; new ones work", _leave_half_open),
        "no standby": ("both standbys are killed, so the primary must not acknowledge any write", _lose_standbys),
        "DNS down": ("host names no longer resolve, and the primary is killed", _lose_names),
        "lost replies": ("commits succeed, but their replies are lost with the connection", _drop_replies),
        "held keys": (f"another session locks one key in 32, for {_HELD:g} s each time", _hold_keys),
        "read-only": ("the database address points to a standby for a while (SQLSTATE 25006)", _lead_to_standby),
    }
    if not drill.short:
        faults |= {
            "standby behind": (
                f"one standby receives nothing for {_BEHIND:g} s, then the primary is killed",
                _fall_behind,
            ),
            "two failovers": (
                "the second of three primaries resumes with longer WAL than the third, which one replica cannot reach",
                partial(_fail_over_twice, looked=looked),
            ),
            "no rewind": (
                "without pg_rewind, a former primary with longer WAL becomes a standby, and the primary is killed",
                _skip_rewind,
            ),
        }
    async with Stage(standbys=True) as stage:
        await stage.serve(2)
        reading = await stage.load(readers(_READS))
        writing = await stage.load(writers(short=drill.short, waiting=True))
        await asyncio.sleep(1)
        for name, (explanation, inject) in faults.items():
            case = drill.begin(name, explanation)
            await inject(drill, stage, case)
            # Long enough for all pending responses.
            await asyncio.sleep(0.6 if drill.short else 2.0)
            drill.end(case)
        attempts = [*await writing.stop(), *await reading.stop(), *looked]
        attempts.sort(key=lambda attempt: attempt.ended)
        drill.account(await stage.reconcile(attempts), attempts)
        ids = await stage.read_ids()
        stale = find_stale(attempts, ids)
        for case in drill.cases:
            _judge(case, attempts, stale)
            drill.draw(case, attempts)
        await _control_quorum(drill, stage)
        await _control_key(drill, stage)
        await _control_group(drill, stage)


def _operator(drill: Drill, stage: Stage) -> Operator:
    """Return an operator with the drill's pace; the short form promotes immediately: `failover` covers the pace."""
    return Operator(drill, stage, "at-once" if drill.short else None)


def _judge(case: Case, attempts: Sequence[Attempt], stale: Sequence[Attempt]) -> None:
    case.figures = figures = observe(attempts, case.began, case.ended)
    (mark,) = case.marks
    flow = min((a.ended for a in attempts if a.is_write and a.is_done and a.ended > mark.until), default=float("inf"))
    patience = _PATIENCE.get(case.name, 0)
    late = max(flow - (case.healed or mark.until), 0)
    case.check("time from the fault's end to a write, s", late, "<", _FLOW + patience, kind="timing")
    case.check("longest response, s", figures.longest_answer_s, "<", _LONGEST_WRITE, kind="timing")
    in_case = [a for a in attempts if case.began <= a.ended < case.ended and not a.is_cut_off]
    seen = [a for a in in_case if a.is_read]
    reads = [a for a in seen if a.step != _CUT_OFF]
    refused = sum(a.shows_error for a in reads)
    old = sum(case.began <= a.ended < case.ended and a.step != _CUT_OFF for a in stale)
    if case.name not in _MAY_REFUSE_READS:
        case.check("errors shown", figures.errors, "=", 0)
        case.check(LONGEST_READ, max((a.seconds for a in reads), default=0.0), "<=", _LONGEST_READ, kind="timing")
    else:
        case.explanation += f"; {refused} of {len(reads)} pages and lists refused"
    if case.name in _NEWEST_UNKNOWN:
        case.explanation += f", {old} that lack a write acknowledged earlier"
    else:
        case.check("pages and lists that lack a write acknowledged earlier", old, "=", 0)
    if cut_off := [a for a in seen if a.step == _CUT_OFF]:
        shown = sum(a.is_done for a in cut_off)
        unaware = sum(a.step == _CUT_OFF for a in stale)
        case.explanation += (
            f"; of {len(cut_off)} pages from the replica that is cut off, {shown} were shown, and "
            f"{unaware} of these lack a write acknowledged earlier"
        )
    if case.name in {"zombie primary", "two primaries", "no standby"}:
        tried = [a for a in attempts if a.begun < mark.until and a.ended > mark.at and a.is_write]
        case.check("writes that no standby could confirm", len(tried), ">", 0)
        # Not counting responses that were already on their way when the fault began.
        kept = [a for a in tried if a.is_done and a.ended < mark.until and max(a.begun, a.ended - 1) > mark.at]
        case.check("of these, acknowledged", len(kept), "=", 0)


async def _freeze(drill: Drill, stage: Stage, case: Case) -> None:
    """Freeze the primary, and leave it frozen: it becomes the zombie of the next case."""
    frozen_at = time.time()
    stage.cluster.freeze(stage.cluster.primary)
    event = await _operator(drill, stage).hand_over("kill", frozen_at)
    case.marks.append(Mark(frozen_at, "frozen", event.routed))
    await stage.cluster.until_streaming(1)
    await asyncio.sleep(1)


async def _thaw(drill: Drill, stage: Stage, case: Case) -> None:
    cluster = stage.cluster
    (zombie,) = cluster.frozen
    cluster.thaw(zombie)
    await _lead_astray(stage, case, zombie, "zombie")
    await cluster.kill(zombie)
    await cluster.rejoin(zombie)
    await cluster.until_whole()


async def _split(drill: Drill, stage: Stage, case: Case) -> None:
    """Promote one standby and leave the other with the former primary, which resumes."""
    cluster = stage.cluster
    careless = await stage.start_replica((MODULE, accept_a_former_primary.__name__), DB_HOST=SECOND)
    zombie, successor, left = await _freeze_with_a_standby(stage)
    await cluster.promote([successor])
    stage.database.route_to([cluster.port])
    await asyncio.sleep(1.5)  # until every replica has looked for a newer timeline
    cluster.thaw(zombie)
    await _lead_astray(stage, case, zombie, "two primaries")
    stage.second.route_to([cluster.ports[zombie]])
    lost = await _add_to(careless, stage)
    await careless.kill()
    stage.second.route_to([cluster.port])
    await cluster.kill(zombie)
    await asyncio.gather(cluster.rebuild(left), cluster.rebuild(zombie))
    case.healed = time.time()
    await cluster.until_whole()
    drill.control(
        "accept a former primary",
        "the zombie keeps a standby, and one replica accepts it as the primary",
        "acknowledged writes lost",
        len(lost - set(await stage.read_names())),
    )


async def _freeze_with_a_standby(stage: Stage) -> tuple[str, str, str]:
    """Freeze the primary; return its name, that of the best standby, and that of the other one."""
    cluster = stage.cluster
    frozen, standbys = cluster.primary, cluster.standbys
    cluster.freeze(frozen)
    await asyncio.sleep(0.3)  # what it has sent arrives
    best = await cluster.find_best(standbys)
    (other,) = set(standbys) - {best}
    # So that it waits for the frozen primary even on a busy machine: otherwise it would look for another timeline.
    await cluster.execute("ALTER SYSTEM SET wal_receiver_timeout = '1min'", name=other)
    await cluster.fetch("SELECT pg_reload_conf()", name=other)
    return frozen, best, other


async def _add_to(replica: Replica, stage: Stage) -> set[str]:
    """Add goals through one replica; return the names of the acknowledged ones."""
    names = [f"careless {number}" for number in range(5)]
    async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
        url = f"http://127.0.0.1:{replica.port}/api/v1/goals"
        adding = (client.post(url, json={"goal_name": name}) for name in names)
        answers = await asyncio.gather(*adding, return_exceptions=True)
    created = httpx2.codes.CREATED
    return {
        name
        for name, answer in zip(names, answers, strict=True)
        if isinstance(answer, httpx2.Response) and answer.status_code == created
    }


async def _lose_host(drill: Drill, stage: Stage, case: Case) -> None:
    cluster = stage.cluster
    lost, lost_at = cluster.primary, time.time()
    for way in (*stage.services, stage.instances[lost]):
        await way.swallow()
    stage.route_to([])
    cluster.freeze(lost)
    handing_over = asyncio.create_task(_operator(drill, stage).hand_over("kill", lost_at))
    await asyncio.sleep(1)
    for way in stage.services:
        await way.reappear()
    event = await handing_over
    case.marks.append(Mark(lost_at, "black hole", event.routed))
    await cluster.kill(lost)
    await stage.instances[lost].reappear()
    await cluster.rejoin(lost)
    await cluster.until_whole()


async def _leave_half_open(drill: Drill, stage: Stage, case: Case) -> None:
    at = time.time()
    stage.database.silence()
    # This fault has no end: each user must find out that its connection is dead.
    case.marks.append(Mark(at, "half-open", at))
    await asyncio.sleep(2)


async def _lose_standbys(drill: Drill, stage: Stage, case: Case) -> None:
    cluster = stage.cluster
    lost = cluster.standbys
    for name in lost:
        await cluster.kill(name)
    lost_at = time.time()
    await asyncio.sleep(3.5 if drill.short else 8.0)
    back_at = time.time()  # later acknowledgements may be confirmed
    await asyncio.gather(*(cluster.start_standby(name) for name in lost))
    await cluster.until_streaming(1)
    case.healed = time.time()
    await cluster.until_whole()
    case.marks.append(Mark(lost_at, "no standby", back_at))


async def _fall_behind(drill: Drill, stage: Stage, case: Case) -> None:
    cluster = stage.cluster
    await cluster.detach(cluster.standbys[:1])
    await asyncio.sleep(_BEHIND)
    lost, lost_at = cluster.primary, time.time()
    stage.route_to([])
    await cluster.kill(lost)
    event = await _operator(drill, stage).hand_over("kill", lost_at)
    case.marks.append(Mark(lost_at, "kill", event.routed))
    case.healed = event.possible
    await cluster.rejoin(lost)
    await cluster.until_whole()


async def _lose_names(drill: Drill, stage: Stage, case: Case) -> None:
    cluster = stage.cluster
    at = time.time()
    stage.take_names()
    await asyncio.sleep(0.5)
    lost, lost_at = cluster.primary, time.time()
    stage.route_to([])
    await cluster.kill(lost)
    await _operator(drill, stage).hand_over("kill", lost_at)
    await asyncio.sleep(1)
    stage.write_names()
    case.marks.append(Mark(at, "DNS down", time.time()))
    await cluster.rejoin(lost)
    await cluster.until_whole()


async def _fail_over_twice(drill: Drill, stage: Stage, case: Case, looked: list[Attempt]) -> None:
    """Leave a replica that only reaches the primary of the middle timeline and a standby of its successor."""
    cluster = stage.cluster
    at = time.time()
    first = cluster.primary
    await cluster.kill(first)
    await cluster.promote()
    stage.route_to([cluster.port])
    await cluster.rejoin(first)
    await cluster.until_whole()
    zombie, successor, _ = cluster.primary, *cluster.standbys
    names = stage.write_names(without=successor)
    cut_off = await stage.start_replica(DB_HOST=SECOND, DRILL_NAMES=str(names))
    await _succeed(stage, successor)
    stage.second.route_to([])
    stage.second.sever()
    cluster.thaw(zombie)
    await cluster.lengthen_log(zombie)
    looked += await stage.look(cut_off, 3, _CUT_OFF)
    await cut_off.kill()
    await cluster.kill(zombie)
    stage.second.route_to([cluster.port])
    case.marks.append(Mark(at, "two failovers", time.time()))
    await cluster.rejoin(zombie)
    await cluster.until_whole()


async def _succeed(stage: Stage, successor: str) -> None:
    """Freeze the primary and promote this standby, which the other one follows."""
    cluster = stage.cluster
    (other,) = set(cluster.standbys) - {successor}
    await cluster.detach([other])  # so that the successor has every commit
    await asyncio.sleep(0.3)
    cluster.freeze(cluster.primary)
    await cluster.promote([successor])
    stage.database.route_to([cluster.port])
    cluster.follow([other])
    await cluster.until_streaming(1)
    await asyncio.sleep(1)


async def _skip_rewind(drill: Drill, stage: Stage, case: Case) -> None:
    """Let a former primary with longer WAL report that it is the standby that has received the most WAL."""
    cluster = stage.cluster
    at = time.time()
    former, successor, other = cluster.primary, *cluster.standbys
    await _succeed(stage, successor)
    cluster.thaw(former)
    await cluster.lengthen_log(former)
    await cluster.stop(former)
    await cluster.start_standby(former, archive=False)

    async def has_asked() -> bool:
        return bool(await cluster.fetch("SELECT pg_last_wal_receive_lsn() IS NOT NULL", name=former))

    await until(has_asked, f"{former} requests a stream")
    await asyncio.sleep(1)
    stage.route_to([])
    await cluster.kill(successor)
    await asyncio.sleep(2)
    await cluster.kill(former)
    await cluster.promote([other])
    stage.route_to([cluster.port])
    case.marks.append(Mark(at, "no rewind", time.time()))
    try:
        await cluster.start_standby(former)
    except DrillError:
        case.explanation += "; once it knows the newer timeline, PostgreSQL refuses to start it"
    await asyncio.gather(cluster.rebuild(former), cluster.rejoin(successor))
    case.healed = time.time()
    await cluster.until_whole()


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
"""Keys are not known in advance, so inserts wait instead for an advisory lock that another session holds."""
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
    """Route the service to an instance that is not the primary, for a second and a half."""
    stage.database.route_to([stage.cluster.ports[name]])
    stage.database.sever()
    at = time.time()
    await asyncio.sleep(1.5)
    case.marks.append(Mark(at, what, time.time()))
    stage.database.route_to([stage.cluster.port])
    # Its connections stay open, as with a Service that has moved: each user must close its own.


async def _control_quorum(drill: Drill, stage: Stage) -> None:
    """One standby is behind, and the other has received everything but not replayed it yet; then it is frozen too."""
    cluster = stage.cluster
    await stage.clear()
    await stage.serve(0)
    sound, eager, content = await asyncio.gather(
        stage.start_replica(),
        stage.start_replica((MODULE, read_before_replay.__name__)),
        stage.start_replica(DB_STANDBY_REPLIES="1"),
    )
    case = drill.begin("few replies", "one standby is behind; the other has not replayed everything and is then frozen")
    load = await stage.load(writers(short=True, waiting=True), sound.port, patience=1)
    behind, ahead = cluster.standbys
    await cluster.detach([behind])
    await asyncio.sleep(1)
    cluster.hold_replay(ahead)
    await asyncio.sleep(1)
    lost, lost_at = cluster.primary, time.time()
    stage.route_to([])
    await cluster.kill(lost)
    early = await stage.look(eager, 0.5)
    cluster.resume_replay(ahead)
    late = await stage.look(sound, 1)
    cluster.freeze(ahead)
    of_one, of_few = await asyncio.gather(stage.look(content, 1), stage.look(sound, 1))
    cluster.thaw(ahead)
    attempts = await load.stop()
    await cluster.promote()
    stage.route_to([cluster.port])
    case.marks.append(Mark(lost_at, "kill", time.time()))
    drill.end(case)
    ids = await stage.read_ids()
    case.check("pages from a healthy replica", sum(a.is_done for a in late), ">", 0)
    old = len(find_stale([*attempts, *late, *of_few], ids))
    case.check("of these, lacking a write acknowledged earlier", old, "=", 0)
    case.check("pages shown although too few servers replied", sum(a.is_done for a in of_few), "=", 0)
    drill.control(
        "no wait for replay",
        "the standby that has received the most WAL is read before it has replayed everything",
        "pages without an acknowledged write",
        len(find_stale([*attempts, *early], ids)),
    )
    drill.control(
        "one reply too few",
        "a standby is read although it is the only one that replies",
        "pages without an acknowledged write",
        len(find_stale([*attempts, *of_one], ids)),
    )
    await cluster.rejoin(lost)
    await cluster.until_whole()


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
        "replies to commits are lost, and statements are retried without a key",
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
        "another session locks one key in 32, and an add that has to wait makes its whole group fail",
        "requests failed",
        sum(attempt.shows_error for attempt in attempts),
    )
