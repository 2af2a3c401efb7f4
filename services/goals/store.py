"""The SQL of the endpoints, the readiness check and the background tasks; every statement may be retried."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Enum,
    Float,
    Interval,
    Row,
    Select,
    String,
    Text,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    literal,
    literal_column,
    null,
    select,
    table,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import REGCLASS, insert
from sqlalchemy.sql.dml import ReturningDelete, ReturningUpdate

from goals.database import Database
from goals.errors import (
    DatabaseUnavailableError,
    GoalChangedError,
    GoalNotFoundError,
    GoalRemovedError,
    IdempotencyKeyReusedError,
    StatementRefusedError,
)
from goals.models import COLUMN_TYPES, Found, Goal, NewGoal, Page, Total, goal_keys, goals

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

BIGGEST_ID = 2**63 - 1
"""PostgreSQL's bigint: no goal has an id beyond it."""
EXACT_COUNT = 10_000
"""Goals are counted up to this number; beyond it, the cost would grow with every goal."""


_COLUMNS = [goals.c[name] for name in Goal._fields]
# A bigint parameter can also use the index of an integer column, and finds nothing beyond its range.
# Not `id`: in an UPDATE, SQLAlchemy reserves that name for the column.
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
    """Return a statement for the table's size beside each row of `page`; it always has at least one row."""
    some = select(literal(1)).select_from(goals).limit(EXACT_COUNT + 1).subquery()
    counted = select(func.count()).select_from(some).scalar_subquery()
    # The planner's own estimate (estimate_rel_size): the density at the last vacuum times the current size.
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


def _take(key: ColumnElement[UUID], fingerprint: ColumnElement[bytes]) -> CTE:
    """Store each key, with a new goal's id unless the key exists.

    A repeat changes the key's row, so that it waits for a standby like the first request: with ON CONFLICT DO NOTHING,
    it would acknowledge a goal that no standby has. It uses no id, and its lock keeps the key from being removed as
    expired in the meantime.
    """
    known = exists(select(literal_column("1")).where(goal_keys.c.key == key).with_for_update())
    goal_id = case((known, literal_column("0")), else_=func.nextval(literal_column("'goals_id_seq'::regclass")))
    return (
        insert(goal_keys)
        .from_select(["key", "fingerprint", "goal_id"], select(key, fingerprint, goal_id))
        .on_conflict_do_update(
            index_elements=[goal_keys.c.key], set_={"repeats": goal_keys.c.repeats + literal_column("1")}
        )
        .returning(goal_keys.c.key, goal_keys.c.goal_id.label("of_goal"), goal_keys.c.fingerprint, goal_keys.c.repeats)
        .cte("taken")
    )


@cache
def _insert(names: tuple[str, ...]) -> Select[Any]:
    """Store the key, and add its goal with values for these columns unless the key exists."""
    taken = _take(
        bindparam("given_key", type_=goal_keys.c.key.type),  # SQLAlchemy reserves the column's name
        bindparam("given_fingerprint", type_=goal_keys.c.fingerprint.type),
    )
    values = [bindparam(f"new_{name}", type_=goals.c[name].type) for name in names]
    new = select(taken.c.of_goal, *values).where(taken.c.repeats == literal_column("0"))
    made = insert(goals).from_select(["id", *names], new).returning(*_COLUMNS).cte("made")
    statement = select(taken.c.of_goal, taken.c.fingerprint, made).select_from(taken.outerjoin(made, true()))
    return statement.execution_options(operation="INSERT", collection=goals.name)


@cache
def _insert_together(names: tuple[str, ...]) -> Select[Any]:
    """Store these keys in their order, and add the goals of the new ones."""
    columns = {"given_key": goal_keys.c.key, "given_fingerprint": goal_keys.c.fingerprint}
    columns |= {f"new_{name}": goals.c[name] for name in names}
    # Text, because a cast to a limited length would cut values. One dimension, because JSON may contain arrays.
    types = {
        name: Text() if isinstance(like.type, String) and not isinstance(like.type, Enum) else like.type
        for name, like in columns.items()
    }
    arrays = (bindparam(name, type_=ARRAY(of, dimensions=1)) for name, of in types.items())
    rows = func.unnest(*arrays).table_valued(*(column(name, of) for name, of in types.items()))
    # Set once, before the first row, for this transaction only. The tables' own locks are taken earlier.
    stall = select(func.set_config("lock_timeout", bindparam("stall", type_=String), true())).scalar_subquery()
    given = select(rows.render_derived("rows")).where(stall.is_not(None)).cte("given")
    taken = _take(given.c.given_key, given.c.given_fingerprint)
    new = (
        select(taken.c.of_goal, *(given.c[f"new_{name}"] for name in names))
        .join_from(taken, given, given.c.given_key == taken.c.key)
        .where(taken.c.repeats == literal_column("0"))
    )
    made = insert(goals).from_select(["id", *names], new).returning(*_COLUMNS).cte("made")
    statement = select(taken.c.key, made).join_from(taken, made, made.c.id == taken.c.of_goal)
    return statement.execution_options(operation="BATCH INSERT", collection=goals.name)


