"""Reads and writes while the primary is unavailable: on three real servers, which change places."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from goals import store
from goals.connections import FormerPrimaryError, Lineage, Timeline
from goals.database import Database
from goals.errors import DatabaseUnavailableError, GoalNotFoundError
from goals.limits import Limits
from goals.models import Goal
from goals.schemas import new_key
from goals.settings import Settings
from goals.standbys import NoQuorumError, PostgresServer, Reply, choose
from tests.conftest import LIMITS, WIDE, migrate, serving, speaking_to, until_ready
from tests.replicas import ALL, Replicas
from tools.polling import until

BRISK = replace(WIDE, silence=LIMITS.silence, watch_interval=0.05, resolve_interval=0.05)
"""Wide, but the primary soon counts as away."""
BRIEF = replace(BRISK, retry_budget=0.5)
"""For a read that is answered by nobody."""
NOW = datetime.now(UTC)
NEWEST = text("SELECT goal_name FROM goals ORDER BY id")


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Replicas]:
    """Three servers with the schema, whose common name the resolver knows."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != ALL:
            return look_up(host, port, *arguments, **options)
        servers.look_ups += 1
        if not servers.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "the resolver does not answer")
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", (address, port)) for address in servers.addresses]

    with Replicas() as servers, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        migrate(settings.model_copy(update={"db_host": servers.sockets["a"]}))
        yield servers


@pytest.fixture(scope="module")
def shared(settings: Settings) -> Iterator[Replicas]:
    with running(settings) as servers:
        yield servers


@pytest.fixture
async def replicas(shared: Replicas) -> AsyncIterator[Replicas]:
    """For a test that promotes none."""
    yield shared
    await shared.restore()


@pytest.fixture
def fresh(settings: Settings) -> Iterator[Replicas]:
    """For a test that changes who is the primary."""
    with running(settings) as servers:
        yield servers


@contextlib.asynccontextmanager
async def watching(settings: Settings, limits: Limits = BRISK) -> AsyncIterator[Database]:
    """A database whose standbys are known."""
    database = Database(settings, limits)
    assert database.standbys is not None
    watch = asyncio.create_task(database.standbys.watch())
    await database.fill()
    await until_known(database)
    try:
        yield database
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await database.close()


async def until_known(database: Database, number: int = 3) -> None:
    async def are_known() -> bool:
        assert database.standbys is not None
        servers = database.standbys._servers.values()
        return len(servers) == number and all(server.has_replied for server in servers)

    await until(are_known)


@pytest.fixture
async def database(replicas: Replicas, settings: Settings) -> AsyncIterator[Database]:
    async with watching(replicas.settings(settings)) as database:
        yield database


async def add(database: Database, name: str) -> Goal:
    return await store.insert_goal(database, {"goal_name": name}, new_key(), b"")


def server(name: str) -> PostgresServer:
    return name  # type: ignore[return-value]  # it is only handed on


def reply(name: str, timeline: int, position: int, replayed: int = 0) -> Reply:
    return Reply(server(name), NOW, timeline, position, replayed)


@pytest.mark.parametrize(
    ("replies", "chosen"),
    [
        ([reply("b", 0, 7), reply("c", 0, 8)], "c"),
        ([reply("a", 1, 9), reply("c", 0, 8)], "a"),
        ([reply("a", 1, 9), reply("b", 2, 7), reply("c", 0, 6)], "b"),
        ([reply("a", 2, 5), reply("b", 0, 5)], "a"),
    ],
)
def test_the_newest_state_among_enough_replies_is_read(replies: list[Reply], chosen: str) -> None:
    assert choose(replies, 2, 1).server == server(chosen)


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ([reply("c", 0, 8)], "1 servers replied, 2 are needed"),
        ([reply("a", 1, 9), reply("b", 1, 9)], "two primaries"),
        ([reply("a", 1, 9), reply("b", 0, 10)], "lacks"),
        ([], "0 servers"),
    ],
)
def test_replies_that_prove_nothing_are_no_answer(replies: list[Reply], reason: str) -> None:
    with pytest.raises(NoQuorumError, match=reason):
        choose(replies, 2, 1)


def test_a_former_primary_is_no_answer() -> None:
    with pytest.raises(NoQuorumError, match="former"):
        choose([reply("a", 1, 9), reply("b", 0, 8)], 2, 2)


