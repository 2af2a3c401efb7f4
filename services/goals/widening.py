"""Changes an adopted table's ids to bigint while clients keep reading and writing: `python -m goals widen`."""

import asyncio
import contextlib
import time

import asyncpg
import structlog

from goals.adoption import ID_SEQUENCE, LEAVE_VIEW, VIEW, WIDENING
from goals.connections import connect, explain
from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.locks import retry_until_unlocked
from goals.settings import Settings
from goals.sqlstates import sqlstate

log = structlog.get_logger(__name__)

_TURN = int.from_bytes(b"widen")
"""The advisory lock of `widen`. Migrations use a different one, so a pod that starts during `widen` need not wait."""
_ONLY_ID = "indnatts = 1 AND indkey[0] = attnum AND indpred IS NULL AND indexprs IS NULL"

_STATE = f"""
    SELECT atttypid = 'bigint'::regtype AS is_wide,
           EXISTS (SELECT FROM pg_trigger WHERE tgrelid = attrelid AND tgname = 'goals_row_version') AS is_migrated,
           EXISTS (SELECT FROM pg_trigger WHERE tgrelid = attrelid AND tgname = '{WIDENING}') AS is_begun,
           EXISTS (SELECT FROM pg_constraint WHERE conrelid = attrelid AND conname = '{WIDENING}') AS is_checked
    FROM pg_attribute WHERE attrelid = to_regclass('goals') AND attname = 'id'
"""  # noqa: S608  it is made of constants
_OBSTACLES = (
    f"""
    SELECT format('%s depends on goals.id: drop it, widen, and create it again',
                  pg_describe_object(classid, objid, objsubid))
    FROM pg_depend JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
    LEFT JOIN pg_rewrite r ON classid = 'pg_rewrite'::regclass AND r.oid = objid
    WHERE refclassid = 'pg_class'::regclass AND refobjid = to_regclass('goals') AND attname = 'id'
        AND NOT (classid = 'pg_constraint'::regclass AND objid IN (
                 SELECT oid FROM pg_constraint WHERE conrelid = attrelid AND conname = '{WIDENING}'))
        AND ev_class IS DISTINCT FROM ({VIEW})
        AND NOT EXISTS (SELECT FROM pg_attrdef
                        WHERE classid = 'pg_attrdef'::regclass AND oid = objid AND adnum = attnum)
        AND NOT EXISTS (SELECT FROM pg_constraint LEFT JOIN pg_index ON indexrelid = conindid
                        WHERE classid = 'pg_constraint'::regclass AND pg_constraint.oid = objid
                            AND conrelid = attrelid AND conkey = ARRAY[attnum]
                            AND (contype = 'n' OR contype IN ('p', 'u') AND {_ONLY_ID}))
        AND NOT EXISTS (SELECT FROM pg_index WHERE classid = 'pg_class'::regclass AND indexrelid = objid
                            AND {_ONLY_ID})
        AND (classid, objid) IS DISTINCT FROM ('pg_class'::regclass::oid, ({ID_SEQUENCE}))
    """,  # noqa: S608  it is made of constants
    f"""
    SELECT format('no unique index covers exactly the column id: CREATE UNIQUE INDEX ON %s (id)', attrelid::regclass)
    FROM pg_attribute WHERE attrelid = to_regclass('goals') AND attname = 'id' AND NOT EXISTS (
        SELECT FROM pg_index WHERE indrelid = attrelid AND indisunique AND {_ONLY_ID})
    """,  # noqa: S608  as above
    f"""
    SELECT format('%s uses the view %s: drop it, widen, and create it again',
                  pg_describe_object(classid, objid, objsubid), relation.oid::regclass)
    FROM pg_class relation
    JOIN pg_type t ON t.typrelid = relation.oid
    JOIN pg_depend ON refclassid = 'pg_class'::regclass AND refobjid = relation.oid
        OR refclassid = 'pg_type'::regclass AND refobjid IN (t.oid, t.typarray)
    LEFT JOIN pg_rewrite r ON classid = 'pg_rewrite'::regclass AND r.oid = objid
    WHERE relation.oid = ({VIEW}) AND deptype <> 'i' AND ev_class IS DISTINCT FROM relation.oid
    """,  # noqa: S608  as above
    f"""
    SELECT format('the view %s differs from what the migration created: restore it, then widen', attrelid::regclass)
    FROM pg_attribute WHERE attrelid = ({VIEW}) AND attnum > 0
    GROUP BY attrelid
    HAVING pg_get_viewdef(attrelid, true) <> format(E' SELECT %s\n   FROM goals;',
        string_agg(quote_ident(attname), E',\n    ' ORDER BY attnum))
    """,  # noqa: S608  as above
    """
    SELECT format('the publication %I sends goals to subscribers, whose tables keep the old type: drop it, widen there '
                  'too, and create it again', pubname)
    FROM pg_publication_tables JOIN pg_class c ON c.oid = to_regclass('goals')
    WHERE tablename = relname AND schemaname = relnamespace::regnamespace::text
    """,
    """
    SELECT 'the index of goals.id identifies rows for replication: ALTER TABLE goals REPLICA IDENTITY DEFAULT'
    FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'id'
    WHERE indrelid = to_regclass('goals') AND indisreplident AND attnum = ANY (indkey)
    """,
    """
    SELECT 'roles have privileges on the column goals.id itself: REVOKE them, widen, and GRANT them again'
    FROM pg_attribute WHERE attrelid = to_regclass('goals') AND attname = 'id' AND attacl IS NOT NULL
    """,
    f"""
    SELECT format('widen needs the name of %s: rename it', name)
    FROM (
        SELECT attrelid, 'the column goals.id_bigint' AS name
        FROM pg_attribute WHERE attrelid = to_regclass('goals') AND attname = 'id_bigint' AND NOT attisdropped
        UNION ALL SELECT to_regclass('goals'), 'the index goals_id_bigint_idx'
        WHERE to_regclass('goals_id_bigint_idx') IS NOT NULL
        UNION ALL SELECT to_regclass('goals'), 'the function copy_goal_id'
        WHERE to_regproc('copy_goal_id') IS NOT NULL
    ) AS taken
    WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = attrelid AND tgname = '{WIDENING}')
    """,  # noqa: S608  as above
)
"""Each looks for one thing that would be lost or fail at the swap, and returns a line that states it and its remedy."""
_BEGIN = f"""
    CREATE FUNCTION copy_goal_id() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' AND NEW.id_bigint IS DISTINCT FROM OLD.id_bigint THEN
            -- The copy must not change the goal: undo what earlier triggers did.
            NEW.row_version := OLD.row_version;
            NEW.updated_at := OLD.updated_at;
        END IF;
        NEW.id_bigint := NEW.id;
        RETURN NEW;
    END $$;
    ALTER TABLE goals ADD COLUMN id_bigint BIGINT;
    CREATE TRIGGER "{WIDENING}" BEFORE INSERT OR UPDATE ON goals FOR EACH ROW EXECUTE FUNCTION copy_goal_id();
"""
_CHECK = f"""
    ALTER TABLE goals ADD CONSTRAINT "{WIDENING}" CHECK (id_bigint IS NOT NULL AND id_bigint = id) NOT VALID;
"""
_INDEX = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS goals_id_bigint_idx ON goals (id_bigint)"
_LOCK = f"""
    DO $$
    DECLARE
        view CONSTANT REGCLASS := ({VIEW});
    BEGIN
        -- The view first, in the order in which its users lock.
        IF view IS NOT NULL THEN
            EXECUTE format('LOCK TABLE %s', view);
        END IF;
        LOCK TABLE goals;
    END $$
"""
_SWAP = f"""
    DO $$
    DECLARE
        view CONSTANT REGCLASS := ({VIEW});
        home CONSTANT TEXT := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = view);
        theirs CONSTANT TEXT := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
                                 WHERE attrelid = view AND attnum > 0);
        sequence CONSTANT REGCLASS := ({ID_SEQUENCE});
        options pg_sequence := (SELECT s FROM pg_sequence s WHERE seqrelid = sequence);
        is_identity CONSTANT BOOLEAN := (SELECT attidentity <> '' FROM pg_attribute
                                         WHERE attrelid = to_regclass('goals') AND attname = 'id');
        is_owned CONSTANT BOOLEAN := EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                                             AND objid = sequence AND deptype = 'a');
        has_other_key CONSTANT BOOLEAN := EXISTS (
            SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'id'
            WHERE indrelid = to_regclass('goals') AND indisprimary AND NOT ({_ONLY_ID}));
        key CONSTANT NAME := (
            SELECT relname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attname = 'id'
            JOIN pg_class c ON c.oid = indexrelid
            WHERE indrelid = to_regclass('goals') AND indisunique AND {_ONLY_ID} ORDER BY NOT indisprimary LIMIT 1);
        rights CONSTANT TEXT[] := ARRAY(
            SELECT format('GRANT %s ON %s %s TO %s %s', privilege_type, CASE relkind WHEN 'S' THEN 'SEQUENCE' END,
                          c.oid::regclass, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
                          CASE WHEN is_grantable THEN 'WITH GRANT OPTION' END)
            FROM pg_class c, aclexplode(relacl) WHERE c.oid IN (view, sequence));
        statement TEXT;
        last BIGINT;
        called BOOLEAN;
    BEGIN
        IF view IS NOT NULL THEN
            EXECUTE format('DROP VIEW %s', view);
        END IF;
        ALTER TABLE goals ALTER COLUMN id_bigint SET NOT NULL;  -- the validated check saves the scan
        ALTER TABLE goals DROP CONSTRAINT "{WIDENING}";
        EXECUTE format('ALTER SEQUENCE %s AS BIGINT', sequence);  -- locks out nextval from here on
        IF is_identity THEN
            EXECUTE format('SELECT last_value, is_called FROM %s', sequence) INTO last, called;
            options := (SELECT s FROM pg_sequence s WHERE seqrelid = sequence);
            ALTER TABLE goals ALTER COLUMN id DROP IDENTITY;
            EXECUTE format('ALTER TABLE goals ALTER COLUMN id_bigint ADD GENERATED BY DEFAULT AS IDENTITY '
                           '(SEQUENCE NAME goals_id_seq INCREMENT %s MINVALUE %s MAXVALUE %s START %s CACHE %s)',
                           options.seqincrement, options.seqmin, options.seqmax, options.seqstart, options.seqcache);
            PERFORM setval(pg_get_serial_sequence('goals', 'id_bigint'), last, called);
        ELSE
            EXECUTE format('ALTER TABLE goals ALTER COLUMN id_bigint SET DEFAULT nextval(%L)', sequence);
            IF is_owned THEN
                EXECUTE format('ALTER SEQUENCE %s OWNED BY goals.id_bigint', sequence);
            END IF;
        END IF;
        DROP TRIGGER "{WIDENING}" ON goals;
        DROP FUNCTION copy_goal_id();
        ALTER TABLE goals DROP COLUMN id;
        ALTER TABLE goals RENAME COLUMN id_bigint TO id;
        EXECUTE format('ALTER TABLE goals ADD CONSTRAINT %I %s USING INDEX goals_id_bigint_idx',
                       key, CASE WHEN has_other_key THEN 'UNIQUE' ELSE 'PRIMARY KEY' END);
        IF view IS NOT NULL THEN
            {LEAVE_VIEW}
            EXECUTE format('REVOKE ALL ON %s.goals FROM PUBLIC', home);
        END IF;
        FOREACH statement IN ARRAY rights LOOP
            EXECUTE statement;
        END LOOP;
    END $$
"""  # noqa: S608  it is made of constants


