"""Checks that the backups can be restored: restores them into a scratch cluster and compares it with the database."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import structlog

from goals.connections import connect, explain
from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.scratch import Scratch
from goals.settings import Settings

log = structlog.get_logger(__name__)

_REVISION = "SELECT version_num FROM alembic_version"
_COUNT = "SELECT count(*) FROM goals WHERE created_at < $1"
_NEWEST = "SELECT max(created_at) FROM goals"
_GOALS = "SELECT id, row_version FROM goals WHERE updated_at < $1 ORDER BY id DESC LIMIT $2"
_KEYS = "SELECT key FROM goal_keys WHERE created_at < $1 ORDER BY created_at DESC LIMIT $2"
_GOALS_THERE = "SELECT id, row_version FROM goals WHERE id = ANY ($1::bigint[])"
_KEYS_THERE = "SELECT key FROM goal_keys WHERE key = ANY ($1::uuid[])"


def check(folder: Path, settings: Settings, limits: Limits) -> None:
    """Restore, compare and remove; a `ConfigurationError` says in one line why the backups could not be verified."""
    scratch = Scratch(folder, limits)
    with scratch.running() as host:
        restored = settings.model_copy(update={"db_host": host})
        asyncio.run(compare(settings, restored, limits))


async def compare(settings: Settings, restored: Settings, limits: Limits) -> None:
    """Check that the restored cluster contains the database's goals and keys that are older than `restore_lag` seconds.

    Newer ones may not have been archived yet. Goals that were removed since the backup may be back, so the cluster may
    have more goals than the database, but never fewer.
    """
    async with _connected(settings, limits) as ours, _connected(restored, limits) as theirs:
        before = await ours.fetchval("SELECT now()") - timedelta(seconds=limits.restore_lag)
        try:
            await _compare(ours, theirs, before, limits)
        except asyncpg.UndefinedTableError as error:
            raise ConfigurationError(f"the backups have a different schema or none: {error}") from None


async def _compare(ours: asyncpg.Connection, theirs: asyncpg.Connection, before: datetime, limits: Limits) -> None:
    wanted, found = await ours.fetchval(_REVISION), await theirs.fetchval(_REVISION)
    if found != wanted:
        raise ConfigurationError(f"the backups have a different schema: revision {found}, the database has {wanted}")
    wanted, found = await ours.fetchval(_COUNT, before), await theirs.fetchval(_COUNT, before)
    if found < wanted:
        newest = await theirs.fetchval(_NEWEST)
        ends = f"the newest is from {newest:%Y-%m-%d %H:%M} UTC" if newest else "there is none"
        raise ConfigurationError(f"the backups lack {wanted - found} of {wanted} goals from before {before}: {ends}")
    goals = set(await ours.fetch(_GOALS, before, limits.restore_sample))
    lost = goals - set(await theirs.fetch(_GOALS_THERE, [goal_id for goal_id, _ in goals]))
    if lost:
        raise ConfigurationError(f"the backups lack {len(lost)} of the {len(goals)} newest goals, or their last change")
    keys = {key for (key,) in await ours.fetch(_KEYS, before, limits.restore_sample)}
    if lost_keys := keys - {key for (key,) in await theirs.fetch(_KEYS_THERE, list(keys))}:
        raise ConfigurationError(f"the backups lack {len(lost_keys)} of the {len(keys)} newest idempotency keys")
    if not wanted:
        log.warning("the database has no goal that is old enough: only the schema was compared", before=str(before))
    log.info("the backups are complete", goals=found, keys=len(keys), before=str(before))


@contextlib.asynccontextmanager
async def _connected(settings: Settings, limits: Limits) -> AsyncIterator[asyncpg.Connection]:
    """Connect, retrying for some time: the name of a new cluster may not resolve yet."""
    deadline = time.monotonic() + limits.restore_connect
    connection = None
    while connection is None:
        try:
            connection = await connect(settings, limits)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if time.monotonic() > deadline:
                raise ConfigurationError(explain(error, settings)) from None
            await asyncio.sleep(limits.restore_pause)
    try:
        yield connection
    finally:
        connection.terminate()
