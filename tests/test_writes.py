"""Adds that share a commit: each has its own outcome, and none depends on another's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from opentelemetry.metrics import NoOpMeter
from sqlalchemy import ARRAY, Column, Date, Enum, MetaData, Numeric, String, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import INT4MULTIRANGE, JSONB, Range
from sqlalchemy.types import TypeEngine

from goals import store
from goals.database import Database
from goals.errors import (
    DatabaseUnavailableError,
    GoalRemovedError,
    IdempotencyKeyReusedError,
    OverloadedError,
    StatementRefusedError,
)
from goals.limits import Limits
from goals.models import Goal, NewGoal, goals
from goals.schemas import new_key
from goals.settings import Settings
from goals.telemetry import GroupMetrics
from goals.writes import Writes
from tests.conftest import (
    WIDE,
    alter,
    holding,
    serving,
    speaking_to,
    transaction,
    until_blocked,
    until_pending,
    until_ready,
    upgrade,
)
from tools.polling import until

ONE_AT_A_TIME = replace(WIDE, groups=1, group_turn=60)
HELD = UUID(int=0)
"""The key of the add that is under way while the others come."""
INSERT = "INSERT INTO goal_keys"


def write(database: Database, limits: Limits = ONE_AT_A_TIME) -> Writes:
    writes = Writes(database, limits, GroupMetrics(NoOpMeter("goals")))
    writes._most = limits.group_adds  # as after a few groups
    return writes


@pytest.fixture
async def writes(database: Database) -> Writes:
    return write(database)


def begin(writes: Writes, name: str, key: UUID | None = None) -> asyncio.Task[Goal]:
    return asyncio.create_task(writes.add({"goal_name": name}, key or new_key(), name.encode(errors="surrogatepass")))


@contextlib.asynccontextmanager
async def waiting(
    writes: Writes, watcher: asyncpg.Connection, adds: Iterable[tuple[str, UUID]]
) -> AsyncIterator[tuple[asyncio.Task[Goal], ...]]:
    """Within it these adds wait for another one, whose key is held."""
    async with holding(writes._database._settings, HELD):
        first = begin(writes, "first", HELD)
        await until_blocked(watcher, INSERT)
        sent = tuple(begin(writes, *add) for add in adds)
        await until_waiting(writes._database, len(sent))
        yield sent
    await first


async def gather(
    writes: Writes, watcher: asyncpg.Connection, adds: Iterable[tuple[str, UUID]]
) -> tuple[asyncio.Task[Goal], ...]:
    """Let these adds wait together, so that they share a statement; they may not be done yet."""
    async with waiting(writes, watcher, adds) as sent:
        return sent


@contextlib.asynccontextmanager
async def under_way(
    writes: Writes, watcher: asyncpg.Connection, adds: Iterable[tuple[str, UUID]]
) -> AsyncIterator[tuple[asyncio.Task[Goal], ...]]:
    """Within it these adds wait in one statement, for a table that a migration has locked."""
    async with transaction(writes._database._settings) as migration:
        async with waiting(writes, watcher, adds) as sent:
            locking = asyncio.create_task(migration.execute("LOCK TABLE goals"))
            await until_blocked(watcher, "LOCK TABLE goals")
        await locking
        await until_blocked(watcher, INSERT)
        yield sent


async def until_waiting(database: Database, number: int) -> None:
    while database.gate.waiting != number:
        await asyncio.sleep(0)


async def commits(database: Database) -> int:
    """How many transactions made the goals that there are, without the add that held the others up."""
    rows = await database.fetch(
        text("SELECT count(DISTINCT xmin::text) AS number FROM goals WHERE goal_name <> 'first'")
    )
    return int(rows[0].number)


def new(names: str) -> list[tuple[str, UUID]]:
    return [(name, new_key()) for name in names]


async def test_adds_that_come_meanwhile_share_a_commit_each_with_its_own_answer(
    writes: Writes, database: Database, administrator: asyncpg.Connection
) -> None:
    sent = await gather(writes, administrator, new("abcdefgh"))
    goals = await asyncio.gather(*sent)
    assert [goal.goal_name for goal in goals] == list("abcdefgh")
    assert [await store.select_goal(database, goal.id) for goal in goals] == goals
    assert await commits(database) == 1


async def test_an_add_alone_waits_for_nothing(writes: Writes, database: Database) -> None:
    for name in "abc":
        assert (await begin(writes, name)).goal_name == name
    assert writes._alone > 0
    assert await commits(database) == 3


async def test_rows_are_written_in_the_order_of_their_keys(writes: Writes, administrator: asyncpg.Connection) -> None:
    keys = [new_key() for _ in range(16)]
    sent = await gather(writes, administrator, [("a goal", key) for key in reversed(keys)])
    ids = [goal.id for goal in await asyncio.gather(*sent)]
    assert ids == sorted(ids, reverse=True)


async def test_replicas_that_add_the_same_goals_in_another_order_do_not_deadlock(
    settings: Settings, database: Database, administrator: asyncpg.Connection
) -> None:
    deadlocks = "SELECT pg_stat_force_next_flush(), deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = (await administrator.fetchrow(deadlocks))["deadlocks"]
    second = Database(settings, WIDE)
    replicas = [write(database, WIDE), write(second, WIDE)]
    for _ in range(20):
        adds = new("abcdefghijklmnopqrstuvwxyz")
        there = [begin(replicas[0], name, key) for name, key in adds]
        back = [begin(replicas[1], name, key) for name, key in reversed(adds)]
        assert await asyncio.gather(*there) == (await asyncio.gather(*back))[::-1]
    await second.close()
    assert (await administrator.fetchrow(deadlocks))["deadlocks"] == before


async def test_one_key_twice_in_a_group_makes_one_goal(
    writes: Writes, database: Database, administrator: asyncpg.Connection
) -> None:
    key = new_key()
    first, second, third, bystander = await gather(
        writes, administrator, [("same", key), ("same", key), ("another", key), ("bystander", new_key())]
    )
    assert await first == await second
    with pytest.raises(IdempotencyKeyReusedError):
        await third
    assert (await bystander).goal_name == "bystander"
    rows = await database.fetch(text("SELECT goal_name FROM goals ORDER BY id"))
    assert [row.goal_name for row in rows] == ["first", "same", "bystander"]


async def test_a_key_that_was_used_before_is_answered_as_ever(
    writes: Writes, administrator: asyncpg.Connection
) -> None:
    known, used, removed = new("kur")
    goals = [await begin(writes, *add) for add in (known, used, removed)]
    await store.delete_goal(writes._database, goals[2].id)
    repeat, reuse, ghost, fresh = await gather(
        writes, administrator, [known, ("x", used[1]), removed, ("f", new_key())]
    )
    assert await repeat == goals[0]
    with pytest.raises(IdempotencyKeyReusedError):
        await reuse
    with pytest.raises(GoalRemovedError):
        await ghost
    assert (await fresh).id == goals[2].id + 2  # after the one that held the group up: no repeat has taken an id


async def test_only_the_add_whose_key_is_held_waits(
    writes: Writes, settings: Settings, administrator: asyncpg.Connection
) -> None:
    free, held = new("ab"), ("held", new_key())
    async with holding(settings, held[1]):
        *sent, waiting = await gather(writes, administrator, [*free, held])
        assert [goal.goal_name for goal in await asyncio.gather(*sent)] == ["a", "b"]
        assert not waiting.done()
        await until(lambda: administrator.fetchval("SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    assert (await waiting).goal_name == "held"


async def test_behind_a_locked_table_a_group_stays_one_statement(
    writes: Writes, database: Database, administrator: asyncpg.Connection
) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with under_way(writes, administrator, new("abcdefgh")) as sent:
        for _ in range(20):  # twice as long as a held key would stall the group
            assert await administrator.fetchval(waiting) == 1
            await administrator.execute(f"SELECT pg_sleep({writes._limits.group_stall / 10})")
    await asyncio.gather(*sent)
    assert await commits(database) == 1


@pytest.fixture
async def picky(database: Database) -> AsyncIterator[None]:
    """A table that refuses a goal which the service accepts."""
    await alter(database, "ALTER TABLE goals ADD CONSTRAINT picky CHECK (goal_name <> 'bad')")
    yield
    await database.engine.dispose()  # a statement that was parsed, and never sent, has its lock
    await alter(database, "ALTER TABLE goals DROP CONSTRAINT picky")


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("bad", ["bad", "\0", "\ud800"])
async def test_an_add_that_is_refused_affects_no_other(
    writes: Writes, administrator: asyncpg.Connection, bad: str
) -> None:
    one, refused, another = await gather(writes, administrator, [*new("a"), (bad, new_key()), *new("b")])
    assert ((await one).goal_name, (await another).goal_name) == ("a", "b")
    with pytest.raises(StatementRefusedError):
        await refused
    with pytest.raises(StatementRefusedError):
        await writes.add({"goal_name": bad}, new_key(), b"")


async def test_an_outcome_that_is_not_known_in_time_is_the_same_for_all(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await administrator.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await administrator.execute("SELECT pg_reload_conf()")
    impatient = Database(database._settings, replace(ONE_AT_A_TIME, retry_budget=0.5, write_wait=0.5))
    writes = write(impatient, impatient._limits)
    sent = [begin(writes, *add) for add in new("abcd")]
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    await administrator.execute("ALTER SYSTEM RESET synchronous_standby_names")
    await administrator.execute("SELECT pg_reload_conf()")
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailableError] * 4
    await impatient.close()


async def test_the_deadline_of_an_add_ends_its_wait_for_the_group(
    settings: Settings, database: Database, administrator: asyncpg.Connection
) -> None:
    """The group goes on, and so does one whose add is tried alone afterwards."""
    impatient = Database(settings, replace(ONE_AT_A_TIME, retry_budget=2.0, write_wait=2.0))
    writes = write(impatient, impatient._limits)
    held = new_key()
    async with holding(settings, held):
        waiting, free = await gather(writes, administrator, [("held", held), *new("f")])
        assert (await free).goal_name == "f"
        impatient.gate.shut(asyncio.get_running_loop().time())
        with pytest.raises(DatabaseUnavailableError, match="in time") as caught:
            await waiting
        assert caught.value.retry_after > 1  # as a failover has begun
        impatient.gate.open(asyncio.get_running_loop().time())
    assert await writes.add({"goal_name": "held"}, held, b"held")
    await impatient.close()


@pytest.mark.parametrize(
    ("limit", "reason", "most"),
    [
        ({"retry_budget": 0.5, "write_wait": 0.5}, "in time", ONE_AT_A_TIME.group_adds),
        ({"statement_timeout": 0.5}, "cannot do this now", 1),
    ],
)
async def test_each_add_of_a_group_that_comes_to_nothing_is_told_why(
    settings: Settings,
    database: Database,
    administrator: asyncpg.Connection,
    limit: dict[str, Any],
    reason: str,
    most: int,
) -> None:
    """Its own deadline passes while the group is committed, or the statement of all fails."""
    brief = Database(settings, replace(ONE_AT_A_TIME, **limit))
    writes = write(brief, brief._limits)
    async with under_way(writes, administrator, new("ab")) as sent:
        for add in sent:
            with pytest.raises(DatabaseUnavailableError, match=reason):
                await add
        assert writes._most == most
    await brief.close()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (String(3), ["abc", "abcd"]),
        (JSONB(), [[5], [[1], [2]], [], {"a": [1, 2]}, "text", {1, 2}]),
        (Numeric(4, 1), [Decimal("1.25"), None]),
        (Date(), [date(2026, 2, 28), None]),
        (INT4MULTIRANGE(), [[Range(1, 3)]]),
        (Uuid(), [UUID(int=7)]),
        (Enum("red", "blue", name="colour"), ["red", "green"]),
    ],
)
async def test_a_group_stores_what_an_add_alone_does(
    empty: Settings, monkeypatch: pytest.MonkeyPatch, kind: TypeEngine[object], values: list[object]
) -> None:
    await upgrade(empty)
    database = Database(empty, WIDE)
    table = goals.to_metadata(MetaData())
    table.append_column(Column("more", kind))
    if isinstance(kind, Enum):
        await alter(database, "CREATE TYPE colour AS ENUM ('red', 'blue')")
    await alter(database, f"ALTER TABLE goals ADD COLUMN more {kind.compile(dialect=database.engine.dialect)}")
    monkeypatch.setattr(store, "goals", table)
    for cached in (store._insert, store._insert_together):
        cached.cache_clear()
    writes = write(database, WIDE)
    for value in values:
        outcomes = []
        for _ in range(2):  # the first goes alone, the others together
            adds = [writes.add({"goal_name": "a goal", "more": value}, new_key(), b"") for _ in range(3)]
            outcomes += await asyncio.gather(*adds, return_exceptions=True)
        assert len({type(outcome) for outcome in outcomes}) == 1
    rows = await database.fetch(text("SELECT count(*) AS number FROM goals GROUP BY more::text"))
    assert {row.number % 6 for row in rows} <= {0}
    for cached in (store._insert, store._insert_together):
        cached.cache_clear()
    await database.close()


async def test_a_client_that_leaves_affects_no_other(
    writes: Writes, database: Database, administrator: asyncpg.Connection
) -> None:
    async with waiting(writes, administrator, new("ls")) as (leaving, staying):
        leaving.cancel()
        await until_waiting(database, 1)
    assert (await staying).goal_name == "s"
    rows = await database.fetch(text("SELECT goal_name FROM goals ORDER BY id"))
    assert [row.goal_name for row in rows] == ["first", "s"]


async def test_a_client_that_leaves_its_group_under_way_is_served_all_the_same(
    writes: Writes, database: Database, administrator: asyncpg.Connection
) -> None:
    async with under_way(writes, administrator, new("ls")) as (leaving, staying):
        leaving.cancel()
    assert (await staying).goal_name == "s"
    assert await commits(database) == 1
    rows = await database.fetch(text("SELECT goal_name FROM goals ORDER BY id"))
    assert [row.goal_name for row in rows] == ["first", "l", "s"]


async def test_adds_with_an_array_go_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "goals", Table("goals", MetaData(), Column("tags", ARRAY(Text))))
    with pytest.raises(StatementRefusedError):
        await store.insert_goals(database, [NewGoal({"tags": ["a", "b"]}, new_key(), b"")], 1.0)


async def test_waiting_adds_take_up_room_in_the_gates_queue(
    settings: Settings, database: Database, administrator: asyncpg.Connection
) -> None:
    small = Database(settings, replace(ONE_AT_A_TIME, gate_queue=2))
    writes = write(small, small._limits)
    async with waiting(writes, administrator, new("ab")) as sent:
        with pytest.raises(OverloadedError):
            await begin(writes, *new("c")[0])
    await asyncio.gather(*sent)
    assert small.gate.waiting == 0
    await small.close()


@pytest.mark.parametrize(("limit", "most"), [({"group_adds": 3}, 3), ({"group_bytes": 4}, 4)])
async def test_a_group_is_bounded(
    database: Database, administrator: asyncpg.Connection, limit: dict[str, int], most: int
) -> None:
    writes = write(database, replace(ONE_AT_A_TIME, **limit))
    await asyncio.gather(*(await gather(writes, administrator, new("abcdefghijkl"))))
    assert await commits(database) == 12 // most


async def test_a_name_bigger_than_a_group_goes_alone(database: Database, administrator: asyncpg.Connection) -> None:
    writes = write(database, replace(ONE_AT_A_TIME, group_bytes=4))
    sent = await gather(writes, administrator, [("abcdef", new_key()), *new("xy")])
    assert [goal.goal_name for goal in await asyncio.gather(*sent)] == ["abcdef", "x", "y"]
    assert await commits(database) == 2


async def test_adds_with_other_columns_form_a_group_of_their_own(
    writes: Writes, database: Database, administrator: asyncpg.Connection
) -> None:
    async with waiting(writes, administrator, new("a")) as (named,):
        values = {"goal_name": "versioned", "row_version": 7}
        versioned = asyncio.create_task(writes.add(values, new_key(), b""))
        await until_waiting(database, 2)
    assert (await named).row_version == 1
    assert (await versioned).row_version == 7


def test_groups_grow_while_they_take_little_longer_and_shrink_where_rows_are_slow(settings: Settings) -> None:
    limits = Limits()
    writes = Writes(Database(settings, limits), limits, GroupMetrics(NoOpMeter("goals")))

    def sizes(fixed: float, each: float, rounds: int = 14) -> list[int]:
        seen = []
        for _ in range(rounds):
            seen.append(writes._most)
            writes._resize(writes._most, fixed + each * writes._most)
        return seen

    assert sizes(0.001, 0.0001)[:8] == [1, 2, 4, 8, 16, 32, 64, 64]
    assert sizes(0.2, 0.0)[-1] == 64  # a commit that waits for a standby far away
    assert max(sizes(0.0, 0.2)[-6:]) <= 2


@pytest.mark.usefixtures("database")
async def test_adds_that_were_accepted_are_finished_when_the_service_stops(
    settings: Settings, administrator: asyncpg.Connection
) -> None:
    async with contextlib.AsyncExitStack() as stack, speaking_to(0) as client, speaking_to(0) as operator:
        async with holding(settings, HELD):
            service = await stack.enter_async_context(serving(settings, ONE_AT_A_TIME))
            await until_ready(service)
            client.base_url, operator.base_url = (f"http://127.0.0.1:{port}" for port in service)

            def post(name: str, key: UUID) -> asyncio.Task[httpx2.Response]:
                headers = {"Idempotency-Key": str(key)}
                return asyncio.create_task(client.post("/api/v1/goals", json={"goal_name": name}, headers=headers))

            async def is_draining() -> bool:
                return (await operator.get("/readyz")).status_code == 503

            first = post("first", HELD)
            await until_blocked(administrator, INSERT)
            others = [post(*add) for add in new("abc")]
            await until_pending(service, 3)
            stopping = asyncio.create_task(stack.aclose())
            await until(is_draining)
        assert [answer.status_code for answer in await asyncio.gather(first, *others)] == [201] * 4
        await stopping