async def test_reads_come_from_a_standby_while_there_is_no_primary(replicas: Replicas, database: Database) -> None:
    goal = await add(database, "acknowledged")
    assert not (await database.read(NEWEST)).standby
    replicas.stop("a", "immediate")
    result = await database.read(NEWEST)
    assert ([row.goal_name for row in result.rows], result.standby) == (["acknowledged"], True)
    assert await store.find_goal(database, goal.id) == (goal, True)
    with pytest.raises(GoalNotFoundError) as caught:
        await store.find_goal(database, 4711)
    assert caught.value.standby


async def test_reads_come_from_a_standby_while_the_primary_is_silent(replicas: Replicas, database: Database) -> None:
    await add(database, "acknowledged")
    await replicas.freeze("a")
    result = await database.read(NEWEST)
    assert ([row.goal_name for row in result.rows], result.standby) == (["acknowledged"], True)
    replicas.thaw()
    await until(lambda: returns_to_the_primary(database))


async def returns_to_the_primary(database: Database) -> bool:
    return not (await database.read(NEWEST)).standby


async def test_every_acknowledged_write_is_in_a_read_from_a_standby(replicas: Replicas, database: Database) -> None:
    """The one that replied first may be far behind: what a read needs is the highest position, replayed."""
    await replicas.follow("c", "")
    await add(database, "seen by one standby")
    replicas.stop("a", "immediate")
    for _ in range(20):
        result = await database.read(NEWEST)
        assert [row.goal_name for row in result.rows] == ["seen by one standby"]


async def test_a_standby_is_read_once_it_has_replayed_what_it_received(replicas: Replicas, database: Database) -> None:
    assert database.standbys is not None
    database.standbys._limits = replace(BRISK, replay_stall=60, replay_timeout=60)
    goal = await add(database, "removed")
    await replicas.until_same("b")
    async with replicas.session("b") as reader, reader.transaction(isolation="repeatable_read"):
        await reader.execute("SELECT FROM goals")
        await replicas.follow("c", "")
        await store.delete_goal(database, goal.id)
        await replicas.ask("a", "VACUUM goals")
        await add(database, "only received")
        replicas.stop("a", "immediate")
        read = asyncio.create_task(database.standbys.read(NEWEST, None))
        await asyncio.wait({read}, timeout=0.5)
        assert not read.done()
    rows, standby = await read
    assert ([row.goal_name for row in rows], standby) == (["only received"], True)


@pytest.mark.parametrize(
    "hold",
    ["SELECT pg_wal_replay_pause()", "ALTER SYSTEM SET recovery_min_apply_delay = '1min'"],
    ids=["paused", "late"],
)
async def test_a_standby_that_is_kept_from_replaying_does_not_count(
    replicas: Replicas, database: Database, hold: str
) -> None:
    await replicas.ask("b", hold)
    await replicas.ask("b", "SELECT pg_reload_conf()")
    replicas.stop("a", "immediate")
    database._limits = BRIEF
    with pytest.raises(DatabaseUnavailableError):
        await database.read(NEWEST)


async def test_a_server_with_two_addresses_replies_once(replicas: Replicas, database: Database) -> None:
    other = Path(replicas.sockets["b"]).parent / "other"
    other.symlink_to(replicas.sockets["b"])
    replicas.addresses = [str(other), replicas.sockets["b"]]
    replicas.stop("a", "immediate")
    replicas.stop("c", "immediate")
    await until_known(database, 2)
    database._limits = BRIEF
    with pytest.raises(DatabaseUnavailableError):
        await database.read(NEWEST)


async def test_a_standby_whose_replay_moves_and_does_not_end_is_not_read(
    replicas: Replicas, database: Database
) -> None:
    assert database.standbys is not None
    some = database.standbys._servers[replicas.sockets["b"]]
    end = int(await replicas.ask("a", "SELECT pg_current_wal_lsn() - '0/0'")) + 10_000
    database.standbys._limits = replace(BRISK, replay_timeout=0.1)
    with pytest.raises(NoQuorumError, match="not replayed"):
        await database.standbys._wait_for_replay(Reply(some, NOW, 0, end, 0))


async def test_a_record_that_is_cut_off_is_waited_for_once(replicas: Replicas, database: Database) -> None:
    assert database.standbys is not None
    database.standbys._limits = replace(BRISK, replay_stall=0.1)
    some = database.standbys._servers[replicas.sockets["b"]]
    await replicas.until_same("b")
    replayed = int(await replicas.ask("b", "SELECT pg_last_wal_replay_lsn() - '0/0'"))
    cut = Reply(some, NOW, 0, replayed + 100, replayed)
    await database.standbys._wait_for_replay(cut)
    assert some.stuck == (replayed + 100, replayed)
    replicas.stop("b", "immediate")
    await database.standbys._wait_for_replay(cut)  # asks nobody
    with pytest.raises(NoQuorumError, match="did not answer"):
        await database.standbys._wait_for_replay(Reply(some, NOW, 0, replayed + 200, replayed))


