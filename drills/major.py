"""PostgreSQL is upgraded to its next major version under load: in place, and by replication to a second cluster."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from drills.cluster import Cluster, find_programs
from drills.drill import Case, Drill, observe
from drills.journal import Attempt
from drills.restore import ENDED_EARLY, RESTORED, Marker, Store, judge, mark_time
from drills.scenarios import writers
from drills.stage import Load, Stage
from drills.timeline import Mark
from goals import embedded
from tools.polling import until

FORMER = "16"
WRITES = 20_000
"""Minimum of acknowledged writes for each method."""
DOWNTIME = 2.0
"""Seconds that a switch to a second cluster may delay writers: less than the time for which statements are retried."""
_FLOW = 1.0, 4.0
"""Seconds of load between two steps, in the short form and in full."""
_LOST_REPLIES = 1_000_000
"""More than any number of commits: every reply is lost."""
_LOSS = 0.3
"""Seconds for which every reply is lost before all instances stop."""
_SEQUENCES = """
    SELECT format('SELECT setval(%L, %s)', format('%I.%I', schemaname, sequencename), last_value)
    FROM pg_sequences WHERE last_value IS NOT NULL
"""


class Ids(NamedTuple):
    """The state of ids and keys at a moment, from which later ids and repeats are counted."""

    at: float
    last: int
    repeats: int


async def run(drill: Drill) -> None:
    async with Stage(major=FORMER) as stage:
        await _leave_the_first_timeline(stage)
        store = Store(stage.cluster, "former")
        await store.archive()
        await _fill(drill, stage)
        await stage.serve(2)
        async with Cluster() as second:
            await _move_to_a_second_cluster(drill, stage, second)
        await stage.clear()
        await _fill(drill, stage)
        await _upgrade_in_place(drill, stage, store)


async def _leave_the_first_timeline(stage: Stage) -> None:
    """Perform a switchover in the former cluster, because both methods lead to a cluster on its first timeline."""
    cluster = stage.cluster
    first = cluster.primary
    await cluster.stop(first)
    await cluster.promote()
    stage.database.route_to([cluster.port])
    await cluster.rejoin(first, rewind=False)
    await cluster.until_whole()


async def _fill(drill: Drill, stage: Stage) -> None:
    stage.earlier = 0
    await stage.fill(10_000 if drill.short else 500_000)
    await stage.cluster.execute("ANALYZE")


async def _flow(drill: Drill) -> None:
    await asyncio.sleep(_FLOW[not drill.short])


async def _until_enough(drill: Drill, load: Load) -> None:
    """In the full form, wait until enough writes must have been acknowledged."""
    if not drill.short:

        async def are_enough() -> bool:
            return load.count() > 1.05 * WRITES

        await until(are_enough, f"{WRITES:,} writes", 300)


# Ids and keys.


async def _read_ids(cluster: Cluster) -> Ids:
    last = await cluster.fetch("SELECT last_value FROM goals_id_seq")
    repeats = await cluster.fetch("SELECT coalesce(sum(repeats), 0)::bigint FROM goal_keys")
    return Ids(time.time(), last, repeats)


async def _check_ids(case: Case, cluster: Cluster, before: Ids) -> None:
    """Check that goals added after a switch have new ids, and that keys from before it are still known."""
    since = "CAST(to_timestamp($1) AS timestamptz)"
    new = f"SELECT count(*) FROM goals WHERE created_at > {since} AND id"  # noqa: S608  constants
    case.check("goals added after the switch", await cluster.fetch(f"{new} > $2", before.at, before.last), ">", 0)
    case.check(
        "of these, with an id from before the switch",
        await cluster.fetch(f"{new} <= $2", before.at, before.last),
        "=",
        0,
    )
    repeats = f"SELECT coalesce(sum(repeats), 0)::bigint FROM goal_keys WHERE created_at <= {since}"  # noqa: S608  constants
    known = await cluster.fetch(repeats, before.at) - before.repeats
    case.check("adds committed before the switch and repeated after it", known, ">", 0)


# In place.


async def _upgrade_in_place(drill: Drill, stage: Stage, former: Store) -> None:
    cluster = stage.cluster
    new = Store(cluster, "new")
    try:
        await former.back_up()
        load = await stage.load(writers(short=drill.short, waiting=True, alone=True))
        await _flow(drill)
        case = await _upgrade(drill, stage, new)
        at = time.time()
        await new.back_up()
        case.marks.append(Mark(at, "base backup", time.time()))
        await _flow(drill)
        marker = mark_time("moment after")
        await _until_enough(drill, load)
        await _flow(drill)
        drill.end(case)
        attempts = await load.stop()
        drill.account(await stage.reconcile(attempts), attempts)
        await _judge_upgrade(drill, stage, case, attempts)
        await new.until_archived()
        await _restore_afterwards(drill, stage, new, attempts, marker)
        await _restore_across(drill, stage, former, marker)
    finally:
        await cluster.kill(RESTORED)


async def _upgrade(drill: Drill, stage: Stage, store: Store) -> Case:
    """Stop everything, upgrade the first instance's files, start it, and clone the standbys."""
    cluster = stage.cluster
    case = drill.begin(
        "in place", f"all instances stopped, pg_upgrade --link from {FORMER} to {embedded.VERSION}, standbys cloned"
    )
    await _flow(drill)
    # Clients do not learn of commits from now on, and repeat their requests.
    stage.database.replies_to_drop = _LOST_REPLIES
    began = time.time()
    await asyncio.sleep(_LOSS)
    await cluster.stop(cluster.primary)
    stage.database.replies_to_drop = 0
    await asyncio.gather(*(cluster.stop(name) for name in cluster.standbys))
    stopped = time.time()
    await _upgrade_files(cluster, store)
    upgraded = time.time()
    await cluster.start(cluster.primary)
    started = time.time()
    before = await _read_ids(cluster)
    planned = await cluster.fetch("SELECT reltuples FROM pg_class WHERE oid = to_regclass('goals')")
    cloned = []
    for name in cluster.standbys:
        shutil.rmtree(cluster._data(name))
        await cluster._clone(name)
        cloned.append(time.time())
    address = ("-h", "127.0.0.1", "-p", str(cluster.port), "-U", "postgres")
    await cluster._run("vacuumdb", *address, "--analyze-in-stages", "--missing-stats-only", "goals_database")
    case.marks += [
        Mark(began, "stop", stopped),
        Mark(stopped, "pg_upgrade", upgraded),
        Mark(upgraded, "start", started),
        Mark(started, "clone", cloned[-1]),
    ]
    case.explanation += (
        f": {stopped - began:.1f} s to stop, {upgraded - stopped:.1f} s for initdb and pg_upgrade, "
        f"{started - upgraded:.1f} s to start, {cloned[0] - started:.1f} s for the first standby"
    )
    major = int(await cluster.fetch("SHOW server_version_num")) // 10_000
    case.check("major version now", major, "=", int(embedded.VERSION))
    case.check("rows in the planner's statistics before any ANALYZE", planned, ">", 0)
    await _flow(drill)
    await _check_ids(case, cluster, before)
    return case


