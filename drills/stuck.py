"""PostgreSQL runs but cannot do its work: which errors the service gets from it, and which errors users see."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Literal, NamedTuple, Self
from uuid import uuid4

import asyncpg
import httpx2

from drills.broken import (
    MODULE,
    jump_by_an_hour,
    send_nothing_again,
    stamp_goals_itself,
    wait_without_time_limits,
)
from drills.cluster import DrillError
from drills.drill import LONGEST_ANSWER, Case, Drill, observe
from drills.journal import ADD, Attempt
from drills.overload import PACE, set_pace
from drills.scenarios import visitors, writers
from drills.stage import Replica, Stage
from drills.timeline import Mark
from goals.limits import Limits
from tools.polling import until

_RECOVERY = 1.0
_BRIEF, _OUTAGE = 0.7, 1.7
"""Seconds for which requests wait without an error: behind a lock, and without a connection."""
_DISK = 128
"""Megabytes of the primary's disk: its data without WAL uses a third of it."""
_SLOW = 4.0
"""Average seconds that an INSERT takes in a slow database; even half of it is more than a statement may take."""
_LONGEST_WRITE = Limits().write_wait + 0.5
"""Seconds while there is no primary."""
_HOUR = 3600

_ALIVE = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'goals'"
_TERMINATE = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'goals'"
_STRAY = "SELECT count(*) FROM goals WHERE created_at IS NULL OR abs(extract(epoch FROM now() - created_at)) > 1800"


