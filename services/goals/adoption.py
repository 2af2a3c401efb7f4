"""A look at the database before it is migrated: what the service could not serve is refused, with the remedy."""

import re
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError, NoResultFound

from goals.errors import ConfigurationError
from goals.sqlstates import sqlstate

MAKE_TEXT = """
    DO $$ BEGIN
        IF (SELECT atttypid FROM pg_attribute WHERE attrelid = 'goals'::regclass AND attname = 'goal_name')
                <> 'text'::regtype THEN
            ALTER TABLE goals ALTER COLUMN goal_name TYPE TEXT;
        END IF;
    END $$
"""
"""Drop the limit of a VARCHAR, which rewrites no row; leave alone what is TEXT already, as views may depend on it."""
ADD_COLUMNS = """
    ALTER TABLE goals
        ADD COLUMN IF NOT EXISTS created_at TIMESTAMPTZ,
        ADD COLUMN IF NOT EXISTS idempotency_key UUID,
        ADD COLUMN IF NOT EXISTS original_name TEXT,
        ALTER COLUMN created_at SET DEFAULT now()
"""
"""Nullable and without a default at first, these change the catalogue only; the default is for rows to come."""

_ROOM = 10_000
"""Ids that must be left."""

_VERSIONS = """
    SELECT 'alembic_version is not the table that Alembic makes: rename it, or give the service a database of its own'
    FROM pg_class WHERE oid = to_regclass('alembic_version') AND NOT (relkind = 'r' AND EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND attname = 'version_num' AND NOT attisdropped
            AND atttypid IN ('varchar'::regtype, 'text'::regtype) AND (atttypmod = -1 OR atttypmod >= 8)))
    UNION ALL
    SELECT format('%1$I may not change alembic_version: GRANT ALL ON alembic_version TO %1$I', current_user)
    FROM pg_class WHERE oid = to_regclass('alembic_version') AND NOT (
        has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
        AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
"""
_RIGHTS = (
    """
    SELECT format('transactions are read-only: turn default_transaction_read_only off (set by: %s)', source)
    FROM pg_settings WHERE name = 'default_transaction_read_only' AND setting = 'on'
    """,
    """
    SELECT format('search_path (%s) leads to no schema: ALTER ROLE %I SET search_path = public',
                  current_setting('search_path'), current_user)
    WHERE current_schema() IS NULL
    """,
    """
    SELECT format('%1$I may not create anything in the schema %2$I: GRANT CREATE ON SCHEMA %2$I TO %1$I',
                  current_user, current_schema())
    WHERE NOT has_schema_privilege(current_schema(), 'CREATE')
    """,
    """
    SELECT format('goals is in the schema %1$I, and search_path creates tables in %2$I: '
                  'ALTER ROLE %3$I SET search_path = %1$I', nspname, current_schema(), current_user)
    FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
    WHERE pg_class.oid = to_regclass('goals') AND nspname <> current_schema()
    """,
    """
    SELECT format('the table goals belongs to %s: ALTER TABLE goals OWNER TO %I', relowner::regrole, current_user)
    FROM pg_class WHERE oid = to_regclass('goals') AND NOT pg_has_role(relowner, 'USAGE')
    """,
    """
    SELECT format('the name goals_idempotency_key_idx is taken, by %s: rename that',
                  pg_describe_object('pg_class'::regclass, pg_class.oid, 0))
    FROM pg_class LEFT JOIN pg_index ON indexrelid = pg_class.oid
    WHERE pg_class.oid = to_regclass('goals_idempotency_key_idx') AND (
        indrelid IS DISTINCT FROM to_regclass('goals')
        OR EXISTS (SELECT FROM pg_constraint WHERE conindid = pg_class.oid)
        OR pg_get_indexdef(indexrelid, 1, true) <> 'idempotency_key')
    """,
)
"""As `_OBSTACLES`, for what only a migration needs."""

