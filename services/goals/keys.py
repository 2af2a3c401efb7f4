"""Removes expired idempotency keys, so that their table does not grow forever."""

import asyncio
import random
from datetime import timedelta

import structlog

from goals import store
from goals.database import Database
from goals.errors import GoalsError
from goals.limits import Limits

log = structlog.get_logger(__name__)


async def remove_old_keys(database: Database, kept: timedelta, limits: Limits) -> None:
    """Remove keys that are older than `kept`, a batch at a time, until cancelled.

    Every process does this; a batch skips the keys that another process is removing.
    """
    while True:
        try:
            removed = await store.delete_old_keys(database, kept, limits.keys_batch)
        except Exception as error:  # noqa: BLE001  whatever it is, it may be temporary
            removed = 0
            if not isinstance(error, GoalsError):  # an outage is logged where it is noticed
                log.warning("expired idempotency keys cannot be removed", error=str(error))
        pause = limits.keys_batch_pause if removed == limits.keys_batch else limits.keys_pause
        # Jitter, so that processes that started together do not all run this at the same time.
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  jitter is no secret
