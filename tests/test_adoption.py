"""Adoption: a table that the service cannot serve is refused before anything is altered, and any other is served."""

import asyncio
import os
import random
import sys
import tomllib
from functools import partial
from io import StringIO
from uuid import uuid4

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from anyio import to_thread

from goals import store
from goals.connections import connect_arguments
from goals.database import Database
from goals.models import SCHEMA_REVISION
from goals.settings import Settings
from tests.conftest import ROOT, WIDE, fresh_database, upgrade
from tools.polling import until

CASES = tomllib.loads((ROOT / "tests" / "adoption.toml").read_text(encoding="utf-8"))
PLAIN = "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name TEXT NOT NULL)"

TRIGGER = """
CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;
CREATE TRIGGER act {} ON goals FOR EACH ROW EXECUTE FUNCTION act();
"""


def cases(kind: str) -> pytest.MarkDecorator:
    """Each case of a kind, as the parameters `made` and, where there is one, `reason`."""
    found = CASES[kind]
    names = list(next(iter(found.values())))
    return pytest.mark.parametrize(names, [tuple(case.values()) for case in found.values()], ids=found)


async def describe(connection: asyncpg.Connection) -> list[str]:
    """All relations, columns, constraints and defaults of a database."""
    rows = await connection.fetch(
        """
        SELECT format('%s %s %s', relname, relkind, relfilenode) FROM pg_class
            WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT format('%s.%s %s %s', relname, attname, format_type(atttypid, atttypmod), attnotnull)
            FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT format('%s %s', adrelid::regclass, pg_get_expr(adbin, adrelid)) FROM pg_attrdef
        UNION ALL SELECT format('%s %s', seqrelid::regclass, pg_sequence_last_value(seqrelid)) FROM pg_sequence
        ORDER BY 1
        """
    )
    return [row[0] for row in rows]


async def use(settings: Settings) -> None:
    """Add, list, rename and remove as clients do; an error here is a 500 for them."""
    database = Database(settings, WIDE)
    try:
        for number, name in enumerate(["a", "a", "A", "x" * 255, "é" * 255, "☃️ “?”", "'; DROP--", "%s {} \\"] * 2):
            key = uuid4()
            goal = await store.insert_goal(database, {"goal_name": name}, key, b"")
            assert await store.insert_goal(database, {"goal_name": name}, key, b"") == goal
            assert goal.id > 0
            if number % 2:
                await store.update_goal(database, goal.id, {"goal_name": f"{number}"}, seen=goal.row_version)
            if number % 3:
                await store.delete_goal(database, goal.id)
        page, _ = await store.select_page_and_total(database, before=None, after=None, limit=50)
        assert all(isinstance(goal.goal_name, str) for goal in page.goals)
    finally:
        await database.close()


async def adopt_and_use(settings: Settings) -> str:
    """The reason why the table cannot be used, if there is one."""
    try:
        await upgrade(settings)
    except CommandError as refusal:
        return str(refusal)
    await use(settings)
    return ""


@cases("refused")
async def test_what_cannot_be_served_is_refused_and_left_alone(
    own: Settings, owner: asyncpg.Connection, made: str, reason: str
) -> None:
    await owner.execute(made)
    before = await describe(owner)
    with pytest.raises(CommandError) as refusal:
        await upgrade(own)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert await describe(owner) == before


@cases("served")
async def test_what_can_be_served_is(own: Settings, owner: asyncpg.Connection, made: str) -> None:
    await owner.execute(made)
    await owner.execute("INSERT INTO goals (goal_name) VALUES ('theirs')")
    assert await adopt_and_use(own) == ""
    assert await owner.fetchval("SELECT goal_name FROM goals ORDER BY id") == "theirs"


async def test_a_sequence_that_is_behind_is_set(
    own: Settings, owner: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await owner.execute(PLAIN)
    await owner.execute("INSERT INTO goals SELECT n, 'goal' FROM generate_series(1, 500) AS n")
    await upgrade(own)
    message = "the next id was 1, but goals has ids up to 500: goals_id_seq has been set to that"
    assert caplog.messages.count(message) == 1
    await use(own)
    assert await owner.fetchval("SELECT min(id) FROM goals WHERE id > 500") == 501
    # Rows that are brought in later, with their ids.
    await owner.execute("INSERT INTO goals (id, goal_name) VALUES (9000, 'goal')")
    await upgrade(own)
    assert await owner.fetchval("SELECT nextval('goals_adopted.goals_id_seq')") == 9001


async def test_ids_that_others_have_had_are_not_given_out_again(own: Settings, owner: asyncpg.Connection) -> None:
    await owner.execute(PLAIN)
    await owner.execute(TRIGGER.format("PERFORM nextval('goals_id_seq'); RETURN NEW;", "BEFORE INSERT"))
    await upgrade(own)
    assert await owner.fetchval("SELECT nextval('goals_adopted.goals_id_seq')") > 20


async def test_a_lock_is_waited_for(own: Settings, owner: asyncpg.Connection) -> None:
    await owner.execute(PLAIN)
    writer = await asyncpg.connect(**connect_arguments(own, WIDE))
    async with owner.transaction():
        await owner.execute("INSERT INTO goals (goal_name) VALUES ('theirs')")
        migration = asyncio.create_task(upgrade(own))
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'goals'::regclass AND NOT granted"
        await until(lambda: writer.fetchval(waiting))
        await until(partial(has_none, writer, waiting))  # it has given up once
    await migration
    await writer.close()


async def has_none(connection: asyncpg.Connection, query: str) -> bool:
    return not await connection.fetchval(query)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_another_encoding_is_refused(settings: Settings, encoding: str) -> None:
    options = f"ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
    async with fresh_database(settings, options) as fresh:
        with pytest.raises(CommandError, match=f"has the encoding {encoding}, but names need UTF8"):
            await upgrade(fresh)


@cases("administered")
async def test_what_the_role_cannot_do_is_refused(empty: Settings, made: str, reason: str) -> None:
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database=empty.db_name)
    await administrator.execute(made.format(f'"{empty.db_name}"'))
    await administrator.close()
    with pytest.raises(CommandError) as refusal:
        await upgrade(empty)
    assert reason in str(refusal.value)


