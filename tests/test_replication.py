"""What clients get while no standby confirms anything: no write is acknowledged, not even one that finds nothing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from goals import store
from goals.database import Database
from goals.errors import DatabaseUnavailableError, GoalNotFoundError
from goals.schemas import new_key
from goals.settings import Settings
from tests.conftest import WIDE
from tools.polling import until

_WRITE = "SELECT pg_logical_emit_message(true, 'test', '')"


@pytest.fixture
async def administrator(settings: Settings, schema: None) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(host=settings.db_host, user="postgres", database=settings.db_name)
    yield connection
    await connection.close()


@pytest.fixture
async def followers_gone(administrator: asyncpg.Connection, database: Database) -> AsyncIterator[None]:
    """The server waits for a standby that does not come."""

    async def waits() -> bool:
        try:
            await administrator.execute(_WRITE, timeout=0.1)
        except TimeoutError:
            return True
        return False

    await administrator.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await administrator.execute("SELECT pg_reload_conf()")
    await until(waits)
    yield
    await administrator.execute("ALTER SYSTEM RESET synchronous_standby_names")
    await administrator.execute("SELECT pg_reload_conf()")

    async def acknowledges() -> bool:
        return not await waits()

    await until(acknowledges)


@pytest.fixture
async def impatient(settings: Settings, followers_gone: None) -> AsyncIterator[Database]:
    database = Database(settings, replace(WIDE, retry_budget=0.5))
    yield database
    await database.close()


async def test_a_removal_that_finds_nothing_is_not_acknowledged(impatient: Database) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await store.delete_goal(impatient, 4711)


async def test_a_rename_that_finds_nothing_is_not_acknowledged(impatient: Database) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await store.update_goal(impatient, 4711, {"goal_name": "renamed"})


_WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'goals'"


@pytest.mark.usefixtures("followers_gone")
@pytest.mark.parametrize("name", ["changed", "by another"])
async def test_a_change_whose_answer_was_lost_is_known_again(
    settings: Settings, administrator: asyncpg.Connection, name: str
) -> None:
    """The repeat of a change to a version that was seen finds its own change, unless another one came after it."""
    await administrator.execute("SET synchronous_commit = local; INSERT INTO goals (goal_name) VALUES ('a goal')")
    database = Database(settings, WIDE)
    changing = asyncio.create_task(store.update_goal(database, 1, {"goal_name": "changed"}, seen=1))
    await until(lambda: administrator.fetchval(_WAITING))
    first = await administrator.fetchval(_WAITING)
    await administrator.execute("SELECT pg_terminate_backend($1)", first)
    await until(lambda: administrator.fetchval(f"{_WAITING} AND pid <> $1", first))
    await administrator.execute("UPDATE goals SET goal_name = $1 WHERE goal_name <> $1", name)
    await administrator.execute("ALTER SYSTEM RESET synchronous_standby_names")
    await administrator.execute("SELECT pg_reload_conf()")
    if name == "changed":
        goal = await changing
        assert (goal.goal_name, goal.row_version) == ("changed", 2)
    else:
        with pytest.raises(DatabaseUnavailableError):
            await changing
    await database.close()


@pytest.mark.usefixtures("followers_gone")
async def test_a_repeat_is_not_acknowledged_either(settings: Settings, administrator: asyncpg.Connection) -> None:
    """The first attempt is lost once its goal is on this server alone, which the second one then finds there."""
    database = Database(settings, replace(WIDE, retry_budget=5.0))
    adding = asyncio.create_task(store.insert_goal(database, {"goal_name": "a goal"}, new_key(), b""))
    await until(lambda: administrator.fetchval(_WAITING))
    first = await administrator.fetchval(_WAITING)
    await administrator.execute("SELECT pg_terminate_backend($1)", first)
    await until(lambda: administrator.fetchval("SELECT count(*) FROM goals"))
    await until(lambda: administrator.fetchval(f"{_WAITING} AND pid <> $1", first))
    with pytest.raises(DatabaseUnavailableError):
        await adding
    await database.close()


async def test_what_finds_nothing_says_so(database: Database) -> None:
    with pytest.raises(GoalNotFoundError):
        await store.delete_goal(database, 4711)
    with pytest.raises(GoalNotFoundError):
        await store.update_goal(database, 4711, {"goal_name": "renamed"})


async def test_what_finds_its_goal_changes_it(database: Database, administrator: asyncpg.Connection) -> None:
    goal = await store.insert_goal(database, {"goal_name": "a goal"}, new_key(), b"")
    assert (await store.update_goal(database, goal.id, {"goal_name": "renamed"})).goal_name == "renamed"
    await store.delete_goal(database, goal.id)
    assert await administrator.fetchval("SELECT count(*) FROM goals") == 0
