"""More requests arrive than can be served; the database gets slow; some clients never finish their requests."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import httpx2

from drills.broken import MODULE, wait_without_a_gate
from drills.drill import Drill, median, observe, percentile
from drills.journal import Attempt
from drills.scenarios import arrivals
from drills.stage import Load, Replica, Stage
from drills.timeline import Mark

TIMES = 6
"""The overload as a multiple of the capacity."""
_STATEMENT = 0.2
"""Average seconds that an INSERT uses its connection, so that the database is the bottleneck and two cores can generate
six times as much load as it can take."""
_SLOW = 3
"""Factor by which the slow database is slower."""
_POOL = 10
_RECOVERY = 1.0
_LIVEZ = 0.05
_REJECTION = 0.01
_SLOWDOWN = 2.0
_SETTLE = 2.0
"""Seconds until the service has noticed a standing queue and shortened it."""

PACE = """
CREATE TABLE drill_pace (seconds float NOT NULL);
INSERT INTO drill_pace VALUES (0);
CREATE FUNCTION drill_work() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  PERFORM pg_sleep(seconds * (0.5 + random())) FROM public.drill_pace;
  RETURN NEW;
END $$;
CREATE TRIGGER drill_work BEFORE INSERT ON goals FOR EACH ROW EXECUTE FUNCTION drill_work();
"""


class Knee(NamedTuple):
    """The highest tested rate without a rejection, and the 99th percentile of the response times at it."""

    rate: float
    p99: float


async def run(drill: Drill) -> None:
    async with Stage() as stage:
        await stage.cluster.execute(PACE)
        await stage.serve(1)
        await set_pace(stage, _STATEMENT)
        knee = await _find_capacity(drill, stage)
        await _overload(drill, stage, knee)
        await _slow_down(drill, stage, knee)
        await _drip(drill, stage, knee)
        await _control(drill, stage, knee)


async def set_pace(stage: Stage, seconds: float) -> None:
    """Set how many seconds an INSERT uses its connection, on average."""
    await stage.cluster.fetch("UPDATE drill_pace SET seconds = $1", seconds)


class Prober:
    """Requests `/livez` twenty times a second, and records how long each response took."""

    def __init__(self, replica: Replica) -> None:
        self._url = f"http://127.0.0.1:{replica.ops_port}/livez"
        self.seconds: list[float] = []
        self._task = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            while True:
                begun = time.perf_counter()
                (await client.get(self._url)).raise_for_status()
                self.seconds.append(time.perf_counter() - begun)
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def _take(drill: Drill, stage: Stage, load: Load, prober: Prober | None = None) -> list[Attempt]:
    """Wait for the load's end, compare the responses that its clients got with the table, and clear the table."""
    code = await load.wait()
    if prober is not None:
        await prober.stop()  # before this process is busy with the journal
    if code:
        drill.say("the load generator was short of CPU time, which may affect these times")
    attempts = await load.finish()
    drill.account(await stage.reconcile(attempts, standbys=False), attempts)
    await stage.clear()
    return attempts


async def _find_capacity(drill: Drill, stage: Stage) -> Knee:
    """Bisect between a rate without rejections and a rate with rejections."""
    case = drill.begin("capacity", "the highest request rate without a rejection, found by bisection")
    ideal = _POOL / _STATEMENT
    low, high = 0.0, 1.4 * ideal
    seconds = 2.0 if drill.short else 10.0
    knee = Knee(0, 0)
    for _ in range(3 if drill.short else 6):
        rate = (low + high) / 2
        load = await stage.load(arrivals([(seconds, rate)]), stage.replicas[0].port)
        attempts = await _take(drill, stage, load)
        rejected = sum(attempt.shows_error for attempt in attempts)
        p99 = percentile((a.seconds for a in attempts if a.is_done), 0.99)
        drill.say(f"{rate:.0f}/s: {rejected} rejected, p99 {p99 * 1000:.0f} ms")
        if rejected:
            high = rate
        else:
            low, knee = rate, Knee(rate, p99)
            case.figures = observe(attempts, attempts[0].ended, attempts[-1].ended)
    if not knee.rate:
        raise TimeoutError(f"even {high:.0f} requests per second were not all accepted: is the machine busy?")
    drill.end(case)
    case.check("capacity, requests per second", knee.rate, ">", 0)
    case.check("p99 at capacity, s", knee.p99, ">", 0)
    return knee


async def _overload(drill: Drill, stage: Stage, knee: Knee) -> None:
    case = drill.begin("overload", f"requests arrive at {TIMES} times the capacity, and then at half of it")
    before, peak, after = (0.5, 4, 1.5) if drill.short else (5, 20, 10)
    steps = [(before, knee.rate / 2), (peak, TIMES * knee.rate), (after, knee.rate / 2)]
    load = await stage.load(arrivals(steps), stage.replicas[0].port)
    prober = Prober(stage.replicas[0])
    attempts = await _take(drill, stage, load, prober)
    started = attempts[0].begun
    case.began, case.ended = started, started + before + peak + after
    case.marks.append(Mark(started + before, f"{TIMES} times the capacity", started + before + peak))
    inside = [a for a in attempts if started + before + _SETTLE <= a.begun < started + before + peak]
    accepted = [a.seconds for a in inside if a.is_done]
    rejected = [a.seconds for a in inside if a.status == 503]
    case.figures = observe(attempts, case.began, case.ended)
    case.check("accepted at the peak", len(accepted), ">", 0)
    case.check(
        f"p99 of accepted requests after {_SETTLE:g} s at the peak, as a multiple of that at capacity",
        percentile(accepted, 0.99) / knee.p99,
        "<=",
        _SLOWDOWN,
        kind="timing",
    )
    case.check("rejected at the peak", len(rejected), ">", 0)
    case.check("median time to a rejection, s", median(rejected), "<", _REJECTION, kind="timing")
    case.check("other responses", len(inside) - len(accepted) - len(rejected), "=", 0)
    case.check(
        "time to recover, s", _time_to_recover(attempts, started + before + peak, knee), "<", _RECOVERY, kind="timing"
    )
    case.check("longest response of /livez, s", max(prober.seconds), "<", _LIVEZ, kind="timing")
    drill.draw(case, attempts)