def _confirmed(change: ReturningUpdate[Any] | ReturningDelete[Any]) -> CompoundSelect[Any]:
    """Return the rows of `change`; if there are none, write something else, so that a standby must confirm that too.

    A former primary, or a primary that has just lost its standbys, may have goals that have been removed, and may lack
    others. Synchronous replication keeps it from acknowledging writes, but "there is no such goal" writes nothing, so
    it would be answered immediately, even for a removal that the next failover undoes.
    """
    changed = change.cte("changed")
    written = func.pg_logical_emit_message(true(), "goals", "").column_valued("written")
    nothing = select(*(cast(null(), part.type) for part in changed.c)).where(
        ~exists(select(literal(1)).select_from(changed)), written.is_(None)
    )
    return select(changed).union_all(nothing)


_UNCHANGED = goals.c.row_version == bindparam("seen", type_=BigInteger)


@cache
def _update(names: tuple[str, ...], *, unchanged: bool) -> CompoundSelect[Any]:
    """Change these columns of a goal; `unchanged`: only if it still has the version that was seen."""
    values = {name: bindparam(f"new_{name}", type_=goals.c[name].type) for name in names}
    change = update(goals).where(goals.c.id == _ID).values(values).returning(*_COLUMNS)
    return _confirmed(change.where(_UNCHANGED) if unchanged else change)


_REMOVAL = delete(goals).where(goals.c.id == _ID).returning(goals.c.id)
_DELETE = _confirmed(_REMOVAL)
_DELETE_UNCHANGED = _confirmed(_REMOVAL.where(_UNCHANGED))
_OLD_KEYS = (
    select(goal_keys.c.key)
    .where(goal_keys.c.created_at < func.now() - bindparam("kept", type_=Interval))
    .order_by(goal_keys.c.created_at)
    .limit(_LIMIT)
    .with_for_update(skip_locked=True)
)
_DELETE_OLD_KEYS = select(func.count().label("number")).select_from(
    delete(goal_keys).where(goal_keys.c.key.in_(_OLD_KEYS)).returning(goal_keys.c.key).cte("removed")
)
_REVISION = select(column("version_num", String)).select_from(table("alembic_version"))
_STATEMENT_TIMEOUT = (
    select(column("setting", String))
    .select_from(table("pg_settings", column("name")))
    .where(column("name") == "statement_timeout")
)
_class = table("pg_class", column("oid"), column("relname", String))
_attribute = table(
    "pg_attribute", *map(column, ("attrelid", "attname", "atttypid", "attlen", "attnum", "attisdropped"))
)
_COLUMN_TYPES = (
    select(_class.c.relname, _attribute.c.attname, func.format_type(_attribute.c.atttypid, null()).label("type"))
    .join_from(_class, _attribute, _attribute.c.attrelid == _class.c.oid)
    .where(
        _class.c.oid.in_([func.to_regclass(literal_column(f"'{name}'")) for name in COLUMN_TYPES]),
        _attribute.c.attnum > 0,
        ~_attribute.c.attisdropped,
    )
)
_trigger = table("pg_trigger", *map(column, ("tgrelid", "tgname", "tgenabled")))
_COUNTS_CHANGES = select(
    exists().where(
        _trigger.c.tgrelid == func.to_regclass(literal_column("'goals'")),
        _trigger.c.tgname == "goals_row_version",
        _trigger.c.tgenabled.in_(["O", "A"]),
    )
)
_sequence = table("pg_sequence", *map(column, ("seqrelid", "seqmax")))
_last = func.coalesce(func.pg_sequence_last_value(_sequence.c.seqrelid), 0)
_highest = func.least(_sequence.c.seqmax, func.power(2.0, 8 * _attribute.c.attlen - 1) - 1, type_=Float)
_IDS_USED = (
    select((cast(_last, Float) / _highest).label("used"))
    .join_from(_attribute, _sequence, _sequence.c.seqrelid == func.to_regclass(literal_column("'goals_id_seq'")))
    .where(
        _attribute.c.attrelid == func.to_regclass(literal_column("'goals'")),
        _attribute.c.attname == "id",
        func.has_sequence_privilege(_sequence.c.seqrelid, "USAGE, SELECT"),
    )
)