async def _upgrade_files(cluster: Cluster, store: Store) -> None:
    """Replace the primary's data with the new version's; they share files, so the former data cannot be used again."""
    place = cluster._data(cluster.primary)
    former, new = (place.with_name(f"{place.name}-{version}") for version in ("former", "new"))
    programs, cluster._programs = cluster._programs, find_programs(embedded.VERSION)
    cluster._major = embedded.VERSION
    await cluster._init(new)
    shutil.copy(place / "node.conf", new)
    cluster._give(new / "node.conf")
    both = ("-b", programs, "-B", cluster._programs, "-d", place, "-D", new)
    await cluster._run("pg_upgrade", *both, "-U", "postgres", "--link", "--no-sync", "-s", new, cwd=new)
    # Another archive folder: WAL file names continue where the former ones ended, on the same timeline.
    _write_settings(new / "postgresql.auto.conf", store.open())
    place.rename(former)
    new.rename(place)


def _write_settings(file: Path, settings: dict[str, str]) -> None:
    with file.open("a", encoding="ascii") as lines:
        lines.writelines(f"{setting} = '{value}'\n" for setting, value in settings.items())


async def _judge_upgrade(drill: Drill, stage: Stage, case: Case, attempts: Sequence[Attempt]) -> None:
    case.figures = observe(attempts, case.began, case.ended)
    case.explanation += f"; writers waited for {case.figures.write_gap_s:.1f} s"
    case.check("earlier goals that are missing", await stage.count_missing(), "=", 0)
    case.check("processes of the service that ended", _count_ended(stage), "=", 0)
    _check_number(drill, case, attempts)
    drill.draw(case, attempts)


