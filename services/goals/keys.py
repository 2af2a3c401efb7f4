"""Removes idempotency keys once their time is over, so that their table does not grow forever."""

import asyncio
import random
from datetime import timedelta

from goals import store
from goals.database import Database
from goals.errors import GoalsError
from goals.limits import Limits


async def remove_old_keys(database: Database, kept: timedelta, limits: Limits) -> None:
    """Remove keys that are older than `kept`, a batch at a time, until it is cancelled.

    Every process does so; each batch passes over the keys that another one is removing.
    """
    while True:
        try:
            removed = await store.delete_old_keys(database, kept, limits.keys_batch)
        except GoalsError:
            removed = 0  # the database is down, which is logged where it is noticed
        pause = limits.keys_batch_pause if removed == limits.keys_batch else limits.keys_pause
        # Several processes that were started together need not look together.
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  jitter is no secret
