"""A look at the database before it is migrated: what the service could not serve is refused, with the remedy."""

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError, NoResultFound

from goals.errors import ConfigurationError
from goals.sqlstates import LOCK_NOT_AVAILABLE, sqlstate

_OBSTACLES = (
    # The database.
    """
    SELECT format('the database %I has the encoding %s, and names are UTF8: make one with ENCODING ''UTF8'' TEMPLATE'
                  ' template0, and move the data there', datname, pg_encoding_to_char(encoding))
    FROM pg_database WHERE datname = current_database() AND pg_encoding_to_char(encoding) <> 'UTF8'
    """,
    "SELECT 'PostgreSQL is a standby, which takes no writes: let DB_HOST name the primary' WHERE pg_is_in_recovery()",
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
    SELECT format('%1$I may make nothing in the schema %2$I: GRANT CREATE ON SCHEMA %2$I TO %1$I',
                  current_user, current_schema())
    WHERE NOT has_schema_privilege(current_schema(), 'CREATE')
    """,
    """
    SELECT format('goals is in the schema %1$I, and search_path makes new tables in %2$I: '
                  'ALTER ROLE %3$I SET search_path = %1$I', nspname, current_schema(), current_user)
    FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
    WHERE pg_class.oid = to_regclass('goals') AND nspname <> current_schema()
    """,
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
    SELECT format('the table goals belongs to %I: ALTER TABLE goals OWNER TO %I', relowner::regrole, current_user)
    FROM pg_class WHERE oid = to_regclass('goals') AND NOT pg_has_role(relowner, 'USAGE')
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
    SELECT format('the column goals.%s is %s, and has to be %s: ALTER TABLE goals ALTER COLUMN %1$s TYPE %4$s%5$s',
                  name, format_type(atttypid, atttypmod), types[1], types[1],
                  CASE WHEN types[1] = 'timestamptz' AND atttypid = 'timestamp'::regtype
                       THEN ' USING created_at AT TIME ZONE ''UTC''' ELSE '' END)
    FROM (VALUES ('id', ARRAY['bigint', 'integer']), ('goal_name', ARRAY['text', 'varchar']),
                 ('created_at', ARRAY['timestamptz']), ('idempotency_key', ARRAY['uuid']),
                 ('original_name', ARRAY['text'])) AS wanted (name, types)
    JOIN pg_attribute ON attrelid = to_regclass('goals') AND attname = name AND NOT attisdropped
    WHERE atttypid <> ALL (types::regtype[])
    """,
    """
    SELECT format('the column goals.%I is generated, and the service writes it: '
                  'ALTER TABLE goals ALTER COLUMN %1$I DROP EXPRESSION', attname)
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
    SELECT 'two goals may have one id: ALTER TABLE goals ADD PRIMARY KEY (id)'
    FROM pg_attribute
    WHERE attrelid = to_regclass('goals') AND attname = 'id' AND NOT (attnotnull AND EXISTS (
        SELECT FROM pg_index WHERE indrelid = attrelid AND indisunique AND indisvalid AND indimmediate
            AND indpred IS NULL AND indnkeyatts = 1 AND indkey[0] = attnum))
    """,
    """
    SELECT 'goals.goal_name may be NULL: name the goals without a name, and ALTER TABLE goals ALTER COLUMN goal_name'
           ' SET NOT NULL'
    FROM pg_attribute WHERE attrelid = to_regclass('goals') AND attname = 'goal_name' AND NOT attnotnull
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
    SELECT format('%1$s wants more of goals than the service promises, such as two goals of one name: drop it',
                  indexrelid::regclass)
    FROM pg_index WHERE indrelid = to_regclass('goals') AND (indisunique OR indisexclusion)
        AND (SELECT attnum FROM pg_attribute WHERE attrelid = indrelid AND attname = 'goal_name') = ANY (indkey)
    """,
    """
    SELECT format('the constraint %1$I limits what the service counts up or writes itself: '
                  'ALTER TABLE goals DROP CONSTRAINT %1$I', conname)
    FROM pg_constraint WHERE conrelid = to_regclass('goals') AND contype = 'c' AND EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey)
            AND attname IN ('id', 'created_at', 'idempotency_key', 'original_name'))
    """,
    """
    SELECT format('the constraint %I of %s keeps goals from being removed: recreate it with ON DELETE CASCADE',
                  conname, conrelid::regclass)
    FROM pg_constraint WHERE confrelid = to_regclass('goals') AND contype = 'f' AND confdeltype NOT IN ('c', 'n')
    """,
    """
    SELECT format('the name goals_idempotency_key_idx is taken, by %s: rename that',
                  pg_describe_object('pg_class'::regclass, pg_class.oid, 0))
    FROM pg_class LEFT JOIN pg_index ON indexrelid = pg_class.oid
    WHERE pg_class.oid = to_regclass('goals_idempotency_key_idx')
        AND (indrelid IS NULL OR indrelid <> to_regclass('goals'))
    """,
)
"""Statements that each find one thing that keeps the service from working, and give a row that names it and the remedy.

They read catalogues only, where a table that is not there is NULL.
"""

