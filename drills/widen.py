"""An adopted table's ids become bigint while the original Go app, this version and its successor are running."""

import asyncio
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

from drills import ROOT, seed
from drills.cluster import DrillError
from drills.drill import Drill, observe
from drills.journal import Attempt
from drills.migration import (
    LOCK_TIMEOUT,
    LONGEST_WAIT,
    ORIGINAL,
    ROWS,
    TREE,
    Migrators,
    Version,
    add_revision,
    log_waits,
    read_waits,
)
from drills.scenarios import visitors, writers
from drills.stage import Load, Stage
from drills.timeline import Mark
from tools.polling import until

WRITES = 20_000
_SHORT_ROWS = 100_000
_CONTROL_ROWS = 3 * ROWS  # so that it takes long enough on a fast machine too
_LAST_INTEGER = 2**31 - 1
_START_AFRESH = f"""
    DROP SCHEMA IF EXISTS goals_adopted, public CASCADE;
    CREATE SCHEMA public AUTHORIZATION goals_user;
    {seed.TABLE};
    ALTER TABLE goals OWNER TO goals_user
"""
_PLAIN_WAY = """
    BEGIN;
    DROP VIEW public.goals;
    ALTER TABLE goals_adopted.goals ALTER COLUMN id TYPE BIGINT;
    CREATE VIEW public.goals WITH (security_invoker = true) AS SELECT id, goal_name FROM goals_adopted.goals;
    ALTER VIEW public.goals OWNER TO goals_user;
    COMMIT
"""
_TYPE = "SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = 'id'"
_TABLE = "goals_adopted.goals"


async def run(drill: Drill) -> None:
    async with Stage() as stage:
        await log_waits(stage)
        await _adopt(stage, _SHORT_ROWS if drill.short else ROWS)
        successor = Version("its successor", stage.folder / "next")
        revision = add_revision(ROOT, successor.root, f"{LOCK_TIMEOUT * 1000:.0f}ms")
        loads = [
            await stage.load(visitors(16, pause="100ms")),
            await _serve(drill, stage, TREE),
        ]
        migrators = Migrators(stage, successor, revision, number=1)
        try:
            await migrators.start()
            if any(await migrators.finish()):
                raise DrillError("the successor's revision failed")
        finally:
            migrators.kill()
        loads.append(await _serve(drill, stage, successor))
        attempts = await _widen(drill, stage, loads)
        drill.account(await stage.reconcile(attempts), attempts)
        drill.held[-1].check("earlier goals that are missing", await stage.count_missing(), "=", 0)
        await _control(drill, stage)


async def _adopt(stage: Stage, rows: int) -> None:
    """Replace our table with the original Go app's, start the app, and migrate while it runs."""
    await stage.cluster.execute(_START_AFRESH)
    stage.earlier = 0
    await stage.fill(rows)
    await stage.serve(1, ORIGINAL.run(*ORIGINAL.module))
    migrators = Migrators(stage, TREE, TREE.revision, number=1)
    await migrators.start()
    if any(await migrators.finish()):
        raise DrillError("the migration failed")


async def _serve(drill: Drill, stage: Stage, version: Version) -> Load:
    replica = await stage.start_replica(version.run(*version.module))
    return await stage.load(writers(short=drill.short), replica.port)


