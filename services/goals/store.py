"""Every SQL statement of the service, each a single one; what may not be sent twice says so."""

from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CompoundSelect,
    Float,
    Row,
    Select,
    String,
    bindparam,
    cast,
    column,
    delete,
    exists,
    func,
    literal,
    null,
    select,
    table,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import REGCLASS, insert
from sqlalchemy.sql.dml import ReturningDelete, ReturningUpdate

from goals.database import Database
from goals.errors import GoalChangedError, GoalNotFoundError, IdempotencyKeyReusedError
from goals.models import Goal, Page, Total, goals

BIGGEST_ID = 2**63 - 1
"""PostgreSQL's bigint: no goal has an id beyond it."""
EXACT_COUNT = 10_000
"""Up to here goals are counted; counting further would cost more with every goal."""


_COLUMNS = (goals.c.id, goals.c.goal_name, goals.c.created_at)
# bigint parameters against the integer column still use its index, and an id out of its range is just not found.
# Not `id`: in an UPDATE that name is kept for the column.
_ID = bindparam("goal_id", type_=BigInteger)
_LIMIT = bindparam("limit", type_=BigInteger)

_OLDER = (
    select(*_COLUMNS)
    .where(goals.c.id < bindparam("before", type_=BigInteger))
    .order_by(goals.c.id.desc())
    .limit(_LIMIT)
)
_NEWER = select(*_COLUMNS).where(goals.c.id > bindparam("after", type_=BigInteger)).order_by(goals.c.id).limit(_LIMIT)


def _with_total(page: Select[Any]) -> Select[Any]:
    """One row at least: the table's size beside each row of `page`, so that both come from one statement."""
    some = select(literal(1)).select_from(goals).limit(EXACT_COUNT + 1).subquery()
    counted = select(func.count()).select_from(some).scalar_subquery()
    # The planner's own estimate (estimate_rel_size): the density at the last vacuum times the size of today.
    pg_class = table("pg_class", column("oid"), column("reltuples"), column("relpages"))
    blocks = func.pg_relation_size(pg_class.c.oid) / cast(func.current_setting("block_size"), Float)
    estimated = (
        select(pg_class.c.reltuples / func.nullif(pg_class.c.relpages, 0) * blocks)
        .where(pg_class.c.oid == cast(literal("goals", String), REGCLASS))
        .scalar_subquery()
    )
    size = select(counted.label("counted"), cast(estimated, Float).label("estimated")).subquery("size")
    rows = page.subquery("rows")
    return select(size, rows).select_from(size.outerjoin(rows, true()))


_OLDER_WITH_TOTAL = _with_total(_OLDER)
_NEWER_WITH_TOTAL = _with_total(_NEWER)
_GOAL = select(*_COLUMNS).where(goals.c.id == _ID)
_INSERT = insert(goals).values(goal_name=bindparam("name"), idempotency_key=bindparam("key"))
_INSERT_ONCE = _INSERT.on_conflict_do_update(
    index_elements=[goals.c.idempotency_key],
    index_where=goals.c.idempotency_key.is_not(None),
    # Changes nothing: DO NOTHING would return no row, and a second statement could find it gone.
    set_={"idempotency_key": _INSERT.excluded.idempotency_key},
).returning(*_COLUMNS, goals.c.original_name)


def _confirmed(change: ReturningUpdate[Any] | ReturningDelete[Any]) -> CompoundSelect[Any]:
    """The rows of `change`; where there are none, something else is written, so that a standby has to confirm that too.

    A former primary that nobody follows any more, or one that has just lost its standbys, knows goals that are gone and
    lacks others. Synchronous replication keeps it from acknowledging what it writes, but "there is no such goal" writes
    nothing and would be told at once, for a removal that is then undone by the next failover.
    """
    changed = change.cte("changed")
    written = func.pg_logical_emit_message(true(), "goals", "").column_valued("written")
    nothing = select(*(cast(null(), part.type) for part in changed.c)).where(
        ~exists(select(literal(1)).select_from(changed)), written.is_(None)
    )
    return select(changed).union_all(nothing)


_CHANGE = (
    update(goals)
    .where(goals.c.id == _ID)
    .values(goal_name=bindparam("name"), original_name=func.coalesce(goals.c.original_name, goals.c.goal_name))
    .returning(*_COLUMNS)
)
_RENAME = _confirmed(_CHANGE)
_RENAME_UNCHANGED = _confirmed(_CHANGE.where(goals.c.goal_name == bindparam("seen")))
_REMOVAL = delete(goals).where(goals.c.id == _ID).returning(goals.c.id)
_DELETE = _confirmed(_REMOVAL)
_DELETE_UNCHANGED = _confirmed(_REMOVAL.where(goals.c.goal_name == bindparam("seen")))
_REVISION = select(column("version_num", String)).select_from(table("alembic_version"))
_STATEMENT_TIMEOUT = (
    select(column("setting", String))
    .select_from(table("pg_settings", column("name")))
    .where(column("name") == "statement_timeout")
)
_attribute = table("pg_attribute", *map(column, ("attrelid", "attname", "atttypid", "attnum", "attisdropped")))
_COLUMN_TYPES = select(_attribute.c.attname, func.format_type(_attribute.c.atttypid, null()).label("type")).where(
    _attribute.c.attrelid == func.to_regclass("goals"), _attribute.c.attnum > 0, ~_attribute.c.attisdropped
)