_COPY = """
    UPDATE goals SET id_bigint = goals.id
    FROM (SELECT id FROM goals WHERE id > $1 AND id <= $2 AND id_bigint IS NULL FOR UPDATE SKIP LOCKED) AS free
    WHERE goals.id = free.id
"""
_LEFT = "SELECT id FROM goals WHERE id > $1 AND id <= $2 AND id_bigint IS NULL LIMIT 1"
_NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout')
"""
_PASSING = ("08", "40", "53", "55", "57")
"""Classes of errors after which `widen` can simply be run again."""


async def widen(settings: Settings, limits: Limits) -> None:
    """Make goals.id and its sequence bigint: a trigger maintains a copy of the column, which replaces it at the end.

    It may be stopped at any time; the next run resumes it. It never waits for a row lock, and blocks other clients for
    at most `lock_timeout` seconds at a time; it retries the table's lock for `lock_patience` seconds.
    A `ConfigurationError` states the problem and the remedy in one line.
    """
    try:
        connection = await connect(settings, limits, server_settings={"application_name": "goals-widen"})
        try:
            await connection.execute(_NO_LIMITS)
            if await _is_to_be_done(connection):
                await _widen(connection, limits)
        finally:
            # A clean close: otherwise the server continues the statement and keeps the lock.
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                await connection.close(timeout=limits.connect_timeout)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        passes = (sqlstate(error) or "08").startswith(_PASSING)
        then = "run it again to resume" if passes else "fix it, and run it again"
        raise ConfigurationError(f"{explain(error, settings)}; {then}") from None


async def _is_to_be_done(connection: asyncpg.Connection) -> bool:
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _TURN):
        raise ConfigurationError("another `goals widen` is running: see pg_stat_activity, goals-widen")
    state = await connection.fetchrow(_STATE)
    if state is None or not state["is_migrated"]:
        raise ConfigurationError("the schema is not this version's: run `python -m goals migrate` first")
    if state["is_wide"]:
        log.info("goals.id is already bigint: nothing to do")
        return False
    await _refuse(connection)
    log.info("widening goals.id", goes_on=state["is_begun"])
    return True


async def _refuse(connection: asyncpg.Connection) -> None:
    for statement in _OBSTACLES:
        if obstacle := await connection.fetchval(statement):
            raise ConfigurationError(obstacle)


async def _widen(connection: asyncpg.Connection, limits: Limits) -> None:
    state = await connection.fetchrow(_STATE)
    if not state["is_checked"]:
        await _alter(connection, limits, _CHECK if state["is_begun"] else _BEGIN + _CHECK)
    await _copy(connection, limits)
    log.info("building the index, which waits for older transactions")
    if await connection.fetchval(
        "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass('goals_id_bigint_idx')"
    ):
        await connection.execute("DROP INDEX CONCURRENTLY goals_id_bigint_idx")  # left unfinished by an earlier run
    await connection.execute(_INDEX)
    log.info("checking each row")
    await connection.execute(f'ALTER TABLE goals VALIDATE CONSTRAINT "{WIDENING}"')
    await connection.execute("ANALYZE goals")
    await _alter(connection, limits, _SWAP)
    log.info("goals.id is bigint")


async def _copy(connection: asyncpg.Connection, limits: Limits) -> None:
    """Fill the new column in batches; the trigger fills it for rows that are added from now on."""
    after, last = await connection.fetchrow("SELECT min(id) - 1, max(id) FROM goals")
    held: list[tuple[int, int]] = []
    said = time.monotonic()
    while True:
        began = time.monotonic()
        upto = await connection.fetchval(
            "SELECT max(id) FROM (SELECT id FROM goals WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3) AS batch",
            *(after, last, limits.widen_batch),
        )
        if upto is None:
            break
        await connection.execute(_COPY, after, upto)
        if await connection.fetchval(_LEFT, after, upto):
            held.append((after, upto))
        after = upto
        if time.monotonic() - said >= limits.widen_progress:
            said = time.monotonic()
            log.info("copying ids", id=after, of=last, percent=round(100 * after / last))
        await asyncio.sleep(time.monotonic() - began)
    for batch in held:
        await _copy_held(connection, limits, *batch)


async def _copy_held(connection: asyncpg.Connection, limits: Limits, after: int, upto: int) -> None:
    """Fill the rows of a batch that other transactions had locked."""
    deadline = time.monotonic() + limits.lock_patience
    while (row := await connection.fetchval(_LEFT, after, upto)) is not None:
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"goal {row} cannot be copied: end the transaction that locks it, or drop the trigger that rejects the"
                " UPDATE, and run it again"
            )
        await connection.execute(_COPY, after, upto)
        await asyncio.sleep(limits.lock_timeout)


async def _alter(connection: asyncpg.Connection, limits: Limits, statements: str) -> None:
    """Change the table in one transaction that blocks others no longer than a revision does."""

    async def alter() -> None:
        async with connection.transaction():
            # This lock blocks no client, and ends an autovacuum, which takes PostgreSQL a second.
            await connection.execute(f"SET LOCAL lock_timeout = '{10_000 * limits.lock_timeout:.0f}ms'")
            await connection.execute("LOCK TABLE goals IN SHARE UPDATE EXCLUSIVE MODE")
            # Up to three locks follow one another: on the view, the table and the sequence.
            await connection.execute(f"SET LOCAL lock_timeout = '{1000 * limits.lock_timeout / 3:.0f}ms'")
            await connection.execute(_LOCK)
            await _refuse(connection)  # something new since the last check
            await connection.execute(statements)

    await retry_until_unlocked(
        alter, limits, lambda: log.info("the table is locked by a long transaction; trying again")
    )