async def test_a_standby_that_has_just_started_does_not_count(replicas: Replicas, settings: Settings) -> None:
    """What it has acknowledged may be in its log, and not replayed yet: only then it asks for more, if it may."""
    async with watching(replicas.settings(settings)) as database:
        database._limits = BRIEF
        await replicas.follow("b", "")
        replicas.stop("a", "immediate")
        replicas.stop("b", "immediate")
        replicas.start("b")
        with pytest.raises(DatabaseUnavailableError):
            await database.read(NEWEST)


async def test_a_standby_behind_the_primarys_name_is_no_primary(replicas: Replicas, database: Database) -> None:
    replicas.route_to("b")
    await replicas.ask(
        "a", "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = 'goals_user'"
    )
    assert not (await database.read(NEWEST)).rows  # from wherever, but not by that name
    write = asyncio.create_task(add(database, "waits"))
    assert not (await asyncio.wait({write}, timeout=0.2))[0]
    assert "(the server is a standby, not the primary): check DB_HOST" in database.explanation
    replicas.route_to("a")
    await write


async def test_too_few_replies_are_no_answer(replicas: Replicas, settings: Settings) -> None:
    async with watching(replicas.settings(settings)) as database:
        database._limits = BRIEF
        replicas.stop("a", "immediate")
        replicas.stop("b", "immediate")
        with pytest.raises(DatabaseUnavailableError):
            await database.read(NEWEST)
        assert database._metrics._standby_reads["refused"] > 0


async def test_without_a_number_of_replies_no_standby_is_read(replicas: Replicas, settings: Settings) -> None:
    own = replicas.settings(settings).model_copy(update={"db_standby_replies": None})
    async with watching(own) as database:
        database._limits = BRIEF
        replicas.stop("a", "immediate")
        with pytest.raises(DatabaseUnavailableError):
            await database.read(NEWEST)
        assert database._metrics._standby_reads["refused"] == 0


async def test_a_write_waits_for_the_next_primary(fresh: Replicas, settings: Settings) -> None:
    async with watching(fresh.settings(settings)) as database:
        await add(database, "before")
        fresh.stop("a", "immediate")
        writes = [asyncio.create_task(add(database, "meanwhile")) for _ in range(2 * database.size)]
        assert not (await asyncio.wait(writes, timeout=0.1))[0]
        await fresh.promote("b")
        await asyncio.gather(*writes)
        result = await database.read(NEWEST)
        assert len(result.rows) == 1 + len(writes)
        assert not result.standby


async def test_a_primary_that_was_succeeded_is_no_return(fresh: Replicas, settings: Settings) -> None:
    """Its name still leads to it, and nobody has heard of the other one."""
    limits = replace(BRISK, watch_interval=60.0, resolve_interval=60.0)
    async with watching(fresh.settings(settings), limits) as database:
        await fresh.ask("c", "SELECT pg_promote()")
        with pytest.raises(FormerPrimaryError):
            await database._ping()


async def test_the_primarys_answer_counts_if_it_comes_before_the_others(replicas: Replicas, database: Database) -> None:
    async with replicas.session("a") as blocker:
        await blocker.execute("SELECT pg_advisory_lock(1)")
        read = asyncio.create_task(database.read(text("SELECT pg_advisory_xact_lock_shared(1)")))
        await replicas.freeze("b")  # so that its reply is waited for
        await asyncio.wait({read}, timeout=2 * LIMITS.silence)
        await blocker.execute("SELECT pg_advisory_unlock(1)")
        assert not (await read).standby
        replicas.thaw()
    assert database._metrics._standby_reads["primary"] == 0


async def test_a_former_primary_is_neither_read_nor_written(fresh: Replicas, settings: Settings) -> None:
    """It has a standby that confirms what it does, and its name still leads to it."""
    async with watching(fresh.settings(settings)) as database:
        await add(database, "before")
        await fresh.ask("c", "SELECT pg_promote()")
        await until(lambda: knows_timeline(database, 2))
        for attempt in (add(database, "nowhere"), database.fetch(NEWEST)):
            waiting = asyncio.create_task(attempt)
            assert not (await asyncio.wait({waiting}, timeout=0.2))[0]
            waiting.cancel()
        rows, standby = (await database.read(NEWEST))[0], (await database.read(NEWEST)).standby
        assert ([row.goal_name for row in rows], standby) == (["before"], False)
        await fresh.follow("b", "c")
        fresh.route_to("c")
        await add(database, "on the new one")
        assert await fresh.ask("a", "SELECT count(*) FROM goals") == 1


