"""Old idempotency keys: removed a batch at a time, by several at once, and whatever becomes of the database."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import asyncpg
import structlog
from sqlalchemy import text

from goals import keys, store
from goals.database import Database
from goals.settings import Settings
from tests.conftest import WIDE, upgrade
from tools.polling import until

KEPT = timedelta(hours=24)


async def add_keys(administrator: asyncpg.Connection, number: int, hours: int) -> None:
    await administrator.execute(
        "INSERT INTO goal_keys (key, fingerprint, goal_id, created_at)"
        " SELECT gen_random_uuid(), '', n, now() - make_interval(hours => $2) FROM generate_series(1, $1) AS n",
        number,
        hours,
    )


async def test_old_keys_are_removed_in_batches_and_young_ones_stay(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await add_keys(administrator, 250, 25)
    await add_keys(administrator, 10, 23)
    limits = replace(WIDE, keys_batch=100, keys_batch_pause=0.0)
    removal = asyncio.create_task(keys.remove_old_keys(database, KEPT, limits))
    await until(lambda: holds(administrator, 10))
    removal.cancel()


async def holds(administrator: asyncpg.Connection, number: int) -> bool:
    return bool(await administrator.fetchval("SELECT count(*) FROM goal_keys") == number)


async def test_keys_that_another_process_removes_are_passed_over(
    database: Database, administrator: asyncpg.Connection
) -> None:
    await add_keys(administrator, 5, 25)
    async with administrator.transaction():
        await administrator.execute("DELETE FROM goal_keys WHERE goal_id < 3")
        assert await store.delete_old_keys(database, KEPT, 10) == 3
    assert await store.delete_old_keys(database, KEPT, 10) == 0


async def test_an_outage_does_not_end_it(empty: Settings) -> None:
    await upgrade(empty)
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database=empty.db_name)
    await add_keys(administrator, 5, 25)
    others = await asyncpg.connect(host=empty.db_host, user="postgres", database="postgres")
    await others.execute(f'ALTER DATABASE "{empty.db_name}" ALLOW_CONNECTIONS false')
    database = Database(empty, WIDE)
    with structlog.testing.capture_logs() as events:
        removal = asyncio.create_task(keys.remove_old_keys(database, KEPT, replace(WIDE, keys_pause=0.01)))
        await until(lambda: asyncio.sleep(0, bool(events)))
        await others.execute(f'ALTER DATABASE "{empty.db_name}" ALLOW_CONNECTIONS true')
        await until(lambda: holds(administrator, 0))
    removal.cancel()
    await others.close()
    await administrator.close()
    await database.close()


async def test_a_refusal_is_told_and_does_not_end_it(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    await add_keys(connection, 5, 25)
    await connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'not here' USING ERRCODE = 'check_violation'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON goal_keys FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    database = Database(empty, WIDE)
    with structlog.testing.capture_logs() as events:
        removal = asyncio.create_task(keys.remove_old_keys(database, KEPT, replace(WIDE, keys_pause=0.01)))
        await until(
            lambda: asyncio.sleep(0, any(event["event"].endswith("keys cannot be removed") for event in events))
        )
        await connection.execute("DROP TRIGGER refuse ON goal_keys")
        await until(lambda: holds(connection, 0))
    removal.cancel()
    await database.close()


async def test_a_key_whose_time_is_over_is_a_new_one(database: Database) -> None:
    key = uuid4()
    first = await store.insert_goal(database, {"goal_name": "a"}, key, b"a")
    await database.fetch(text("UPDATE goal_keys SET created_at = now() - interval '25 hours' RETURNING key"))
    assert await store.delete_old_keys(database, KEPT, 10) == 1
    assert (await store.insert_goal(database, {"goal_name": "b"}, key, b"b")).id == first.id + 1
