"""Schema changes that need a lock: retried while others hold it, and given up in the end."""

import asyncio
from dataclasses import replace

import asyncpg
import pytest

from goals.locks import retry_until_unlocked
from goals.settings import Settings
from tests.conftest import WIDE, transaction

BRISK = replace(WIDE, lock_timeout=0.01)


async def change(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{1000 * BRISK.lock_timeout:.0f}ms'")
        await connection.execute("LOCK TABLE wanted")


async def test_a_change_gets_its_lock_once_the_holder_has_left(empty: Settings, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE wanted ()")
    retried = asyncio.Event()
    async with transaction(empty) as holder:
        await holder.execute("LOCK TABLE wanted")
        changing = asyncio.create_task(retry_until_unlocked(lambda: change(connection), BRISK, retried.set))
        await retried.wait()
        assert not changing.done()
    await changing


async def test_a_lock_that_stays_held_ends_the_change(empty: Settings, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE wanted ()")
    limits = replace(BRISK, lock_patience=0.1)
    async with transaction(empty) as holder:
        await holder.execute("LOCK TABLE wanted")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await retry_until_unlocked(lambda: change(connection), limits, lambda: None)


async def test_any_other_error_ends_it_at_once(connection: asyncpg.Connection) -> None:
    retried: list[None] = []
    with pytest.raises(asyncpg.UndefinedTableError):
        await retry_until_unlocked(lambda: change(connection), BRISK, lambda: retried.append(None))
    assert retried == []