def _count_ended(stage: Stage) -> int:
    return sum(replica.process.returncode is not None for replica in stage.replicas)


def _check_number(drill: Drill, case: Case, attempts: Sequence[Attempt]) -> None:
    if not drill.short:
        written = sum(attempt.is_write and attempt.is_done for attempt in attempts)
        case.check("writes acknowledged with this method", written, ">=", WRITES)


async def _restore_afterwards(
    drill: Drill, stage: Stage, store: Store, attempts: Sequence[Attempt], marker: Marker
) -> None:
    case = drill.begin("backup after the upgrade", "the base backup that follows the upgrade, with its own archive")
    at = time.time()
    await store.restore_to(marker)
    await store.accept_writes()
    case.explanation += f": restored to a moment after the upgrade in {time.time() - at:.1f} s"
    await judge(case, stage, attempts, marker)
    drill.end(case)


async def _restore_across(drill: Drill, stage: Stage, store: Store, marker: Marker) -> None:
    """Check that the former version's backup cannot be restored across the upgrade: the system identifier changes."""
    case = drill.begin(
        "backup before the upgrade", "cannot be restored to a moment after the upgrade: no cluster may result"
    )
    cluster = stage.cluster
    programs, cluster._programs = cluster._programs, find_programs(FORMER)
    try:
        log = await store.restore_beyond(marker, store.wal)
    finally:
        cluster._programs = programs
    drill.end(case)
    case.check("clusters that accepted writes anyway", cluster._find_main(RESTORED) is not None, "=", 0)
    case.check("log lines that give the reason", log.count(ENDED_EARLY), ">", 0)


# To a second cluster.


async def _move_to_a_second_cluster(drill: Drill, stage: Stage, new: Cluster) -> None:
    former = stage.cluster
    load = await stage.load(writers(short=drill.short, waiting=True, alone=True))
    cases = [
        await _copy(drill, stage, new),
        await _call_off(drill, stage, new),
        await _move(drill, stage, new, "switched", f"the name points to PostgreSQL {embedded.VERSION}"),
    ]
    await _until_enough(drill, load)
    cases.append(await _move(drill, stage, former, "switched back", f"the name points to PostgreSQL {FORMER} again"))
    attempts = await load.stop()
    drill.account(await stage.reconcile(attempts), attempts)
    for case in cases:
        case.figures = observe(attempts, case.began, case.ended)
        # A 503 in time loses nothing; it happens if the machine is too slow for two clusters and their load.
        case.check("errors shown", case.figures.errors, "=", 0, kind="timing")
        if case.marks:
            case.check("longest pause between writes, s", case.figures.write_gap_s, "<", DOWNTIME, kind="timing")
        drill.draw(case, attempts)
    last = cases[-1]
    _check_number(drill, last, attempts)
    last.check("earlier goals that are missing", await stage.count_missing(), "=", 0)
    last.check("processes of the service that ended", _count_ended(stage), "=", 0)
    await _until_applied(former, new)
    last.check("tables that differ in the other cluster", await _count_different(former, new), "=", 0)
    await _control_sequences(drill, stage, new)
    await _control_writes(drill, stage, former)
    # Otherwise it leaves a slot behind, which retains the first cluster's WAL.
    await new.execute("DROP SUBSCRIPTION upgrade")


