"""Retries a schema change until it gets its locks, so that clients never queue behind it for long."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import asyncpg
from sqlalchemy.exc import DBAPIError

from goals.limits import Limits
from goals.sqlstates import LOCK_NOT_AVAILABLE, sqlstate


async def retry_until_unlocked(
    change: Callable[[], Awaitable[None]], limits: Limits, tell: Callable[[], object]
) -> None:
    """Run `change`, a transaction with a short `lock_timeout`; while others hold the lock, call `tell` and retry.

    After `lock_patience` seconds, raise PostgreSQL's error; raise any other error immediately.
    """
    deadline = time.monotonic() + limits.lock_patience
    while True:
        try:
            return await change()
        except (DBAPIError, asyncpg.PostgresError) as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE or time.monotonic() > deadline:
                raise
        tell()
        # Long enough for the statements that queued behind this one to run first.
        await asyncio.sleep(random.uniform(limits.lock_timeout, 5 * limits.lock_timeout))  # noqa: S311  jitter is no secret