async def test_without_the_right_to_make_a_schema_the_table_stays_and_somebody_is_warned(
    empty: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database=empty.db_name)
    await administrator.execute(
        f'ALTER DATABASE "{empty.db_name}" OWNER TO postgres; GRANT CREATE ON SCHEMA public TO goals_user;'
        f" {PLAIN}; ALTER TABLE goals OWNER TO goals_user"
    )
    assert await adopt_and_use(empty) == ""
    assert await administrator.fetchval("SELECT count(row_version) FROM public.goals") > 0
    assert any("SELECT * returns three more columns" in message for message in caplog.messages)
    await administrator.close()


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    own: Settings,
    owner: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def look() -> str:
        attributes = {"settings": own, "limits": WIDE, "dry_run": True}
        command.upgrade(Config(ROOT / "alembic.ini", stdout=(out := StringIO()), attributes=attributes), "head")
        return out.getvalue()

    assert "revision 0001 would run: " in await to_thread.run_sync(look)
    await owner.execute(PLAIN)
    await owner.execute("INSERT INTO goals VALUES (7, 'goal')")
    before = await describe(owner)
    assert "revision 0002 would run: " in await to_thread.run_sync(look)
    assert "the next id was 1, but goals has ids up to 7: goals_id_seq would be set to that" in caplog.messages
    assert await describe(owner) == before
    await upgrade(own)
    assert await to_thread.run_sync(look) == f"nothing would be done: the schema is at revision {SCHEMA_REVISION}\n"


def draw(chance: random.Random) -> str:
    """A table such as somebody may have."""
    one = chance.choice
    constraints = [*[""] * 9, " UNIQUE", " CHECK (goal_name <> '')", " CHECK (length(goal_name) < 100)", " DEFAULT ''"]
    name_type = one([*["TEXT"] * 4, "VARCHAR", "VARCHAR(255)", "VARCHAR(20)", "CHAR(20)", "NAME"])
    columns = [
        one(
            [
                *["id SERIAL"] * 4,
                "id BIGSERIAL",
                "id SMALLSERIAL",
                "id INTEGER",
                "id BIGINT GENERATED ALWAYS AS IDENTITY",
            ]
        )
        + one([" PRIMARY KEY"] * 5 + [" UNIQUE NOT NULL", ""]),
        f"goal_name {name_type}{one([' NOT NULL'] * 5 + [''])}{one(constraints)}",
    ]
    columns += chance.sample(
        [
            "owner TEXT",
            "done BOOLEAN NOT NULL DEFAULT false",
            "user_id INTEGER NOT NULL",
            "slug TEXT UNIQUE",
            "code INTEGER UNIQUE DEFAULT 1",
            "lower TEXT GENERATED ALWAYS AS (lower(goal_name)) STORED",
            "tags TEXT[] DEFAULT '{}'",
            one(["created_at TIMESTAMPTZ DEFAULT now()", "created_at TIMESTAMP"]),
            "updated_at TIMESTAMPTZ",
            "row_version BIGINT",
            "CHECK (id > 0)",
            "CHECK (goal_name !~ '[<>]')",
            "EXCLUDE USING hash (goal_name WITH =)",
        ],
        chance.randrange(3),
    )
    chance.shuffle(columns)
    actions = ["RETURN NEW;", "RETURN NULL;", "NEW.goal_name := trim(NEW.goal_name); RETURN NEW;", "RAISE 'no';"]
    trigger = TRIGGER.format(one(actions), one(["BEFORE", "AFTER"]) + one([" INSERT", " UPDATE", " DELETE"]))
    others = [
        "",
        "",
        "",
        trigger,
        "CREATE VIEW recent AS SELECT goal_name FROM goals",
        "CREATE INDEX ON goals (goal_name)",
    ]
    return f"CREATE TABLE goals ({', '.join(columns)}); {one(others)}"


NUMBER, _, SEED = os.environ.get("GENERATED_TABLES", "20").partition(":")
SEED = SEED or str(random.randrange(10**9))  # noqa: S311  no secret


@pytest.mark.parametrize("index", range(int(NUMBER)))
async def test_a_generated_table_is_refused_or_served(own: Settings, owner: asyncpg.Connection, index: int) -> None:
    """GENERATED_TABLES says how many; `20:SEED` plays the same ones again."""
    made = draw(random.Random(f"{SEED}:{index}"))  # noqa: S311  no secret
    sys.stdout.write(f"GENERATED_TABLES={NUMBER}:{SEED}: {made}\n")
    await owner.execute(made)
    assert "\n" not in await adopt_and_use(own)