async def _copy(drill: Drill, stage: Stage, new: Cluster) -> Case:
    """Fill the second cluster from the first one, while clients write."""
    case = drill.begin("copy", f"PostgreSQL {embedded.VERSION} receives the schema, the rows, and then each change")
    former = stage.cluster
    await _flow(drill)
    began = time.time()
    await former.execute("CREATE TABLE upgrade_marker (id uuid PRIMARY KEY)")
    await _copy_schema(former, new)
    for cluster in (former, new):
        await cluster.execute("CREATE PUBLICATION upgrade FOR ALL TABLES")
    await _follow(new, former, copy=True)

    async def is_copied() -> bool:
        return bool(await new.fetch("SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel"))

    await until(is_copied, "every table is copied")
    await _until_applied(former, new)
    case.explanation += f": {time.time() - began:.1f} s for {stage.earlier:,} goals and the writes made meanwhile"
    await new.execute("ANALYZE")
    await _flow(drill)
    drill.end(case)
    return case


async def _copy_schema(former: Cluster, new: Cluster) -> None:
    file = new.folder / "schema.sql"
    source, target = (("-h", "127.0.0.1", "-p", str(one.port), "-U", "postgres") for one in (former, new))
    await new._run("pg_dump", *source, "--schema-only", "-f", file, "goals_database")
    await new._run("psql", *target, "-X", "-v", "ON_ERROR_STOP=1", "-f", file, "goals_database")


async def _follow(cluster: Cluster, source: Cluster, *, copy: bool) -> None:
    """Subscribe a cluster to another one, with a copy of its rows, or from the position of a slot created before.

    Changes that the other one received through its own subscription do not come back.
    """
    address = f"host=127.0.0.1 port={source.port} user=postgres dbname=goals_database"
    options = f"copy_data = {str(copy).lower()}, create_slot = {str(copy).lower()}, origin = none"
    await cluster.execute(f"CREATE SUBSCRIPTION upgrade CONNECTION '{address}' PUBLICATION upgrade WITH ({options})")


async def _until_applied(source: Cluster, follower: Cluster) -> None:
    """Wait for a marker row: commits are applied in order, so all earlier ones have arrived too."""
    marker = uuid4()
    connection = await source.connect()
    try:
        await connection.execute("INSERT INTO upgrade_marker VALUES ($1)", marker)
    finally:
        connection.terminate()

    async def is_there() -> bool:
        return bool(await follower.fetch("SELECT count(*) FROM upgrade_marker WHERE id = $1", marker))

    await until(is_there, "the other cluster has everything that was written")


async def _stop_writes(cluster: Cluster) -> None:
    """Make the service read-only: it retries refused writes (25006) until a primary accepts them."""
    await cluster.execute("ALTER ROLE goals_user SET default_transaction_read_only = on")
    now = await cluster.fetch("SELECT clock_timestamp()")

    async def are_gone() -> bool:
        return await _terminate(cluster, now) == 0

    await until(are_gone, "the sessions that may still write have ended")


async def _terminate(cluster: Cluster, before: datetime) -> int:
    """Terminate the service's sessions that started before a moment, and return their number."""
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    return int(await cluster.fetch(f"{query} AND usename = 'goals_user' AND backend_start <= $1", before))


async def _allow_writes(cluster: Cluster) -> None:
    await cluster.execute("ALTER ROLE goals_user RESET default_transaction_read_only")


async def _call_off(drill: Drill, stage: Stage, new: Cluster) -> Case:
    """Call off the switch: writes continue on the former cluster."""
    case = drill.begin("called off", "writes are stopped for the switch, which is then called off")
    await _flow(drill)
    at = time.time()
    await _stop_writes(stage.cluster)
    await _until_applied(stage.cluster, new)
    await _allow_writes(stage.cluster)
    case.marks.append(Mark(at, "stopped", time.time()))
    await _flow(drill)
    drill.end(case)
    return case


