"""The ids of an adopted table become bigint while clients go on reading and writing: `python -m goals widen`."""

import asyncio
import contextlib
import random
import time

import asyncpg
import structlog

from goals.adoption import ID_SEQUENCE, LEAVE_VIEW, VIEW
from goals.connections import connect_arguments, explain, look_for_adopted
from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.settings import Settings

log = structlog.get_logger(__name__)

_TURN = int.from_bytes(b"widen")
"""The lock of those who widen. Migrations have another: a pod that starts meanwhile need not wait."""
_ONLY_ID = "indnatts = 1 AND indkey[0] = attnum AND indpred IS NULL AND indexprs IS NULL"

_STATE = """
    SELECT atttypid = 'bigint'::regtype AS is_wide,
           EXISTS (SELECT FROM pg_trigger WHERE tgrelid = attrelid AND tgname = 'goals_row_version') AS is_migrated,
           EXISTS (SELECT FROM pg_trigger WHERE tgrelid = attrelid AND tgname = 'goals_widening') AS is_begun
    FROM pg_attribute WHERE attrelid = to_regclass('goals') AND attname = 'id'
"""
_OBSTACLES = (
    f"""
    SELECT format('%s needs goals.id as it is: drop it, widen, and create it again',
                  pg_describe_object(classid, objid, objsubid))
    FROM pg_depend JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
    LEFT JOIN pg_rewrite r ON classid = 'pg_rewrite'::regclass AND r.oid = objid
    WHERE refclassid = 'pg_class'::regclass AND refobjid = to_regclass('goals') AND attname = 'id'
        AND ev_class IS DISTINCT FROM ({VIEW})
        AND NOT EXISTS (SELECT FROM pg_attrdef
                        WHERE classid = 'pg_attrdef'::regclass AND oid = objid AND adnum = attnum)
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE classid = 'pg_constraint'::regclass AND oid = objid
                            AND conrelid = attrelid AND contype IN ('p', 'u', 'n') AND conkey = ARRAY[attnum])
        AND NOT EXISTS (SELECT FROM pg_index WHERE classid = 'pg_class'::regclass AND indexrelid = objid
                            AND {_ONLY_ID})
        AND (classid, objid) IS DISTINCT FROM ('pg_class'::regclass::oid, ({ID_SEQUENCE}))
    """,  # noqa: S608  it is made of constants
    f"""
    SELECT format('the view %s shows %s: drop it, widen, and create it again', ev_class::regclass, refobjid::regclass)
    FROM pg_depend JOIN pg_rewrite r ON classid = 'pg_rewrite'::regclass AND r.oid = objid
    WHERE refclassid = 'pg_class'::regclass AND refobjid = ({VIEW}) AND ev_class <> refobjid
    """,  # noqa: S608  as above
    """
    SELECT 'roles have rights on the column goals.id alone: REVOKE them, widen, and GRANT them again'
    FROM pg_attribute WHERE attrelid = to_regclass('goals') AND attname = 'id' AND attacl IS NOT NULL
    """,
    """
    SELECT 'goals has a column id_bigint that is not ours: rename it'
    FROM pg_attribute WHERE attrelid = to_regclass('goals') AND attname = 'id_bigint' AND NOT EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = attrelid AND tgname = 'goals_widening')
    """,
)
"""Each finds one thing that would be lost or would fail at the swap, and gives a line that names it and the remedy."""
_BEGIN = """
    CREATE FUNCTION copy_goal_id() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' AND NEW.id_bigint IS DISTINCT FROM OLD.id_bigint THEN
            -- The copy changes no goal. This trigger comes after the one that counts changes, by its name.
            NEW.row_version := OLD.row_version;
            NEW.updated_at := OLD.updated_at;
        END IF;
        NEW.id_bigint := NEW.id;
        RETURN NEW;
    END $$;
    ALTER TABLE goals
        ADD COLUMN id_bigint BIGINT,
        ADD CONSTRAINT goals_id_bigint_check CHECK (id_bigint IS NOT NULL) NOT VALID;
    CREATE TRIGGER goals_widening BEFORE INSERT OR UPDATE ON goals FOR EACH ROW EXECUTE FUNCTION copy_goal_id();
"""
_INDEX = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS goals_id_bigint_idx ON goals (id_bigint)"
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
        last BIGINT;
        called BOOLEAN;
    BEGIN
        -- The view first, as those who use it do.
        IF view IS NOT NULL THEN
            EXECUTE format('LOCK TABLE %s', view);
            EXECUTE format('DROP VIEW %s', view);
        END IF;
        ALTER TABLE goals ALTER COLUMN id_bigint SET NOT NULL;  -- the check spares it the look at each row
        ALTER TABLE goals DROP CONSTRAINT goals_id_bigint_check;
        EXECUTE format('ALTER SEQUENCE %s AS BIGINT', sequence);  -- nobody takes an id from here on
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
        DROP TRIGGER goals_widening ON goals;
        DROP FUNCTION copy_goal_id();
        ALTER TABLE goals DROP COLUMN id;
        ALTER TABLE goals RENAME COLUMN id_bigint TO id;
        EXECUTE format('ALTER TABLE goals ADD CONSTRAINT %I %s USING INDEX goals_id_bigint_idx',
                       key, CASE WHEN has_other_key THEN 'UNIQUE' ELSE 'PRIMARY KEY' END);
        IF view IS NOT NULL THEN
            {LEAVE_VIEW}
        END IF;
    END $$