_OBSTACLES = (
    # The database.
    """
    SELECT format('the database %I has the encoding %s, and names are UTF8: make one with ENCODING ''UTF8'' TEMPLATE'
                  ' template0, and move the data there', datname, pg_encoding_to_char(encoding))
    FROM pg_database WHERE datname = current_database() AND pg_encoding_to_char(encoding) <> 'UTF8'
    """,
    "SELECT 'PostgreSQL is a standby, which takes no writes: let DB_HOST name the primary' WHERE pg_is_in_recovery()",
    # The table itself.
    """
    SELECT 'goals is ' || CASE relkind
        WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view' WHEN 'f' THEN 'a foreign table'
        WHEN 'p' THEN 'a partitioned table' WHEN 'S' THEN 'a sequence' ELSE 'no table' END
        || ': rename it, or give the service a database of its own'
    FROM pg_class WHERE oid = to_regclass('goals') AND relkind <> 'r'
    """,
    """
    SELECT format('the table goals is part of an inheritance or a partitioning with %s: move its rows to a plain table',
                  CASE inhrelid WHEN to_regclass('goals') THEN inhparent ELSE inhrelid END::regclass)
    FROM pg_inherits WHERE to_regclass('goals') IN (inhrelid, inhparent)
    """,
    """
    SELECT 'the table goals is UNLOGGED, and empty after a crash: ALTER TABLE goals SET LOGGED'
    FROM pg_class WHERE oid = to_regclass('goals') AND relpersistence = 'u'
    """,
    """
    SELECT 'row security is forced on the table goals, and hides rows from its owner: '
           'ALTER TABLE goals NO FORCE ROW LEVEL SECURITY'
    FROM pg_class WHERE oid = to_regclass('goals') AND relforcerowsecurity
    """,
    """
    SELECT format('the rule %1$I on the table goals rewrites statements: DROP RULE %1$I ON goals', rulename)
    FROM pg_rewrite WHERE ev_class = to_regclass('goals')
    """,
    # Its columns.
    """
    SELECT format('the table goals has no column %s: rename the table, or give the service a database of its own', name)
    FROM (VALUES ('id'), ('goal_name')) AS wanted (name)
    WHERE to_regclass('goals') IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass('goals') AND attname = name AND NOT attisdropped)
    """,
    """
    SELECT format('the column goals.%s is %s, and has to be %s: %s', name, format_type(atttypid, atttypmod), types[1],
                  CASE WHEN types[1] = 'timestamptz' AND atttypid = 'timestamp'::regtype
                       THEN 'ALTER TABLE goals ALTER COLUMN created_at TYPE timestamptz USING created_at AT TIME ZONE'
                            ' ''UTC''' ELSE 'change its type, or rename the table' END)
    FROM (VALUES ('id', ARRAY['bigint', 'integer']), ('goal_name', ARRAY['text', 'varchar']),
                 ('created_at', ARRAY['timestamptz']), ('idempotency_key', ARRAY['uuid']),
                 ('original_name', ARRAY['text'])) AS wanted (name, types)
    JOIN pg_attribute ON attrelid = to_regclass('goals') AND attname = name AND NOT attisdropped
    WHERE atttypid <> ALL (types::regtype[])
    """,
    """
    SELECT format('the column goals.%I is generated, and the service writes it: make it a plain column', attname)
    FROM pg_attribute WHERE attrelid = to_regclass('goals') AND NOT attisdropped AND attgenerated <> ''
        AND attname IN ('id', 'goal_name', 'created_at', 'idempotency_key', 'original_name')
    """,
    """
    SELECT format('the column goals.%1$I must be filled, and the service does not fill it: '
                  'ALTER TABLE goals ALTER COLUMN %1$I DROP NOT NULL, or SET DEFAULT', attname)
    FROM pg_attribute
    WHERE attrelid = to_regclass('goals') AND attnum > 0 AND NOT attisdropped AND attnotnull
        AND (attname IN ('idempotency_key', 'original_name')
             OR NOT atthasdef AND attidentity = '' AND attname NOT IN ('id', 'goal_name'))
    """,
    """
    SELECT 'ids are not guaranteed to be unique: ALTER TABLE goals ADD PRIMARY KEY (id), or ADD UNIQUE (id) and SET NOT'
           ' NULL'
    FROM pg_attribute
    WHERE attrelid = to_regclass('goals') AND attname = 'id' AND NOT (attnotnull AND EXISTS (
        SELECT FROM pg_index WHERE indrelid = attrelid AND indisunique AND indisvalid AND indimmediate
            AND indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = attnum))
    """,
    """
    SELECT 'goals.goal_name may be NULL: name the goals without a name, and ALTER TABLE goals ALTER COLUMN goal_name'
           ' SET NOT NULL'
    FROM pg_attribute
    WHERE attrelid = to_regclass('goals') AND attname = 'goal_name' AND (NOT attnotnull OR EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = attrelid AND contype = 'n' AND NOT convalidated
            AND conkey = ARRAY[attnum]))
    """,
    """
    SELECT format('goals.goal_name has the collation %s, for which different names are equal: '
                  'ALTER TABLE goals ALTER COLUMN goal_name TYPE text COLLATE "default"', attcollation::regcollation)
    FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation
    WHERE attrelid = to_regclass('goals') AND attname = 'goal_name' AND NOT collisdeterministic
    """,
    """
    SELECT 'the column goals.id is filled by no sequence: ALTER TABLE goals ALTER COLUMN id DROP DEFAULT,'
           ' ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY'
    FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = to_regclass('goals') AND attname = 'id' AND NOT attisdropped AND attidentity = ''
        AND (adbin IS NULL OR pg_get_expr(adbin, adrelid) !~ '^nextval[(]''[^'']+''::regclass[)]$')
    """,
    # What else depends on its columns, or holds for its rows.
    """
    SELECT format('%s stands in the way of making goals.goal_name TEXT: drop it, migrate, and recreate it',
                  pg_describe_object(classid, objid, objsubid))
    FROM pg_depend JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
    WHERE refclassid = 'pg_class'::regclass AND refobjid = to_regclass('goals') AND attname = 'goal_name'
        AND atttypid <> 'text'::regtype AND deptype IN ('n', 'a')
        AND classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass, 'pg_attrdef'::regclass,
                        'pg_publication_rel'::regclass, 'pg_proc'::regclass)
        AND NOT (classid = 'pg_attrdef'::regclass AND EXISTS (
            SELECT FROM pg_attrdef WHERE oid = objid AND adnum = attnum))
    """,
    """
    SELECT format('%s forbids what the service allows, such as two goals with one name: drop it', indexrelid::regclass)
    FROM pg_index WHERE indrelid = to_regclass('goals') AND (indisunique OR indisexclusion)
        AND (SELECT attnum FROM pg_attribute WHERE attrelid = indrelid AND attname = 'goal_name')
            = ANY ((indkey::int2[])[0:indnkeyatts - 1])
    """,
    """
    SELECT format('%s is deferrable, and ON CONFLICT cannot use it: drop it', indexrelid::regclass)
    FROM pg_index WHERE indrelid = to_regclass('goals') AND indisunique AND NOT indimmediate
        AND (SELECT attnum FROM pg_attribute WHERE attrelid = indrelid AND attname = 'idempotency_key') = ANY (indkey)
    """,
    """
    SELECT format('the constraint %1$I restricts columns that only the service fills: '
                  'ALTER TABLE goals DROP CONSTRAINT %1$I', conname)
    FROM pg_constraint WHERE conrelid = to_regclass('goals') AND contype = 'c'
        AND pg_get_constraintdef(pg_constraint.oid) <> 'CHECK ((id > 0))' AND EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey)
            AND attname IN ('id', 'created_at', 'idempotency_key', 'original_name'))
    """,
    """
    SELECT format('the constraint %1$I may not hold for all goals: ALTER TABLE goals VALIDATE CONSTRAINT %1$I', conname)
    FROM pg_constraint WHERE conrelid = to_regclass('goals') AND contype = 'c' AND NOT convalidated
    """,
    """
    WITH RECURSIVE removed (relation) AS (
        SELECT to_regclass('goals')::oid
        UNION SELECT conrelid FROM pg_constraint JOIN removed ON confrelid = relation
        WHERE contype = 'f' AND confdeltype = 'c')
    SELECT format('the constraint %I of %s keeps goals from being removed: recreate it with ON DELETE CASCADE',
                  conname, conrelid::regclass)
    FROM pg_constraint JOIN removed ON confrelid = relation
    WHERE contype = 'f' AND (confdeltype NOT IN ('c', 'n') OR confdeltype = 'n' AND EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey) AND attnotnull))
    """,
)
"""Statements that each find one thing that keeps the service from working, and give a row that names it and the remedy.

They read catalogues only, where a table that is not there is NULL.
"""