async def _move(drill: Drill, stage: Stage, new: Cluster, name: str, explanation: str) -> Case:
    case = drill.begin(name, explanation)
    await _flow(drill)
    await _prepare_the_way_back(new)
    # Clients do not learn of commits from now on, and repeat their requests.
    stage.database.replies_to_drop = _LOST_REPLIES
    await _until_committed(stage.cluster)
    at = time.time()
    before = await _switch(stage, new)
    done = time.time()
    case.marks.append(Mark(at, "switch", done))
    case.explanation += f": {done - at:.2f} s from the first statement to the last"
    await _flow(drill)
    drill.end(case)
    await _check_ids(case, new, before)
    return case


async def _until_committed(cluster: Cluster) -> None:
    """Wait for an add, so that at least one reply is lost."""
    keys = "SELECT count(*) FROM goal_keys"
    before = await cluster.fetch(keys)

    async def is_there() -> bool:
        return bool(await cluster.fetch(keys) > before)

    await until(is_there, "an add is committed")


async def _prepare_the_way_back(new: Cluster) -> None:
    """Create a slot in the new cluster, so that the former one can follow it later."""
    await new.fetch("SELECT pg_create_logical_replication_slot('upgrade', 'pgoutput')::text")


async def _switch(stage: Stage, new: Cluster, *, stop: bool = True, sequences: bool = True) -> Ids:
    """Point the service's name to the other cluster once it has everything, and let the former one follow."""
    former = stage.cluster
    if stop:
        await _stop_writes(former)
    stage.database.replies_to_drop = 0
    await _until_applied(former, new)
    before = await _read_ids(former)
    if sequences:
        await _carry_sequences(former, new)
    await _allow_writes(new)
    stage.database.route_to([new.port])
    stage.cluster = new
    if stop:
        await _terminate(former, datetime.now(UTC))
    await _follow(former, new, copy=False)
    await new.execute("DROP SUBSCRIPTION upgrade")
    return before


async def _carry_sequences(former: Cluster, new: Cluster) -> None:
    """Copy the sequences, which logical replication does not: otherwise each new id would already be taken."""
    connection = await former.connect()
    try:
        statements = await connection.fetch(_SEQUENCES)
    finally:
        connection.terminate()
    for (statement,) in statements:
        await new.execute(statement)


async def _count_different(one: Cluster, other: Cluster) -> int:
    """Return how many tables differ between the two, including row versions and times."""
    digests = [
        [
            await cluster.fetch(f"SELECT md5(string_agg(md5(t::text), '' ORDER BY t::text)) FROM {table} AS t")  # noqa: S608  constants
            for table in ("goals", "goal_keys", "alembic_version")
        ]
        for cluster in (one, other)
    ]
    return sum(ours != theirs for ours, theirs in zip(*digests, strict=True))


async def _control_sequences(drill: Drill, stage: Stage, new: Cluster) -> None:
    load = await stage.load(writers(short=drill.short, waiting=True, alone=True))
    await asyncio.sleep(1)
    await _prepare_the_way_back(new)
    await _switch(stage, new, sequences=False)
    await asyncio.sleep(1)
    attempts = await load.stop()
    explanation = "the sequences are not copied to the second cluster"
    failed = sum(attempt.status == HTTPStatus.INTERNAL_SERVER_ERROR for attempt in attempts)
    drill.control("switch without sequences", explanation, "adds refused because their ids are taken", failed)


async def _control_writes(drill: Drill, stage: Stage, new: Cluster) -> None:
    former = stage.cluster
    load = await stage.load(writers(short=drill.short, waiting=True, alone=True))
    await asyncio.sleep(1)
    await _prepare_the_way_back(new)
    await _switch(stage, new, stop=False)
    await asyncio.sleep(1)
    await _terminate(former, datetime.now(UTC))
    await asyncio.sleep(0.5)
    verdict = await stage.reconcile(await load.stop(), standbys=False)
    explanation = "the name points to the second cluster, but open connections write to the first for another second"
    drill.control("switch without a stop", explanation, "acknowledged writes lost", verdict.lost)