async def _slow_down(drill: Drill, stage: Stage, knee: Knee) -> None:
    case = drill.begin("slow database", f"every statement takes {_SLOW} times as long for a while")
    before, slow, after = (0.5, 2, 1.5) if drill.short else (5, 10, 10)
    load = await stage.load(arrivals([(before + slow + after, knee.rate * 0.6)]), stage.replicas[0].port)
    prober = Prober(stage.replicas[0])
    case.began = time.time()
    await asyncio.sleep(before)
    at = time.time()
    await set_pace(stage, _SLOW * _STATEMENT)
    await asyncio.sleep(slow)
    await set_pace(stage, _STATEMENT)
    until = time.time()
    attempts = await _take(drill, stage, load, prober)
    drill.end(case)
    case.marks.append(Mark(at, "slow", until))
    case.figures = observe(attempts, case.began, case.ended)
    case.check("rejected while it was slow", sum(a.status == 503 for a in attempts if at < a.begun < until), ">", 0)
    case.check("time to recover, s", _time_to_recover(attempts, until, knee), "<", _RECOVERY, kind="timing")
    case.check("longest response of /livez, s", max(prober.seconds), "<", _LIVEZ, kind="timing")
    drill.draw(case, attempts)


def _time_to_recover(attempts: Sequence[Attempt], until: float, knee: Knee) -> float:
    """Return the seconds from the fault's end until the last request that was refused or too slow was sent."""
    slow = _SLOWDOWN * knee.p99
    # Requests that still waited when the load ended count too, if they had waited for that long.
    return max(
        (a.begun - until for a in attempts if a.begun > until and (a.shows_error or a.seconds > slow)), default=0.0
    )


async def _drip(drill: Drill, stage: Stage, knee: Knee) -> None:
    case = drill.begin("slow clients", "some clients stall or send requests very slowly; others behave normally")
    replica = stage.replicas[0]
    alone, beside = (1, 5) if drill.short else (5, 10)
    load = await stage.load(arrivals([(alone + beside, knee.rate / 2)]), replica.port)
    case.began = time.time()
    await asyncio.sleep(alone)
    prober = Prober(replica)
    at = time.time()
    kinds = ["stalled body"] * 100 + ["dripped body"] * 100 + ["dripped head"] * 50
    # They come within a second, not at the same moment.
    ends = await asyncio.gather(*(_send_slowly(replica, kind, drill.random.random()) for kind in kinds))
    until = time.time()
    attempts = await _take(drill, stage, load, prober)
    drill.end(case)
    case.marks.append(Mark(at, "slow clients", until))
    case.figures = observe(attempts, case.began, case.ended)
    bodies = [end for end in ends if end.kind != "dripped head"]
    case.check("slow bodies not answered with 408", sum(end.status != 408 for end in bodies), "=", 0)
    case.check("longest lifetime of a slow body, s", max(end.seconds for end in bodies), "<", 2.5, kind="timing")
    case.check("longest lifetime of a slow head, s", max(end.seconds for end in ends), "<", 6.0, kind="timing")
    case.check("normal requests refused or failed", sum(a.shows_error for a in attempts), "=", 0)
    with_them = percentile((a.seconds for a in attempts if at < a.begun < until), 0.99)
    without = percentile((a.seconds for a in attempts if a.begun < at), 0.99)
    case.check(
        "p99 of normal requests, as a multiple of that without slow clients",
        with_them / without,
        "<=",
        _SLOWDOWN,
        kind="timing",
    )
    case.check("longest response of /livez, s", max(prober.seconds), "<", _LIVEZ, kind="timing")
    drill.draw(case, attempts)


class End(NamedTuple):
    """How the service ended a slow client: the status of the response, 0 for none, and after how many seconds."""

    kind: str
    status: int
    seconds: float


async def _send_slowly(replica: Replica, kind: str, delay: float) -> End:
    await asyncio.sleep(delay)
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    head = b"POST /add_goal HTTP/1.1\r\nHost: localhost\r\n"
    rest = (
        b""
        if kind == "dripped head"
        else (b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 99\r\n\r\n")
    )
    writer.write(head + rest)
    answer = asyncio.create_task(reader.read(64))
    while not answer.done() and time.perf_counter() - begun < 15:
        if kind != "stalled body" and not writer.is_closing():
            writer.write(b"X-Drip: drop\r\n" if kind == "dripped head" else b"a")
        await asyncio.wait({answer}, timeout=0.5)
    try:
        line = await answer
    except ConnectionError:
        line = b""
    writer.close()
    return End(kind, int(line.split()[1]) if line else 0, time.perf_counter() - begun)


async def _control(drill: Drill, stage: Stage, knee: Knee) -> None:
    await stage.serve(1, (MODULE, wait_without_a_gate.__name__))
    before, peak, after = 0.5, 1, 2
    steps = [(before, knee.rate / 2), (peak, TIMES * knee.rate), (after, knee.rate / 2)]
    load = await stage.load(arrivals(steps), stage.replicas[0].port, patience=1)
    attempts = await load.finish()
    until = min(attempt.begun for attempt in attempts) + before + peak
    recovery = _time_to_recover(attempts, until, knee)
    explanation = "the overload case, with an unbounded queue"
    drill.control("no gate", explanation, "s or more to recover", recovery, _RECOVERY)