_SEQUENCE = """
    SELECT s.oid::regclass::text AS name, seqincrement AS step, seqcycle AS cycles,
           CASE atttypid WHEN 'integer'::regtype THEN least(seqmax, 2147483647) ELSE seqmax END AS most,
           (SELECT min(id) FROM goals) AS lowest, (SELECT max(id) FROM goals) AS highest
    FROM pg_attribute
    LEFT JOIN pg_attrdef a ON adrelid = attrelid AND adnum = attnum
    JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid AND d.refclassid = 'pg_class'::regclass
        OR d.deptype = 'i' AND d.classid = 'pg_class'::regclass AND d.refobjid = attrelid AND d.refobjsubid = attnum
    JOIN pg_class s ON s.relkind = 'S' AND s.oid IN (d.objid, d.refobjid)
    JOIN pg_sequence ON seqrelid = s.oid
    WHERE attrelid = 'goals'::regclass AND attname = 'id'
"""
_TRIALS = {
    "one character": "7",
    "three characters": "abc",
    "255 characters": "😀" * 255,
    "a name": "Read a book a month",
    "ASCII": "".join(map(chr, range(0x21, 0x7F))),
    "upper case": "RUN 10 KM",
    "lower case": "run  10 km",
    "other scripts": "Überqueren e\u0301 越える عبور",
    "punctuation": "“It\u2019s” ☃",
}
"""Names that a client may send, by what they are."""
_NOT_THE_TABLES = ("08", "40", "53", "55", "57P", "58")
"""Errors that pass: a lost connection, a deadlock, a lock that is held."""