async def _widen(drill: Drill, stage: Stage, loads: list[Load]) -> list[Attempt]:
    """Stop the first run halfway and resume it; then push the ids past the largest 32-bit integer."""
    case = drill.begin(
        "widen",
        f"the command is stopped halfway and resumed, while {ORIGINAL.name}, this version and its successor run",
    )
    logged = len(stage.cluster.read_log())
    began = time.time()
    process = await _start(stage)
    middle = stage.earlier // 2

    async def is_halfway() -> bool:
        if process.returncode is not None:
            raise DrillError(f"`goals widen` ended on its own: {_read(stage)[-500:]}")
        query = "SELECT count(*) FROM pg_attribute WHERE attrelid = $1::regclass AND attname = 'id_bigint'"
        return bool(
            await stage.cluster.fetch(query, _TABLE)
            and await stage.cluster.fetch(f"SELECT id_bigint IS NOT NULL FROM {_TABLE} WHERE id = $1", middle)  # noqa: S608  a constant
        )

    try:
        async with asyncio.timeout(600):
            while not await is_halfway():
                await asyncio.sleep(0.2)
        process.terminate()
        ended = await process.wait()
        stopped = time.time()
        await asyncio.sleep(1 if drill.short else 5)
        process = await _start(stage)
        resumed = time.time()
        async with asyncio.timeout(600):
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    done = time.time()
    case.marks += [Mark(began, "widen", stopped), Mark(resumed, "resumed", done)]
    drill.say(f"widened {stage.earlier:,} goals in {done - resumed + stopped - began:.1f} s")
    case.check("exit code of the run that was ended", ended, "=", 128 + signal.SIGTERM)
    case.check("exit code of the run that resumed", code, "=", 0)
    case.check("ids are bigint", await stage.cluster.fetch(_TYPE, _TABLE) == "bigint", "=", 1)
    await stage.cluster.execute(f"SELECT setval('goals_adopted.goals_id_seq', {_LAST_INTEGER})")
    await asyncio.sleep(1 if drill.short else 10)
    beyond = await stage.cluster.fetch(f"SELECT count(*) FROM {_TABLE} WHERE id > $1", _LAST_INTEGER)  # noqa: S608  a constant
    case.check("goals with an id beyond 32 bits", beyond, ">", 0)
    drill.end(case)
    waits = read_waits(stage.cluster.read_log()[logged:])
    case.check("longest wait for a lock, s", max(waits, default=0.0), "<=", LONGEST_WAIT, kind="timing")
    by_app, *by_us = await asyncio.gather(*(load.stop() for load in loads))
    attempts = sorted(chain(by_app, *by_us), key=lambda attempt: attempt.ended)
    case.figures = observe(attempts, case.began, case.ended)
    # A 503 in time is allowed; it happens if the machine is too slow for three services and their load.
    case.check("errors shown", case.figures.errors, "=", 0, kind="timing")
    wrong = sum(attempt.shows_error for attempt in by_app)
    case.check("errors that the original Go app showed", wrong, "=", 0, kind="timing")
    if not drill.short:
        writes = observe(attempts, began, done).acknowledged
        case.check("writes while the table was widened", writes, ">=", WRITES)
    drill.draw(case, attempts)
    return attempts


async def _start(stage: Stage) -> asyncio.subprocess.Process:
    with _log(stage).open("a") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "goals", "widen"),
            cwd=ROOT,
            env=stage._variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _log(stage: Stage) -> Path:
    return stage.folder / "widen.log"


def _read(stage: Stage) -> str:
    return _log(stage).read_text(encoding="utf-8")


async def _control(drill: Drill, stage: Stage) -> None:
    for replica in stage.replicas:
        await replica.kill()
    await _adopt(stage, _CONTROL_ROWS)
    load = await stage.load(visitors(16, pause="100ms"))
    logged = len(stage.cluster.read_log())
    await stage.cluster.execute(_PLAIN_WAY)

    async def has_waited() -> bool:
        return bool(read_waits(stage.cluster.read_log()[logged:]))

    await until(has_waited, "a statement waits for the table")
    attempts = await load.stop()
    longest = max(read_waits(stage.cluster.read_log()[logged:]))
    explanation = "ALTER COLUMN … TYPE BIGINT rewrites the table, and all clients wait for it"
    drill.control("ALTER TYPE, in the log", explanation, "s for the longest lock wait", longest, LONGEST_WAIT)
    slow = sum(attempt.shows_error or attempt.seconds > LONGEST_WAIT for attempt in attempts)
    drill.control("ALTER TYPE", "the same statement, as clients see it", "requests failed or late", slow)