_SEQUENCE = """
    SELECT s.oid::regclass::text AS name, seqincrement, seqcycle, seqmax, pg_sequence_last_value(s.oid) AS last,
           (SELECT min(id) FROM goals) AS lowest, (SELECT max(id) FROM goals) AS highest
    FROM pg_attribute
    LEFT JOIN pg_attrdef a ON adrelid = attrelid AND adnum = attnum
    JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid AND d.refclassid = 'pg_class'::regclass
        OR d.deptype = 'i' AND d.classid = 'pg_class'::regclass AND d.refobjid = attrelid AND d.refobjsubid = attnum
    JOIN pg_class s ON s.relkind = 'S' AND s.oid IN (d.objid, d.refobjid)
    JOIN pg_sequence ON seqrelid = s.oid
    WHERE attrelid = 'goals'::regclass AND attname = 'id'
"""
MAKE_TEXT = """
    DO $$ BEGIN
        IF (SELECT atttypid FROM pg_attribute WHERE attrelid = 'goals'::regclass AND attname = 'goal_name')
                <> 'text'::regtype THEN
            ALTER TABLE goals ALTER COLUMN goal_name TYPE TEXT;
        END IF;
    END $$
"""
"""Drop the limit of a VARCHAR, which rewrites no row; leave alone what is TEXT already, as views may depend on it."""

_TRIALS = {
    "one character": "7",
    "255 characters": "😀" * 255,
    "a name": "Read a book a month",
    "ASCII": "".join(map(chr, range(0x21, 0x7F))),
    "upper case": "RUN 10 KM",
    "lower case": "run 10 km",
    "other scripts": "Überqueren 越える عبور",
}
"""Names that a client may send, by what they are."""


def check_revisions(connection: Connection, heads: Sequence[str]) -> None:
    """Raise a `ConfigurationError` where alembic_version does not tell of this project's migrations."""
    if any(not re.fullmatch("[0-9]{4}", head) for head in heads):
        raise ConfigurationError(
            f"alembic_version holds {' and '.join(heads)}, which is no revision of this project: another one migrates"
            " this database; give the service a database, or a schema (search_path), of its own"
        )
    if heads and not _has_table(connection):
        raise ConfigurationError(
            f"alembic_version holds {max(heads)}, but there is no table goals: restore it, or drop both"
        )


def adopt(connection: Connection, *, dry_run: bool = False) -> list[str]:
    """Look at a database that is about to be migrated, mend what is safe to mend, and say in a line each what that was.

    A `ConfigurationError` says in one line what the service could not work with, and what to do; nothing is altered
    then. `dry_run` mends nothing. As no catalogue tells what a trigger or a constraint does, goals are added, renamed
    and removed in a transaction that is rolled back; other writers wait for that moment.
    """
    for statement in _OBSTACLES:
        for (obstacle,) in connection.exec_driver_sql(statement):
            raise ConfigurationError(obstacle)
    if not _has_table(connection):
        return []
    _check_rows(connection)
    sequence = connection.execute(text(_SEQUENCE)).one()
    _check_sequence(sequence)
    mended = []
    if sequence.highest is not None and (sequence.last or 0) < sequence.highest:
        mended.append(
            f"the sequence {sequence.name} stands at {sequence.last or 'its start'}, behind the highest id:"
            f" it is set to {sequence.highest}"
        )
        if dry_run:
            return mended
        _set(connection, sequence.name, sequence.highest)
        connection.commit()
    _try(connection, sequence.name)
    return mended