async def select_page(database: Database, *, before: int | None, limit: int) -> Page:
    """Up to `limit` goals older than `before`, or the newest."""
    rows = await database.fetch(_OLDER, {"before": _bound(before), "limit": limit + 1})
    return Page([_goal(row) for row in rows[:limit]], more=len(rows) > limit)


async def select_page_and_total(
    database: Database, *, before: int | None, after: int | None, limit: int
) -> tuple[Page, Total]:
    """Up to `limit` goals older than `before`, or newer than `after`, or the newest; and how many there are."""
    if after is None:
        rows = await database.fetch(_OLDER_WITH_TOTAL, {"before": _bound(before), "limit": limit + 1})
    else:
        rows = await database.fetch(_NEWER_WITH_TOTAL, {"after": _bound(after), "limit": limit + 1})
    found = sorted((_goal(row) for row in rows if row.id is not None), reverse=True)
    more = len(found) > limit
    page = found[:limit] if after is None else found[-limit:]
    return Page(page, more=more), _total(rows[0])


def _bound(goal_id: int | None) -> int:
    return BIGGEST_ID if goal_id is None else min(goal_id, BIGGEST_ID)


def _goal(row: Row[Any]) -> Goal:
    return Goal(row.id, row.goal_name, row.created_at)


def _total(row: Row[Any]) -> Total:
    if row.counted <= EXACT_COUNT:
        return Total(row.counted, exact=True)
    estimate = round(row.estimated or 0)
    return Total(estimate if estimate > EXACT_COUNT else None, exact=False)


async def select_goal(database: Database, goal_id: int) -> Goal:
    if goal_id <= BIGGEST_ID:
        rows = await database.fetch(_GOAL, {"goal_id": goal_id})
        if rows:
            return _goal(rows[0])
    raise GoalNotFoundError(f"There is no goal {goal_id}.")


async def insert_goal(database: Database, name: str, key: UUID) -> Goal:
    """Make the goal, or find the one that `key` made: whoever repeats a request gets its goal as it is now.

    A key that made a goal of another name raises `IdempotencyKeyReusedError`.
    """
    (row,) = await database.fetch(_INSERT_ONCE, {"name": name, "key": key})
    if name != (row.goal_name if row.original_name is None else row.original_name):
        raise IdempotencyKeyReusedError("This idempotency key has made a goal of another name.")
    return _goal(row)


async def update_goal(database: Database, goal_id: int, name: str, *, seen: Goal | None = None) -> Goal:
    """Rename the goal; where `seen` is given, only while it still has the name seen then (`GoalChangedError`)."""
    if goal_id <= BIGGEST_ID:
        if seen is None:
            rows = await database.fetch(_RENAME, {"goal_id": goal_id, "name": name})
        else:
            # Sent once: after an outcome that is not known, a second try would find the new name and say "changed".
            parameters = {"goal_id": goal_id, "name": name, "seen": seen.goal_name}
            rows = await database.fetch(_RENAME_UNCHANGED, parameters, repeatable=False)
            if not rows:
                raise GoalChangedError("The goal has changed since it was read.")
        if rows:
            return _goal(rows[0])
    raise GoalNotFoundError(f"There is no goal {goal_id}.")


async def delete_goal(database: Database, goal_id: int, *, seen: Goal | None = None) -> None:
    """Remove the goal, or raise `GoalNotFoundError`; where `seen` is given, only while it has the name seen then."""
    if goal_id <= BIGGEST_ID:
        if seen is None:
            rows, attempts = await database.run(_DELETE, {"goal_id": goal_id})
        else:
            rows, attempts = await database.run(_DELETE_UNCHANGED, {"goal_id": goal_id, "seen": seen.goal_name})
        if rows:
            return
        if seen is not None and (attempts == 1 or await database.fetch(_GOAL, {"goal_id": goal_id})):
            raise GoalChangedError("The goal has changed since it was read.")
        # A second attempt that finds nothing follows a first one that may have removed it: either way it is gone.
        if attempts > 1:
            return
    raise GoalNotFoundError(f"There is no goal {goal_id}.")


async def select_revision(database: Database) -> str | None:
    """Give Alembic's revision of the schema, or None where there is none yet."""
    rows = await database.fetch(_REVISION)
    return rows[0].version_num if rows else None


async def select_column_types(database: Database) -> dict[str, str]:
    """Give the columns that the table has now, and PostgreSQL's name of each one's type."""
    return {row.attname: row.type for row in await database.fetch(_COLUMN_TYPES)}


async def select_statement_timeout(database: Database) -> int:
    """Give the session's statement_timeout in milliseconds."""
    (row,) = await database.fetch(_STATEMENT_TIMEOUT)
    return int(row.setting)