def check_versions(connection: Connection) -> None:
    """Raise a `ConfigurationError` where Alembic's own table cannot be worked with."""
    _refuse(connection, _VERSIONS)


def check_revisions(connection: Connection, heads: Sequence[str]) -> None:
    """Raise a `ConfigurationError` where alembic_version does not tell of this project's migrations."""
    if len(heads) > 1 or any(not re.fullmatch("[0-9]{4}", str(head)) for head in heads):
        raise ConfigurationError(
            f"alembic_version holds {' and '.join(map(str, heads))}, which is no revision of this project: another one"
            " migrates this database; give the service a database, or a schema (search_path), of its own"
        )
    if heads and not _has_table(connection):
        raise ConfigurationError(
            f"alembic_version holds {heads[0]}, but there is no table goals: restore it, or DROP TABLE alembic_version"
        )


def adopt(connection: Connection, *, pending: bool, first: bool, dry_run: bool = False) -> list[str]:
    """Look at a database that is about to be migrated, mend what is safe to mend, and say in a line each what that was.

    A `ConfigurationError` says in one line what the service could not work with, and what to do; nothing is altered
    then. `dry_run` mends nothing. As no catalogue tells what a trigger or a constraint does, a table that none of our
    revisions has met (`first`) is tried: the columns are added, and goals added, renamed and removed, in a transaction
    that is rolled back and locks the table for as long.
    """
    for statement in (*(_RIGHTS if pending else ()), *_OBSTACLES):
        _refuse(connection, statement)
    if not _has_table(connection):
        return []
    if first:
        _check_rows(connection)
    sequence = connection.execute(text(_SEQUENCE)).one()
    following = _check_sequence(connection, sequence)
    behind = sequence.highest is not None and following <= sequence.highest
    if first:
        _try(connection, sequence, set_to=sequence.highest if behind else None)
    if not behind:
        return []
    if not dry_run:
        connection.execute(text("LOCK TABLE goals IN SHARE ROW EXCLUSIVE MODE"))  # so that nobody else adds meanwhile
        _set(connection, sequence.name, max(sequence.highest, _read(connection, sequence.name).last_value))
        connection.commit()
    verb = "would be set" if dry_run else "has been set"
    return [f"the next id was {following}, and goals has ids up to {sequence.highest}: {sequence.name} {verb} to that"]


def _refuse(connection: Connection, statement: str) -> None:
    for (obstacle,) in connection.exec_driver_sql(statement):
        raise ConfigurationError(obstacle)


def _has_table(connection: Connection) -> bool:
    return bool(connection.scalar(text("SELECT to_regclass('goals') IS NOT NULL")))


def _check_rows(connection: Connection) -> None:
    columns = set(connection.scalars(text("SELECT attname FROM pg_attribute WHERE attrelid = 'goals'::regclass")))
    if "created_at" in columns:
        strange = connection.scalar(
            text("SELECT id FROM goals WHERE created_at NOT BETWEEN '0001-01-02Z' AND '9999-12-30Z' LIMIT 1")
        )
        if strange is not None:
            raise ConfigurationError(f"created_at of goal {strange} lies outside of the years 1 to 9999: correct it")
    if "idempotency_key" in columns:
        twice = connection.scalar(
            text(
                "SELECT idempotency_key FROM goals WHERE idempotency_key IS NOT NULL"
                " GROUP BY idempotency_key HAVING count(*) > 1 LIMIT 1"
            )
        )
        if twice is not None:
            raise ConfigurationError(f"several goals have the idempotency_key {twice}: set it to NULL in all but one")