"""  # noqa: S608  it is made of constants


async def widen(settings: Settings, limits: Limits) -> None:
    """Make goals.id and its sequence bigint: a copy of the column, which a trigger keeps, takes its place at the end.

    It may be ended at any time, and goes on where it was when it is run again. No statement of others waits for it for
    longer than `lock_timeout`, and it asks for a held lock for `lock_patience` seconds at most. A
    `ConfigurationError` says in one line what is in the way, and what to do.
    """
    try:
        connection = await asyncpg.connect(
            **connect_arguments(settings, limits),
            server_settings={"application_name": "goals-widen", "statement_timeout": "0", "lock_timeout": "0"},
        )
        try:
            await look_for_adopted(connection)
            if await _is_to_be_done(connection):
                await _widen(connection, limits)
        finally:
            # With a goodbye, without which the server goes on with the statement and keeps the lock.
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                await connection.close(timeout=limits.connect_timeout)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ConfigurationError(f"{explain(error, settings)}; run it again, and it goes on where it was") from None


async def _is_to_be_done(connection: asyncpg.Connection) -> bool:
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _TURN):
        raise ConfigurationError("another `goals widen` is running: see pg_stat_activity, goals-widen")
    state = await connection.fetchrow(_STATE)
    if state is None or not state["is_migrated"]:
        raise ConfigurationError("the schema is not this version's: run `python -m goals migrate` first")
    if state["is_wide"]:
        log.info("goals.id is bigint: there is nothing to do")
        return False
    for statement in _OBSTACLES:
        if obstacle := await connection.fetchval(statement):
            raise ConfigurationError(obstacle)
    log.info("widening goals.id", goes_on=state["is_begun"])
    return True


async def _widen(connection: asyncpg.Connection, limits: Limits) -> None:
    if not (await connection.fetchrow(_STATE))["is_begun"]:
        await _alter(connection, limits, _BEGIN)
    await _copy(connection, limits)
    log.info("building the index; it waits for transactions that are older than it")
    if await connection.fetchval(
        "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass('goals_id_bigint_idx')"
    ):
        await connection.execute("DROP INDEX CONCURRENTLY goals_id_bigint_idx")  # what an earlier run left unfinished
    await connection.execute(_INDEX)
    await connection.execute("ALTER TABLE goals VALIDATE CONSTRAINT goals_id_bigint_check")
    await connection.execute("ANALYZE goals")
    await _alter(connection, limits, _SWAP)
    log.info("goals.id is bigint")


async def _copy(connection: asyncpg.Connection, limits: Limits) -> None:
    """Fill the new column, in batches; whatever is added from now on is filled by the trigger."""
    done, last = await connection.fetchrow("SELECT min(id) - 1, max(id) FROM goals")
    said = time.monotonic()
    while True:
        began = time.monotonic()
        upto = await connection.fetchval(
            "SELECT max(id) FROM (SELECT id FROM goals WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3) AS batch",
            *(done, last, limits.widen_batch),
        )
        if upto is None:
            return
        await connection.execute(
            "UPDATE goals SET id_bigint = id WHERE id > $1 AND id <= $2 AND id_bigint IS NULL", done, upto
        )
        done = upto
        if time.monotonic() - said >= limits.widen_progress:
            said = time.monotonic()
            log.info("copying ids", id=done, of=last, percent=round(100 * done / last))
        await asyncio.sleep(time.monotonic() - began)


async def _alter(connection: asyncpg.Connection, limits: Limits, statements: str) -> None:
    """Change the table in one transaction that keeps nobody waiting for longer than a revision does."""
    deadline = time.monotonic() + limits.lock_patience
    while True:
        try:
            async with connection.transaction():
                # Keeps nobody waiting, so it may wait itself: until PostgreSQL has ended an autovacuum for it.
                await connection.execute("LOCK TABLE goals IN SHARE UPDATE EXCLUSIVE MODE")
                await connection.execute(f"SET LOCAL lock_timeout = '{limits.lock_timeout * 1000:.0f}ms'")
                await connection.execute(statements)
        except asyncpg.LockNotAvailableError:
            if time.monotonic() > deadline:
                raise
            log.info("the table is locked by a long transaction; trying again")
            # Long enough for those who waited behind us to be served first.
            await asyncio.sleep(random.uniform(limits.lock_timeout, 5 * limits.lock_timeout))  # noqa: S311  jitter is no secret
        else:
            return