async def select_page(database: Database, *, before: int | None, limit: int) -> Page:
    """Return up to `limit` goals older than `before`, or the newest."""
    result = await database.read(_OLDER, {"before": _bound(before), "limit": limit + 1})
    rows = [_goal(row) for row in result.rows]
    return Page(rows[:limit], more=len(rows) > limit, standby=result.standby)


async def select_page_and_total(
    database: Database, *, before: int | None, after: int | None, limit: int
) -> tuple[Page, Total]:
    """Return up to `limit` goals older than `before`, newer than `after`, or the newest; and the number of goals."""
    if after is None:
        result = await database.read(_OLDER_WITH_TOTAL, {"before": _bound(before), "limit": limit + 1})
    else:
        result = await database.read(_NEWER_WITH_TOTAL, {"after": _bound(after), "limit": limit + 1})
    found = sorted((_goal(row) for row in result.rows if row.id is not None), reverse=True)
    more = len(found) > limit
    page = found[:limit] if after is None else found[-limit:]
    return Page(page, more=more, standby=result.standby), _total(result.rows[0])


def _bound(number: int | None) -> int:
    return BIGGEST_ID if number is None else min(number, BIGGEST_ID)


def _goal(row: Row[Any]) -> Goal:
    """Return the goal in the last columns of the row."""
    return Goal._make(row[-len(_COLUMNS) :])


def _total(row: Row[Any]) -> Total:
    if row.counted <= EXACT_COUNT:
        return Total(row.counted, exact=True)
    estimate = round(row.estimated or 0)
    return Total(estimate if estimate > EXACT_COUNT else None, exact=False)


async def find_goal(database: Database, goal_id: int) -> Found:
    """Return a goal for display; while the primary is unavailable, from a standby."""
    result = await database.read(_GOAL, {"goal_id": _bound(goal_id)})
    if not result.rows:
        raise GoalNotFoundError(f"There is no goal {goal_id}.", standby=result.standby)
    return Found(_goal(result.rows[0]), result.standby)


async def select_goal(database: Database, goal_id: int) -> Goal:
    """Return a goal that is about to be changed: always from the primary, and wait for it."""
    if goal_id <= BIGGEST_ID:
        rows = await database.fetch(_GOAL, {"goal_id": goal_id}, for_write=True)
        if rows:
            return _goal(rows[0])
    raise GoalNotFoundError(f"There is no goal {goal_id}.")


async def insert_goal(database: Database, values: Mapping[str, object], key: UUID, fingerprint: bytes) -> Goal:
    """Add the goal, or find the one that was added with `key`: a repeated request gets its goal as it is now.

    A key that was used with another `fingerprint` raises `IdempotencyKeyReusedError`; a key whose goal has been removed
    since raises `GoalRemovedError`.
    """
    parameters = {"given_key": key, "given_fingerprint": fingerprint, **_new(values)}
    (row,) = await database.fetch(_insert(tuple(values)), parameters, write=True)
    if row.fingerprint != fingerprint:
        raise IdempotencyKeyReusedError("This idempotency key has been used for another goal.")
    if row.id is not None:
        return _goal(row)
    found = await database.fetch(_GOAL, {"goal_id": row.of_goal}, for_write=True)
    if found:
        return _goal(found[0])
    # Change the key again, after the removal: a standby confirms it, and the removal with it.
    await database.fetch(_insert(tuple(values)), parameters, write=True)
    raise GoalRemovedError("The goal that was added with this idempotency key has been removed since.")