def _has_table(connection: Connection) -> bool:
    return bool(connection.scalar(text("SELECT to_regclass('goals') IS NOT NULL")))


def _check_rows(connection: Connection) -> None:
    columns = set(connection.scalars(text("SELECT attname FROM pg_attribute WHERE attrelid = 'goals'::regclass")))
    if "created_at" in columns:
        strange = connection.scalar(
            text("SELECT id FROM goals WHERE created_at NOT BETWEEN '0001-01-02Z' AND '9999-12-30Z' LIMIT 1")
        )
        if strange is not None:
            raise ConfigurationError(f"goal {strange} has a created_at that no calendar of the API's has: correct it")
    if "idempotency_key" in columns:
        twice = connection.scalar(
            text(
                "SELECT idempotency_key FROM goals WHERE idempotency_key IS NOT NULL"
                " GROUP BY idempotency_key HAVING count(*) > 1 LIMIT 1"
            )
        )
        if twice is not None:
            raise ConfigurationError(
                f"several goals have the idempotency_key {twice}: keep it for one, and set NULL else"
            )


def _check_sequence(sequence: Row[Any]) -> None:
    name = sequence.name
    if sequence.seqincrement < 1 or sequence.seqcycle:
        raise ConfigurationError(
            f"the sequence {name} goes down or round: ALTER SEQUENCE {name} INCREMENT BY 1 NO CYCLE"
        )
    if sequence.lowest is not None and sequence.lowest < 1:
        raise ConfigurationError(
            f"the lowest id of goals is {sequence.lowest}, and ids begin with 1: change those below"
        )
    if sequence.highest is not None and sequence.highest >= sequence.seqmax:
        raise ConfigurationError(
            f"the highest id of goals is {sequence.highest}, and the sequence {name} ends at {sequence.seqmax}:"
            " no id is left"
        )


def _set(connection: Connection, sequence: str, last: int, *, is_called: bool = True) -> None:
    statement = text("SELECT setval(CAST(:sequence AS regclass), :last, :is_called)")
    connection.execute(statement, {"sequence": sequence, "last": last, "is_called": is_called})


def _try(connection: Connection, sequence: str) -> None:
    """Add, rename and remove what clients may send, and take it back."""
    # So that nobody else counts up the sequence meanwhile, which no rollback takes back.
    connection.execute(text("LOCK TABLE goals IN SHARE ROW EXCLUSIVE MODE"))
    before = connection.execute(text(f"SELECT last_value, is_called FROM {sequence}")).one()  # noqa: S608  quoted already
    try:
        with connection.begin_nested() as trial:
            _write(connection)
            trial.rollback()
    finally:
        _set(connection, sequence, before.last_value, is_called=before.is_called)
        connection.rollback()


def _write(connection: Connection) -> None:
    insert = text("INSERT INTO goals (goal_name) VALUES (:name) RETURNING id, goal_name")
    update = text("UPDATE goals SET goal_name = :name WHERE id = :id RETURNING id, goal_name")
    delete = text("DELETE FROM goals WHERE id = :id RETURNING id, goal_name")
    what = ""
    try:
        connection.execute(text(MAKE_TEXT))
        made = []
        for what, name in [*_TRIALS.items(), *_TRIALS.items()]:  # two goals may have one name
            added = connection.execute(insert, {"name": name}).one()
            renamed = connection.execute(update, {"name": name[::-1], "id": added.id}).one()
            made.append(added.id)
            if added.goal_name != name or renamed.goal_name != name[::-1]:
                raise ConfigurationError(f"a trigger on the table goals changes what is written ({what}): drop it")
        what = "a removal"
        for goal_id in made:
            connection.execute(delete, {"id": goal_id}).one()
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    except NoResultFound:
        raise ConfigurationError(f"a trigger on the table goals drops what is written ({what}): drop it") from None
    except DBAPIError as error:
        if sqlstate(error) == LOCK_NOT_AVAILABLE:
            raise
        reason = str(error.orig.__cause__ if error.orig else error).partition("\n")[0]
        raise ConfigurationError(
            f"the table goals refuses what clients may send ({what}), {reason}: drop what refuses it"
        ) from None