async def knows_timeline(database: Database, number: int) -> bool:
    newest = database._lineage.newest
    return newest is not None and newest.number == number


async def test_what_a_former_primary_says_after_a_silence_is_not_believed(fresh: Replicas, settings: Settings) -> None:
    """It was frozen while another was promoted, and commits what it was sent before."""
    limits = replace(BRISK, watch_interval=60.0, resolve_interval=60.0)
    async with watching(fresh.settings(settings), limits) as database:
        async with fresh.session("a") as blocker:
            await blocker.execute("SET synchronous_commit = local; BEGIN; LOCK goals IN EXCLUSIVE MODE")
            write = asyncio.create_task(add(database, "sent to the former primary"))
            await asyncio.wait({write}, timeout=2 * LIMITS.silence)
            await fresh.ask("c", "SELECT pg_promote()")
            await blocker.execute("COMMIT")
        await until(lambda: fresh.ask("a", "SELECT count(*) FROM goals"))
        assert not write.done()
        # The other standby has what the former primary wrote, and cannot follow the new one.
        await fresh.ask("c", "ALTER SYSTEM RESET synchronous_standby_names")
        await fresh.ask("c", "SELECT pg_reload_conf()")
        fresh.route_to("c")
        await write
        assert await fresh.ask("c", "SELECT count(*) FROM goals") == 1