def _check_sequence(connection: Connection, sequence: Row[Any]) -> int:
    """The id that comes next; a `ConfigurationError` where not every id that follows will do."""
    name = sequence.name
    if sequence.step < 1 or sequence.cycles:
        raise ConfigurationError(
            f"the sequence {name} counts down or cycles: ALTER SEQUENCE {name} INCREMENT BY 1 NO CYCLE"
        )
    state = _read(connection, name)
    following = int(state.last_value + (sequence.step if state.is_called else 0))
    lowest = following if sequence.lowest is None else min(sequence.lowest, following)
    if lowest < 1:
        raise ConfigurationError(f"ids begin with 1, and goals has or gives out {lowest}: renumber, and move {name}")
    highest = max(following, sequence.highest or 0)
    if sequence.most - highest < _ROOM * sequence.step:
        raise ConfigurationError(f"ids end at {sequence.most:,}, and {highest:,} is reached: widen id and {name}")
    return following


def _read(connection: Connection, sequence: str) -> Row[Any]:
    return connection.execute(text(f"SELECT last_value, is_called FROM {sequence}")).one()  # noqa: S608  quoted already


def _set(connection: Connection, sequence: str, last: int, *, is_called: bool = True) -> None:
    statement = text("SELECT setval(CAST(:sequence AS regclass), :last, :is_called)")
    connection.execute(statement, {"sequence": sequence, "last": last, "is_called": is_called})


def _try(connection: Connection, sequence: Row[Any], *, set_to: int | None) -> None:
    """Write what clients may write, and take it back, with the ids that it used up."""
    connection.execute(text("LOCK TABLE goals IN ACCESS EXCLUSIVE MODE"))  # so that nobody else adds goals meanwhile
    before = _read(connection, sequence.name)
    if set_to is not None:
        _set(connection, sequence.name, set_to)
    start = _read(connection, sequence.name)
    try:
        with connection.begin_nested() as trial:
            _write(connection)
            trial.rollback()
    finally:
        # Others may use the sequence without the table: what they have had is never given out again.
        used = _read(connection, sequence.name).last_value - start.last_value
        if used <= 2 * len(_TRIALS) * sequence.step:
            _set(connection, sequence.name, before.last_value, is_called=before.is_called)
        connection.rollback()


def _write(connection: Connection) -> None:
    insert = text("INSERT INTO goals (goal_name, idempotency_key) VALUES (:name, :key) RETURNING *")
    update = text(
        "UPDATE goals SET goal_name = :name, original_name = coalesce(original_name, goal_name)"
        " WHERE id = :id RETURNING goal_name"
    )
    delete = text("DELETE FROM goals WHERE id = :id RETURNING id")
    what = "to add the columns"
    try:
        connection.execute(text("SET LOCAL statement_timeout = '1s'"))
        connection.execute(text(MAKE_TEXT))
        connection.execute(text(ADD_COLUMNS))
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        made = []
        for what, name in [*_TRIALS.items(), *_TRIALS.items()]:  # two goals may have one name
            key = uuid4()
            made.append(goal := connection.execute(insert, {"name": name, "key": key}).one())
            if (goal.goal_name, goal.idempotency_key, goal.original_name) != (name, key, None) or goal.id < 1:
                raise ConfigurationError(f"a trigger or default of goals changes what is written ({what}): drop it")
        for what, goal in zip(("a rename", "another rename"), made[:: len(_TRIALS)], strict=True):
            name = f"{what} of {goal.goal_name}"
            if connection.execute(update, {"name": name, "id": goal.id}).one().goal_name != name:
                raise ConfigurationError(f"a trigger of goals changes what is written ({what}): drop it")
        what = "a removal"
        connection.execute(delete, {"id": goal.id}).one()
    except NoResultFound:
        raise ConfigurationError(f"a trigger of goals drops what is written ({what}): drop it") from None
    except DBAPIError as error:
        state = sqlstate(error) or ""
        if state.startswith(_NOT_THE_TABLES):
            raise
        reason = str(error.orig.__cause__ if error.orig else error)
        remedy = "grant that right" if state == "42501" else "drop what refuses it"
        raise ConfigurationError(f"the table goals refuses what is needed ({what}), {reason}: {remedy}") from None
