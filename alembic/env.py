"""Runs the migrations on the database in the service's settings: one migrator at a time, without blocking writers."""

import asyncio
import logging
import ssl
import time

import asyncpg
from alembic import command, context
from alembic.operations import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from goals import adoption, embedded, signals
from goals.connections import connect, explain
from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.locks import retry_until_unlocked
from goals.models import metadata
from goals.settings import Settings, read_settings
from goals.sqlstates import is_loss

log = logging.getLogger("goals.migrations")

limits: Limits = context.config.attributes.get("limits", Limits())
_PAUSE = 0.2
"""Seconds between checks for a primary."""
_ADVISORY_LOCK = int.from_bytes(b"goals"[:7])  # a bigint has room for no longer name


def run() -> None:
    _configure_logs()
    if _is_new_revision():
        # Needs no database, unless Alembic is to compare the models with it.
        context.configure(dialect_name="postgresql", as_sql=True, process_revision_directives=_number)
        context.run_migrations()
        return
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", target_metadata=metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    try:
        # `python -m goals` hands its settings over; the `alembic` command reads them here.
        settings: Settings = context.config.attributes.get("settings") or read_settings()
        if names := embedded.ignore_client_variables():
            log.warning("%s ignored: DB_… and SSL configure the connection to PostgreSQL", ", ".join(names))
    except ConfigurationError as error:
        raise CommandError(str(error)) from None
    try:
        if settings.db_host is not None:
            asyncio.run(_migrate_when_possible(settings))
        else:
            signals.leave_in_order()
            with embedded.run(embedded.DATA) as socket:
                try:
                    asyncio.run(_migrate(settings.model_copy(update=embedded.SETTINGS | {"db_host": str(socket)})))
                finally:
                    signals.ignore()
    except ConfigurationError as error:
        raise CommandError(" ".join(str(error).split())) from None
    except (OSError, DBAPIError, asyncpg.ClientConfigurationError) as error:
        raise CommandError(explain(error, settings)) from None


def _configure_logs() -> None:
    """Show what the migration waits for, and Alembic's own lines too, unless the caller asks for quiet."""
    theirs = logging.getLogger("alembic.runtime.migration")
    for logger in (log, theirs):
        logger.setLevel(logging.INFO)
        if not logging.getLogger().handlers:
            logger.addHandler(logging.StreamHandler())
    if context.config.attributes.get("quiet"):
        theirs.setLevel(logging.WARNING)


def _is_new_revision() -> bool:
    options = context.config.cmd_opts
    return options is not None and options.cmd[0] is command.revision and not options.autogenerate


def _number(_context: MigrationContext, _revision: object, directives: list[MigrationScript]) -> None:
    """Give a new revision the next number: Alembic's own hashes do not say which of two is newer."""
    latest = max((int(script.revision) for script in context.script.walk_revisions()), default=0)
    for directive in directives:
        directive.rev_id = f"{latest + 1:04}"


async def _migrate_when_possible(settings: Settings) -> None:
    """Wait for a primary as a write does; revisions that have been applied stay applied."""
    patience = min(settings.goals_write_wait_seconds, limits.write_wait)
    lost_at = None
    while True:
        try:
            return await _migrate(settings)
        except (OSError, DBAPIError, asyncpg.InterfaceError, asyncpg.PostgresError) as error:
            if lost_at is None and is_loss(error) and patience:
                log.info("Waiting for a primary: %s", explain(error, settings))
            lost_at = lost_at or time.monotonic()
            if not is_loss(error) or _is_misconfigured(error) or time.monotonic() >= lost_at + patience:
                raise
        await asyncio.sleep(_PAUSE)


def _is_misconfigured(error: BaseException) -> bool:
    # asyncpg raises a bare ConnectionError if the server has no TLS.
    return isinstance(error, (PermissionError, ssl.SSLError)) or type(error) is ConnectionError


async def _migrate(settings: Settings) -> None:
    async def open_connection() -> asyncpg.Connection:
        return await connect(
            settings,
            limits,
            server_settings={
                "application_name": "goals-migrate",
                "lock_timeout": str(int(limits.lock_timeout * 1000)),
                # Override the role's limits: building an index may take long, and the guard is idle meanwhile.
                "statement_timeout": "0",
                "idle_session_timeout": "0",
            },
        )

    engine = create_async_engine("postgresql+asyncpg://", async_creator=open_connection, poolclass=NullPool)
    try:
        async with engine.connect() as guard:
            await guard.execution_options(isolation_level="AUTOCOMMIT")
            await _take_turn(guard)
            async with engine.connect() as connection:

                async def run_migrations() -> None:
                    await connection.rollback()  # what a lock cut short
                    await connection.run_sync(_run_migrations)

                await retry_until_unlocked(
                    run_migrations,
                    limits,
                    lambda: log.info("The table is locked by a long transaction; trying again"),
                )
    finally:
        await engine.dispose()


async def _take_turn(guard: AsyncConnection) -> None:
    if await guard.scalar(text("SHOW lock_timeout")) != f"{limits.lock_timeout * 1000:.0f}ms":
        raise CommandError("a pooler drops startup parameters such as lock_timeout: set DB_HOST to PostgreSQL itself")
    # Polled, because a statement that waits for the lock holds a snapshot, and a CREATE INDEX CONCURRENTLY of the
    # migration that holds the lock would wait for that snapshot: a deadlock.
    deadline = time.monotonic() + limits.turn_patience
    said = False
    while not await guard.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}):
        if time.monotonic() > deadline:
            raise CommandError("another migration is still running: look for goals-migrate in pg_stat_activity")
        if not said:
            log.info("Waiting for another migration to end")
            said = True
        await asyncio.sleep(0.1)


def _run_migrations(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transaction_per_migration=True,
        process_revision_directives=_number,
    )
    if context.get_context().opts["fn"].__name__ == "upgrade" and not _look(connection):
        return
    with context.begin_transaction():
        context.run_migrations()


def _look(connection: Connection) -> bool:
    """Check the database before anything changes, and return whether to migrate, which a dry run does not."""
    # part adoption
    adoption.check_versions(connection)
    # end adoption
    heads = context.get_context().get_current_heads()
    # part adoption
    adoption.check_revisions(connection, heads)
    # end adoption
    dry_run = bool(context.config.attributes.get("dry_run"))
    pending = [script for script in context.script.walk_revisions() if not heads or script.revision > heads[0]]
    # part adoption
    repaired = adoption.adopt(connection, pending=bool(pending), first=not heads, dry_run=dry_run)
    for line in repaired:
        log.info(line)
    # end adoption
    connection.rollback()
    if dry_run:
        for script in reversed(pending):
            context.config.print_stdout("revision %s would run: %s", script.revision, script.doc)
        if not pending:
            context.config.print_stdout("nothing would be done: the schema is at revision %s", heads[0])
    return not dry_run


run()