async def insert_goals(
    database: Database, new: Iterable[NewGoal], stall: float
) -> tuple[dict[UUID, Goal], "SpanContext | None"]:
    """Add these goals, which have the same columns and different keys, in one statement; return them and its span.

    A key that was used before is not in the result: use `insert_goal` for it. No goal was added after
    a `StatementRefusedError`, or a `LockedError`: another transaction holds a key for longer than `stall` seconds.
    """
    # In the order of their keys, so that two statements that share keys cannot deadlock.
    new = sorted(new, key=attrgetter("key"))
    if any(isinstance(goals.c[name].type, ARRAY) for name in new[0].values):
        raise StatementRefusedError("An array of arrays cannot be unnested to rows.")
    parameters: dict[str, object] = {f"new_{name}": [one.values[name] for one in new] for name in new[0].values}
    parameters |= {"given_key": [one.key for one in new], "given_fingerprint": [one.fingerprint for one in new]}
    parameters |= {"stall": f"{stall * 1000:.0f}ms"}
    result = await database.run(_insert_together(tuple(new[0].values)), parameters, admitted=len(new), write=True)
    return {row.key: _goal(row) for row in result.rows}, result.span


def _new(values: Mapping[str, object]) -> dict[str, object]:
    return {f"new_{name}": value for name, value in values.items()}


async def update_goal(
    database: Database, goal_id: int, values: Mapping[str, object], *, seen: int | None = None
) -> Goal:
    """Change the goal; with `seen`, only if it still has that version, else raise `GoalChangedError`."""
    if goal_id <= BIGGEST_ID:
        statement = _update(tuple(values), unchanged=seen is not None)
        parameters = {"goal_id": goal_id, **_new(values)}
        if seen is not None:
            parameters["seen"] = _bound(seen)
        rows, attempts, *_ = await database.run(statement, parameters, write=True)
        if rows:
            return _goal(rows[0])
        if seen is not None and attempts == 1:
            raise GoalChangedError("The goal has changed since it was read.")
        if seen is not None:
            # The first attempt may have made the change that the second attempt conflicts with.
            now = await select_goal(database, goal_id)
            if now.row_version == seen + 1 and values.items() <= now._asdict().items():
                return now
            raise DatabaseUnavailableError("The database did not confirm whether it was done.")
    raise GoalNotFoundError(f"There is no goal {goal_id}.")


async def delete_goal(database: Database, goal_id: int, *, seen: int | None = None) -> None:
    """Remove the goal, or raise `GoalNotFoundError`; with `seen`, only if it still has that version."""
    if goal_id <= BIGGEST_ID:
        if seen is None:
            rows, attempts, *_ = await database.run(_DELETE, {"goal_id": goal_id}, write=True)
        else:
            rows, attempts, *_ = await database.run(_DELETE_UNCHANGED, {"goal_id": goal_id, "seen": seen}, write=True)
        if rows:
            return
        if seen is not None and (attempts == 1 or await database.fetch(_GOAL, {"goal_id": goal_id}, for_write=True)):
            raise GoalChangedError("The goal has changed since it was read.")
        # A later attempt finds nothing: an earlier one may have removed it. Either way, the goal is gone.
        if attempts > 1:
            return
    raise GoalNotFoundError(f"There is no goal {goal_id}.")


async def select_revision(database: Database) -> str | None:
    """Return Alembic's revision of the schema, or None if there is none yet."""
    rows = await database.fetch(_REVISION)
    return rows[0].version_num if rows else None


async def delete_old_keys(database: Database, kept: timedelta, limit: int) -> int:
    """Remove up to `limit` keys older than `kept`, skip those that another process removes; return the number."""
    (row,) = await database.fetch(_DELETE_OLD_KEYS, {"kept": kept, "limit": limit}, write=True)
    return int(row.number)


async def select_column_types(database: Database) -> dict[str, dict[str, str]]:
    """Return PostgreSQL's name for the current type of each column, by table and column."""
    types: dict[str, dict[str, str]] = {name: {} for name in COLUMN_TYPES}
    for row in await database.fetch(_COLUMN_TYPES):
        types[row.relname][row.attname] = row.type
    return types


async def select_counts_changes(database: Database) -> bool:
    """Whether the trigger that increments the row version of a changed goal is enabled."""
    ((counts,),) = await database.fetch(_COUNTS_CHANGES)
    return bool(counts)


async def select_statement_timeout(database: Database) -> int:
    """Return the session's statement_timeout in milliseconds."""
    (row,) = await database.fetch(_STATEMENT_TIMEOUT)
    return int(row.setting)


async def select_ids_used(database: Database) -> float | None:
    """Return the last id as a share of the highest one that both the column and its sequence can hold.

    None if the table or its sequence does not exist, or this role may not read it.
    """
    rows = await database.fetch(_IDS_USED)
    return float(rows[0].used) if rows else None
