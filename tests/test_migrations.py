"""The schema: upgraded, downgraded, adopted from the seed, raced for, and never in the way of those who write."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from anyio import to_thread

from goals import embedded
from goals.connections import connect_arguments
from goals.models import SCHEMA_REVISION
from goals.settings import Settings
from tests.conftest import ROOT, WIDE, upgrade
from tools.polling import until

SEED_FORMS = {
    "text": "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name TEXT NOT NULL)",
    "varchar": "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name VARCHAR(255) NOT NULL)",
}
LONGEST = {"text": "long " * 100, "varchar": "x" * 255}


@pytest.fixture
async def connection(empty: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**connect_arguments(empty, WIDE))
    yield connection
    await connection.close()


async def downgrade(settings: Settings, revision: str) -> None:
    await to_thread.run_sync(command.downgrade, config(settings), revision)


def config(settings: Settings) -> Config:
    return Config(ROOT / "alembic.ini", attributes={"settings": settings})


async def test_an_empty_database_gets_the_table_of_the_models(empty: Settings) -> None:
    await upgrade(empty)
    await to_thread.run_sync(command.check, config(empty))


@pytest.mark.parametrize("form", SEED_FORMS)
async def test_the_seeds_table_is_adopted_with_its_rows(
    empty: Settings, connection: asyncpg.Connection, form: str
) -> None:
    await connection.execute(SEED_FORMS[form])
    for name in ("first", LONGEST[form]):
        await connection.execute("INSERT INTO goals (goal_name) VALUES ($1)", name)
    await upgrade(empty)
    await to_thread.run_sync(command.check, config(empty))
    rows = await connection.fetch("SELECT id, goal_name, created_at, idempotency_key FROM goals ORDER BY id")
    assert [tuple(row) for row in rows] == [(1, "first", None, None), (2, LONGEST[form], None, None)]
    # The seed's own statement goes on working, and what it makes is dated from now on.
    made = await connection.fetchrow("INSERT INTO goals (goal_name) VALUES ('third') RETURNING id, created_at")
    assert made["id"] == 3
    assert made["created_at"] is not None


async def test_a_downgrade_leads_back_to_the_seeds_table_and_keeps_the_rows(
    empty: Settings, connection: asyncpg.Connection
) -> None:
    await upgrade(empty)
    await connection.execute("INSERT INTO goals (goal_name, idempotency_key) VALUES ('kept', $1)", uuid4())
    await downgrade(empty, "base")
    assert [tuple(row) for row in await connection.fetch("SELECT * FROM goals")] == [(1, "kept")]
    await upgrade(empty)
    await to_thread.run_sync(command.check, config(empty))


async def test_a_key_makes_one_goal_only(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    key = uuid4()
    await connection.execute("INSERT INTO goals (goal_name, idempotency_key) VALUES ('a', $1)", key)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("INSERT INTO goals (goal_name, idempotency_key) VALUES ('b', $1)", key)


async def test_five_migrators_race_safely(empty: Settings, connection: asyncpg.Connection) -> None:
    environment = os.environ | {
        "DB_HOST": str(empty.db_host),
        "DB_NAME": empty.db_name,
        "SSL": "disable",
    }
    racers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "goals", "migrate", cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        for _ in range(5)
    ]
    assert [await racer.wait() for racer in racers] == [0] * 5
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == SCHEMA_REVISION


async def test_a_limit_that_the_database_sets_stops_no_migration(
    empty: Settings, connection: asyncpg.Connection
) -> None:
    await connection.execute(f'ALTER DATABASE "{empty.db_name}" SET statement_timeout = 1')
    await upgrade(empty)


async def test_a_migration_waits_its_turn(empty: Settings, connection: asyncpg.Connection) -> None:
    key = int.from_bytes(b"goals", "big")
    await connection.execute(f"SELECT pg_advisory_lock({key})")
    migration = asyncio.create_task(upgrade(empty))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'goals-migrate' AND datname = $1"
    await until(lambda: connection.fetchval(waiting, empty.db_name))
    assert await connection.fetchval("SELECT to_regclass('goals')") is None
    await connection.execute(f"SELECT pg_advisory_unlock({key})")
    await migration
    assert await connection.fetchval("SELECT to_regclass('goals')") == "goals"


@pytest.mark.parametrize("revision", ["0001", "0002"])
async def test_a_migration_that_waits_for_a_long_transaction_lets_writers_go_on(
    empty: Settings, connection: asyncpg.Connection, revision: str
) -> None:
    await connection.execute(SEED_FORMS["varchar"])
    await upgrade(empty, f"{revision}-1" if revision == "0002" else "base")
    writer = await asyncpg.connect(**connect_arguments(empty, WIDE), server_settings={"lock_timeout": "1000"})
    async with connection.transaction():
        await connection.execute("SELECT count(*) FROM goals")
        migration = asyncio.create_task(upgrade(empty, revision))
        refused = "SELECT count(*) FROM pg_locks WHERE relation = 'goals'::regclass AND mode = 'AccessExclusiveLock'"
        await until(lambda: writer.fetchval(refused))
        for number in range(20):  # the first of them wait behind the migration, until its own patience ends
            await writer.execute("INSERT INTO goals (goal_name) VALUES ($1)", f"meanwhile {number}")
        assert not migration.done()
    await migration
    assert await writer.fetchval("SELECT count(*) FROM goals") == 20
    await writer.close()


async def test_an_index_left_invalid_is_built_anew(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    await connection.execute("UPDATE alembic_version SET version_num = '0001'")
    index = await connection.fetchval("SELECT 'goals_idempotency_key_idx'::regclass::oid")
    administrator = await asyncpg.connect(host=empty.db_host, user="postgres", database=empty.db_name)
    await administrator.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = $1", index)
    await administrator.close()
    await upgrade(empty)
    built = await connection.fetch("SELECT indisvalid FROM pg_index WHERE indrelid = 'goals'::regclass")
    assert [row["indisvalid"] for row in built] == [True, True]


async def test_an_unreachable_server_is_named_with_the_remedy(empty: Settings) -> None:
    nowhere = empty.model_copy(update={"db_host": str(Path(str(empty.db_host)) / "nowhere")})
    with pytest.raises(CommandError, match=r"^cannot reach PostgreSQL at .*nowhere, port 5432 .*check DB_HOST"):
        await upgrade(nowhere)


async def test_a_failure_of_tls_is_named_with_the_remedy(empty: Settings) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # the client asks for TLS
        writer.write(b"S")
        await reader.read(1)
        writer.write(b"This is no TLS.")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        strict = empty.model_copy(update={"db_host": "127.0.0.1", "db_port": port, "ssl": "require"})
        with pytest.raises(CommandError, match=rf"^no TLS with PostgreSQL at 127\.0\.0\.1, port {port} \([A-Z_]+\): "):
            await upgrade(strict)


def alembic(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The `alembic` command as a user types it, without DB_HOST, in a folder that looks like the root."""
    for name in ("alembic", "alembic.ini", "services"):
        (folder / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DB_")} | {
        "PGSSLCERT": "/x"
    }
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_alembic_command_brings_its_own_server(tmp_path: Path) -> None:
    done = alembic("upgrade", "head", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Running upgrade 0001 -> 0002" in done.stderr
    assert "PGSSLCERT ignored: DB_… and SSL say where PostgreSQL is" in done.stderr
    assert (tmp_path / ".data" / "postgres").is_dir()
    assert not (tmp_path / ".data" / "postgres" / "postmaster.pid").exists()


def test_the_statements_can_be_read_before_they_are_run(tmp_path: Path) -> None:
    done = alembic("upgrade", "head", "--sql", folder=tmp_path)
    assert "CREATE UNIQUE INDEX CONCURRENTLY goals_idempotency_key_idx" in done.stdout
    assert not (tmp_path / ".data").exists()


@pytest.mark.parametrize(("arguments", "expected"), [("upgrade head", 2), ("downgrade 0002:base", 1)])
def test_the_statements_themselves_do_not_wait_long_for_the_table(
    tmp_path: Path, arguments: str, expected: int
) -> None:
    statements = alembic(*arguments.split(), "--sql", folder=tmp_path).stdout
    transactions = [re.split(r"TABLE (?:IF NOT EXISTS )?goals\s", part) for part in statements.split("BEGIN;")]
    before = [parts[0] for parts in transactions if len(parts) > 1]
    assert ["SET LOCAL lock_timeout = '200ms';" in part for part in before] == [True] * expected


def test_the_embedded_servers_settings_are_settings(server: Path) -> None:
    assert embedded.SETTINGS.keys() <= Settings.model_fields.keys()
    assert server.is_dir()


def test_every_revision_is_a_number_and_follows_the_one_before() -> None:
    """Whether a schema is new enough is told by comparing them."""
    numbers = [script.revision for script in ScriptDirectory.from_config(Config(ROOT / "alembic.ini")).walk_revisions()]
    assert numbers == [f"{number:04}" for number in range(len(numbers), 0, -1)]
    assert numbers[0] == SCHEMA_REVISION


def test_a_new_revision_is_numbered_and_needs_no_database(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "alembic", tmp_path / "alembic", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    for ahead in (1, 2):
        subprocess.run(
            [sys.executable, "-m", "alembic", "revision", "-m", "a due date"],
            cwd=tmp_path,
            env={**os.environ, "DB_HOST": "nowhere.invalid"},
            capture_output=True,
            check=True,
        )
        number = f"{int(SCHEMA_REVISION) + ahead:04}"
        text = (tmp_path / "alembic" / "versions" / f"{number}_a_due_date.py").read_text()
        assert f'revision = "{number}"\ndown_revision = "{int(number) - 1:04}"\n' in text