async def test_a_statement_that_may_not_be_repeated_is_unknown_on_a_former_primary(
    replicas: Replicas, database: Database
) -> None:
    async with replicas.session("a") as blocker:
        await blocker.execute("SELECT pg_advisory_lock(1)")
        waiting = asyncio.create_task(
            database.run(text("SELECT pg_advisory_xact_lock_shared(1)"), repeatable=False, write=True)
        )
        await until(
            lambda: replicas.ask("a", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        )
        lineage = database._lineage
        assert lineage.newest is not None
        lineage._open.clear()  # as if its end had not been noticed
        lineage.learn(lineage.newest._replace(number=lineage.newest.number + 1))
        await blocker.execute("SELECT pg_advisory_unlock(1)")
        with pytest.raises(DatabaseUnavailableError, match="did not confirm"):
            await waiting


async def test_known_servers_stay_while_the_resolver_is_silent_and_gone_ones_leave(
    replicas: Replicas, database: Database
) -> None:
    assert database.standbys is not None
    replicas.addresses = []
    await until_looked_up(replicas)
    replicas.stop("a", "immediate")
    assert (await database.read(NEWEST)).standby
    assert len(database.standbys._servers) == 3
    replicas.addresses = [replicas.sockets["c"]]
    await until_known(database, 2)  # the one that is gone; another that still replies stays
    await until_looked_up(replicas)
    assert len(database.standbys._servers) == 2


async def until_looked_up(replicas: Replicas) -> None:
    """Wait for two look-ups that begin now."""
    before = replicas.look_ups

    async def are_done() -> bool:
        return replicas.look_ups > before + 2

    await until(are_done)


async def test_the_connections_to_each_server_are_open_before_they_are_needed(
    replicas: Replicas, database: Database
) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'goals_user'"

    async def are_open() -> bool:
        return bool(await replicas.ask("b", query) == BRISK.server_connections)

    await until(are_open)


async def test_a_server_that_hangs_is_not_asked_again_and_again(replicas: Replicas, database: Database) -> None:
    assert database.standbys is not None
    hanging = database.standbys._servers[replicas.sockets["b"]]
    hanging.unanswered += BRISK.server_connections
    for _ in range(3):
        replies = await database.standbys._ask(3)
        assert {reply.server for reply in replies} == set(database.standbys._servers.values()) - {hanging}
    left_behind = len(database.standbys._left_behind)
    database.standbys._fill()
    assert len(database.standbys._left_behind) == left_behind + 2
    hanging.unanswered -= BRISK.server_connections


async def test_a_server_of_another_system_does_not_reply(replicas: Replicas, database: Database) -> None:
    assert database.standbys is not None
    newest = database._lineage.newest
    assert newest is not None
    database._lineage.newest = Timeline(newest.system + 1, 1)
    with pytest.raises(NoQuorumError, match="0 servers"):
        await database.standbys.read(NEWEST, None)
    database._lineage.newest = None
    with pytest.raises(NoQuorumError, match="no primary"):
        await database.standbys.read(NEWEST, None)
    database._lineage.newest = newest


async def test_a_primary_that_has_written_since_it_replied_is_asked_again(
    replicas: Replicas, database: Database
) -> None:
    """Else each write between two replies would look like a standby that has what its primary lacks."""
    standbys = database.standbys
    assert standbys is not None
    addresses = standbys._servers
    earlier = Reply(addresses[replicas.sockets["a"]], NOW, 1, 7, 0)
    standby = Reply(addresses[replicas.sockets["b"]], NOW, 0, 8, 8)
    later = await standbys._catch_up(earlier, [earlier, standby])
    assert later.position > standby.position
    assert await standbys._catch_up(standby, [earlier, standby]) == standby
    standbys._limits = replace(BRISK, ask_timeout=0)
    assert await standbys._catch_up(earlier, [earlier, standby]) == earlier


async def test_a_query_that_fails_on_the_server_that_was_chosen_is_no_answer(database: Database) -> None:
    assert database.standbys is not None
    with pytest.raises(NoQuorumError, match="42P01"):
        await database.standbys.read(text("SELECT * FROM no_such_table"), None)


async def test_a_query_that_takes_too_long_there_is_left_behind(database: Database) -> None:
    assert database.standbys is not None
    database.standbys._limits = replace(BRISK, standby_timeout=0.05)
    with pytest.raises(NoQuorumError, match="TimeoutError"):
        await database.standbys.read(text("SELECT pg_sleep(60)"), None)


def test_timelines_compare_within_a_system_only() -> None:
    lineage = Lineage()
    lineage.learn(Timeline(1, 9))
    newest = lineage.newest
    assert newest is None  # DB_HOST says which system is ours
    first, second = Connection(), Connection()
    lineage.admit(first, Timeline(1, 2))
    lineage.learn(Timeline(2, 3))
    assert lineage.newest == Timeline(1, 2)
    lineage.learn(Timeline(1, 3))
    assert lineage.newest == Timeline(1, 3)
    assert first.is_terminated
    with pytest.raises(FormerPrimaryError):
        lineage.admit(second, Timeline(1, 2))
    lineage.admit(second, Timeline(2, 1))  # after a restore
    assert lineage.newest == Timeline(2, 1)


class Connection:
    """What a lineage needs of a connection."""

    timeline: Timeline | None = None
    is_terminated = False

    def terminate(self) -> None:
        self.is_terminated = True


async def test_a_page_from_a_standby_says_so(fresh: Replicas, settings: Settings) -> None:
    async with serving(fresh.settings(settings), BRISK) as service, speaking_to(service.port) as client:
        await until_ready(service)
        made = await client.post("/api/v1/goals", json={"goal_name": "a goal"})
        goal = made.json()["id"]
        for path in ("/", f"/goals/{goal}", "/api/v1/goals", f"/api/v1/goals/{goal}"):
            assert "cache-status" not in (await client.get(path)).headers
        fresh.stop("a", "immediate")
        for path in ("/", f"/goals/{goal}", "/api/v1/goals", f"/api/v1/goals/{goal}"):
            answer = await client.get(path, headers={"if-none-match": "*"})
            assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
            assert answer.headers["cache-status"] == "goals-standby; hit; detail=primary-away"
            assert "etag" not in answer.headers
            assert ("Changes may take a moment" in answer.text) == (not path.startswith("/api"))
        empty = await client.post("/add_goal", data={"goal_name": ""})
        assert (empty.status_code, "cache-status" in empty.headers) == (422, True)
        missing = await client.get("/api/v1/goals/4711")
        assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-store")
        edit = asyncio.create_task(client.post(f"/goals/{goal}", data={"goal_name": "mine", "row_version": "0"}))
        await asyncio.wait({edit}, timeout=0.1)
        await fresh.promote("b")
        shown = await edit
        assert shown.status_code == 409
        assert "This goal is now" in shown.text


async def test_writes_that_wait_are_answered_within_the_drain(replicas: Replicas, settings: Settings) -> None:
    """They would be cut off soon after it."""
    limits = replace(BRISK, retry_budget=0.5, body_deadline=LIMITS.body_deadline, request_deadline=1.0)
    own = replicas.settings(settings).model_copy(update={"goals_drain_seconds": 2.0})
    async with serving(own, limits) as service:
        client = speaking_to(service.port)
        await until_ready(service)
        replicas.stop("a", "immediate")
        writes = [asyncio.create_task(client.post("/api/v1/goals", json={"goal_name": "waits"})) for _ in range(20)]
        assert not (await asyncio.wait(writes, timeout=1.0))[0]
    answers = [await write for write in writes]
    await client.aclose()
    assert {answer.status_code for answer in answers} == {503}
