"""Decides whether this process is ready: from when the schema is usable until the process drains."""

import asyncio

import structlog

from goals import store
from goals.database import Database
from goals.errors import GoalsError
from goals.limits import Limits
from goals.models import COLUMN_TYPES, SCHEMA_REVISION

log = structlog.get_logger(__name__)


class Readiness:
    """The reason why this process is not ready, if any.

    A later outage of the database does not make it unready: all replicas would leave the Service at the same time, and
    a one-second failover would become an outage as long as a probe's period. Requests get a 503 with `Retry-After`
    instead.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.draining = False
        self.obstacle: str | None = "starting"

    def drain(self) -> None:
        """Become unready: this process is about to stop."""
        self.draining = True

    async def wait_for_schema(self, database: Database) -> None:
        """Return once the database has this code's revision or a newer one; until then, `obstacle` says why not."""
        pause = self._limits.first_schema_pause
        while True:
            obstacle = await _find_obstacle(database, self._limits)
            if obstacle is None:
                break
            if obstacle != self.obstacle:
                log.warning("not ready", obstacle=obstacle)
            self.obstacle = obstacle
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._limits.longest_schema_pause)
        self.obstacle = "opening connections"

    def open(self) -> None:
        """Become ready."""
        self.obstacle = None
        log.info("ready")


async def _find_obstacle(database: Database, limits: Limits) -> str | None:
    try:
        timeout = await store.select_statement_timeout(database)
        revision = await store.select_revision(database)
        types = await store.select_column_types(database)
        counts_changes = await store.select_counts_changes(database)
    except GoalsError as error:
        return f"{error} Is it up, and has the migration run? {database.explanation}"
    except Exception as error:  # noqa: BLE001  any error must be reported, and may be temporary
        return f"the schema cannot be read ({type(error).__name__})"
    if timeout != int(limits.statement_timeout * 1000):
        return f"statement_timeout is {timeout} ms: a pooler drops startup parameters; set DB_HOST to PostgreSQL itself"
    if revision is not None and not str(revision).isdecimal():
        return f"alembic_version contains {revision}, from another project: give the service its own database"
    if revision is None or str(revision) < SCHEMA_REVISION:
        return f"the schema is at revision {revision}, but this version needs {SCHEMA_REVISION}: run the migration"
    # An id may also be an integer: that works until its range is used up.
    wrong = [
        f"the column {table}.{column} is {types[table].get(column, 'missing')}, but must be {wanted}"
        for table, columns in COLUMN_TYPES.items()
        for column, wanted in columns.items()
        if types[table].get(column) not in {wanted, "integer" if column == "id" else wanted}
    ]
    if not counts_changes:
        wrong.append("the trigger goals_row_version is disabled or missing: ENABLE it, or create it as in its revision")
    return wrong[0] if wrong else None