class Probe:
    """Adds goals through the API repeatedly, and checks more of the responses than the load does.

    An asynchronous context manager; the goals have names like those of the load.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.attempts: list[Attempt] = []
        """Compared with the table afterwards, like those of the load."""
        self.with_retry_after = 0
        self.unready = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _ask(self) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            while True:
                await self._add(client)
                for replica in self._stage.replicas:
                    try:
                        ready = await client.get(f"http://127.0.0.1:{replica.ops_port}/readyz")
                    except httpx2.TransportError:
                        self.unready += 1
                    else:
                        self.unready += ready.status_code != 200
                await asyncio.sleep(0.05)

    async def _add(self, client: httpx2.AsyncClient) -> None:
        url = f"http://127.0.0.1:{self._stage.balancer.port}/api/v1/goals"
        uuid = str(uuid4())
        began = time.time()
        status, error = 0, "interrupted"  # as the load test records an attempt that was cut off
        try:
            answer = await client.post(url, json={"goal_name": f"drill {uuid}"}, headers={"Idempotency-Key": uuid})
        except httpx2.TransportError as failure:
            error = str(failure)
        else:
            status, error = answer.status_code, ""
            self.with_retry_after += status == 503 and answer.headers.get("retry-after") == "1"
        finally:
            ended = time.time()
            self.attempts.append(Attempt(ended, ended - began, ADD, uuid, status, error))


class Fault(NamedTuple):
    """A fault of the database, its approximate duration in seconds, and its expected effects.

    `sqlstate` is the code in the service's log, if any; `errors` is whether users see errors.
    """

    explanation: str
    inject: Callable[[Drill, Stage, Case, float], Awaitable[None]]
    seconds: float
    sqlstate: str | None
    errors: Literal["never", "always"]


async def run(drill: Drill) -> None:
    lock = "another session holds an ACCESS EXCLUSIVE lock on the table"
    clients = "other clients use all of PostgreSQL's connections (53300)"
    start = "PostgreSQL is killed and then replays its WAL (57P03)"
    # A second in the queue and one at the lock: after two, a statement that waits for the lock has failed.
    long = 2.5 if drill.short else 8.0
    faults = {
        "terminated": Fault(
            "pg_terminate_backend repeatedly terminates every connection", _terminate, long, None, "never"
        ),
        "brief lock": Fault(f"{lock}, for {_BRIEF:g} s", _lock, _BRIEF, None, "never"),
        "lock": Fault(f"{lock} (57014)", _lock, long, "57014", "always"),
        "no other connection": Fault(
            "other clients use all connections except those of the service",
            _take_the_rest,
            long,
            None,
            "never",
        ),
        "no connection, briefly": Fault(f"{clients}, for {_OUTAGE:g} s", _take_connections, _OUTAGE, "53300", "never"),
        "no connection": Fault(clients, _take_connections, long, "53300", "always"),
        "brief start": Fault(f"{start}, for {_OUTAGE:g} s", _start_slowly, _OUTAGE, "57P03", "never"),
        "start": Fault(start, _start_slowly, long, "57P03", "never"),
        "slow statements": Fault(
            "every INSERT takes longer than the statement timeout (57014)", _slow_down, long, "57014", "always"
        ),
        "disk full": Fault(
            "the disk with the primary's data is full, but not the disk with its WAL (53100)",
            _fill_disk,
            long,
            "53100",
            "always",
        ),
        "clock": Fault(
            "the clock of one of two replicas jumps an hour ahead, and later back; TLS is off",
            _jump,
            long,
            None,
            "never",
        ),
    }
    if drill.short:  # no time for outages that are longer than the retry budget
        del faults["no connection"], faults["start"]
    async with Stage(disk=_DISK) as stage:
        await stage.cluster.execute(PACE)
        await stage.serve(1)
        stage.replicas.append(await stage.start_replica((MODULE, jump_by_an_hour.__name__)))
        stage.balance()
        load = await stage.load(writers(short=drill.short))
        await asyncio.sleep(1)
        probed: list[Attempt] = []
        for name, fault in faults.items():
            if fault.inject is _fill_disk and stage.cluster.no_disk:
                drill.leave_out(name, fault.explanation, stage.cluster.no_disk)
                continue
            case = drill.begin(name, fault.explanation)
            before = _count_logged(stage, fault)
            async with Probe(stage) as probe:
                await fault.inject(drill, stage, case, fault.seconds)
                # Until the service should have recovered, so that the next fault does not prolong this one; in the full
                # form also until the last response, so that an error is seen.
                await asyncio.sleep(_RECOVERY + (0 if drill.short else LONGEST_ANSWER))
            drill.end(case)
            probed += probe.attempts
            # Writes wait for a starting primary, and the checks for its return log nothing.
            if fault.sqlstate is not None and fault.inject is not _start_slowly:
                case.check(
                    f"log lines of the service that name {fault.sqlstate}", _count_logged(stage, fault) - before, ">", 0
                )
            done = sum(attempt.status == 201 for attempt in probe.attempts)
            case.check("probes answered with 201", done, ">", 0)
            if fault.errors == "always":
                case.check("probes answered with 503 and Retry-After: 1", probe.with_retry_after, ">", 0)
            heard = sum(not attempt.is_cut_off for attempt in probe.attempts)
            case.check("probes answered in any other way", heard - done - probe.with_retry_after, "=", 0)
            case.check("times that a replica was not ready", probe.unready, "=", 0)
        attempts = await load.stop()
        stray = await stage.cluster.fetch(_STRAY)
        everything = [*attempts, *probed]
        drill.account(await stage.reconcile(everything), everything)
        for case in drill.cases:
            if not case.not_run:
                _judge(drill, case, attempts, faults[case.name])
        drill.cases[-1].check("goals whose hour is not PostgreSQL's", stray, "=", 0)
        await _control(drill, stage)


def _count_logged(stage: Stage, fault: Fault) -> int:
    return sum(replica.log.read_text().count(f'"sqlstate":"{fault.sqlstate}"') for replica in stage.replicas)


def _judge(drill: Drill, case: Case, attempts: Sequence[Attempt], fault: Fault) -> None:
    case.figures = figures = observe(attempts, case.began, case.ended)
    end = case.healed or case.marks[-1].until
    flow = min((a.ended for a in attempts if a.is_write and a.is_done and a.ended > end), default=float("inf"))
    errors = [a.begun for a in attempts if a.shows_error and case.began <= a.ended < case.ended]
    case.check("time from the fault's end to a write, s", flow - end, "<", _RECOVERY, kind="timing")
    if not drill.short:  # short cases end before a late response would arrive
        case.check(
            "time from its end to the last request that got an error, s",
            max([end, *errors]) - end,
            "<",
            _RECOVERY,
            kind="timing",
        )
    longest = _LONGEST_WRITE if fault.inject is _start_slowly else LONGEST_ANSWER
    case.check("longest response, s", figures.longest_answer_s, "<", longest, kind="timing")
    case.check("errors shown", figures.errors, ">" if fault.errors == "always" else "=", 0)
    drill.draw(case, attempts)


async def _terminate(drill: Drill, stage: Stage, case: Case, seconds: float) -> None:
    began = time.time()
    while time.time() < began + seconds:
        at = time.time()
        await stage.cluster.fetch(_TERMINATE)
        case.marks.append(Mark(at, "terminated", at))
        await asyncio.sleep(drill.random.uniform(0.1, 0.8))


async def _lock(drill: Drill, stage: Stage, case: Case, seconds: float) -> None:
    async with _locked(stage):
        at = time.time()
        await asyncio.sleep(seconds)
    case.marks.append(Mark(at, "locked", time.time()))


@contextlib.asynccontextmanager
async def _locked(stage: Stage) -> AsyncIterator[None]:
    connection = await stage.cluster.connect()
    async with connection.transaction():
        await connection.execute("LOCK TABLE goals IN ACCESS EXCLUSIVE MODE")
        yield
    connection.terminate()


async def _take_the_rest(drill: Drill, stage: Stage, case: Case, seconds: float) -> None:
    async with _others(stage) as taken:
        at = time.time()
        await asyncio.sleep(seconds)
        case.check("connections that other clients took", taken, ">", 0)
        case.check("connections that the service kept", await stage.cluster.fetch(_ALIVE), ">", 0)
    case.marks.append(Mark(at, f"{taken} others", time.time()))


async def _take_connections(drill: Drill, stage: Stage, case: Case, seconds: float) -> None:
    async with _others(stage, leave=False) as taken:
        at = time.time()
        await asyncio.sleep(seconds)
    case.marks.append(Mark(at, f"{taken} others", time.time()))


@contextlib.asynccontextmanager
async def _others(stage: Stage, *, leave: bool = True) -> AsyncIterator[int]:
    """Use all available connections, and without `leave` also those of the service; yield the number."""
    cluster = stage.cluster
    taken: list[asyncpg.Connection] = []
    # One connection for all queries: the server reserves only three for superusers, and a closed one lingers.
    superuser = await cluster.connect()
    try:
        while True:
            try:
                taken.append(
                    await asyncpg.connect(
                        host="127.0.0.1", port=cluster.port, user="goals_user", database="goals_database", ssl=False
                    )
                )
            except asyncpg.TooManyConnectionsError:
                # The service replaces terminated connections; the first to connect gets the place.
                if leave or not await superuser.fetchval(_ALIVE):
                    break
                await superuser.fetchval(_TERMINATE)
        yield len(taken)
    finally:
        for connection in [superuser, *taken]:
            connection.terminate()


async def _start_slowly(drill: Drill, stage: Stage, case: Case, seconds: float) -> None:
    cluster = stage.cluster
    at = time.time()
    await cluster.kill(cluster.primary)
    await cluster.start_slowly(cluster.primary)

    async def starts_up() -> bool:
        with contextlib.suppress(OSError):
            try:
                await cluster.fetch("SELECT 1")
            except asyncpg.CannotConnectNowError:
                return True
            raise DrillError("the primary started immediately")
        return False

    await until(starts_up, "the primary starts up")
    await asyncio.sleep(seconds)
    await cluster.finish_start(cluster.primary)
    case.marks.append(Mark(at, "starting up", time.time()))
    await cluster.until_whole()


async def _slow_down(drill: Drill, stage: Stage, case: Case, seconds: float) -> None:
    at = time.time()
    await set_pace(stage, _SLOW)
    await asyncio.sleep(seconds)
    await set_pace(stage, 0)
    case.marks.append(Mark(at, "slow", time.time()))
    await asyncio.sleep(Limits().statement_timeout)  # statements that have started may still be slow


async def _fill_disk(drill: Drill, stage: Stage, case: Case, seconds: float) -> None:
    at = time.time()
    refused = stage.cluster.read_log().count("No space left on device")
    stage.cluster.fill_disk()

    async def is_noticed() -> bool:
        return stage.cluster.read_log().count("No space left on device") > refused

    await until(is_noticed, "PostgreSQL needs a new block of the full disk")
    await asyncio.sleep(seconds)
    stage.cluster.free_disk()
    case.marks.append(Mark(at, "disk full", time.time()))


async def _jump(drill: Drill, stage: Stage, case: Case, seconds: float) -> None:
    (*_, replica) = stage.replicas
    at = time.time()
    replica.process.send_signal(signal.SIGUSR1)
    await asyncio.sleep(seconds)
    replica.process.send_signal(signal.SIGUSR1)
    until_time = time.time()
    case.marks.append(Mark(at, "an hour ahead", until_time))
    case.check("log lines of that replica that are an hour ahead", _count_ahead(replica, until_time), ">", 0)


def _count_ahead(replica: Replica, now: float) -> int:
    lines = (json.loads(line) for line in replica.log.read_text(encoding="utf-8").splitlines())
    return sum(datetime.fromisoformat(line["time"]).timestamp() > now + _HOUR / 2 for line in lines)


async def _control(drill: Drill, stage: Stage) -> None:
    """Run all controls at the same time, each with its own replica."""
    await stage.clear()
    ways = (send_nothing_again, wait_without_time_limits, stamp_goals_itself)
    await stage.serve(0)
    no_retries, no_limits, own_clock = await asyncio.gather(
        *(stage.start_replica((MODULE, way.__name__)) for way in ways)
    )
    loads = await asyncio.gather(*(stage.load(visitors(6), replica.port) for replica in (no_retries, no_limits)))
    own_clock.process.send_signal(signal.SIGUSR1)
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
        await client.post(f"http://127.0.0.1:{own_clock.port}/api/v1/goals", json={"goal_name": "late"})
    for _ in range(3):
        await stage.cluster.fetch(_TERMINATE)
        await asyncio.sleep(0.2)
    without_retries = await loads[0].stop()
    seconds = LONGEST_ANSWER + 1
    async with _locked(stage):
        await asyncio.sleep(seconds)
    without_limits = await loads[1].stop()
    drill.control(
        "no retries",
        "every connection is terminated three times",
        "requests failed",
        sum(attempt.shows_error for attempt in without_retries),
    )
    drill.control(
        "no time limits",
        f"the table is locked for {seconds:g} s",
        "s for the longest response",
        max(attempt.seconds for attempt in without_limits),
        LONGEST_ANSWER,
    )
    stray = await stage.cluster.fetch(_STRAY)
    explanation = "a replica whose clock is an hour ahead sets the times of goals"
    drill.control("timestamps from the replica", explanation, "goal(s) with a wrong time", stray)
