"""The schema: upgraded, downgraded, raced for, and never in the way of those who write."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from anyio import to_thread

from goals import embedded, store
from goals.connections import connect_arguments
from goals.models import SCHEMA_REVISION
from goals.settings import Settings
from tests.conftest import ROOT, WIDE, alembic_config, database_of, downgrade, upgrade
from tools.polling import until

REVISIONS = sorted(path.name.partition("_")[0] for path in (ROOT / "alembic/versions").glob("[0-9]*.py"))


async def test_an_empty_database_gets_the_table_of_the_models(empty: Settings) -> None:
    await upgrade(empty)
    await to_thread.run_sync(command.check, alembic_config(empty))


async def test_a_downgrade_keeps_the_goals(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    await connection.execute("INSERT INTO goals (goal_name) VALUES ('kept')")
    await downgrade(empty, "base")
    rows = await connection.fetch("SELECT id, goal_name FROM goals")
    assert [tuple(row) for row in rows] == [(1, "kept")]
    await upgrade(empty)
    async with database_of(empty) as database:
        assert (await store.select_goal(database, 1)).goal_name == "kept"


async def test_each_change_of_a_row_has_a_version_of_its_own(empty: Settings, connection: asyncpg.Connection) -> None:
    await upgrade(empty)
    await connection.execute("INSERT INTO goals (goal_name) VALUES ('a')")
    for version in (2, 3):
        await connection.execute("UPDATE goals SET goal_name = 'b', row_version = 9")
        assert await connection.fetchval("SELECT row_version FROM goals") == version
    assert await connection.fetchval("SELECT updated_at > created_at FROM goals")


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
    key = int.from_bytes(b"goals"[:7])
    await connection.execute(f"SELECT pg_advisory_lock({key})")
    migration = asyncio.create_task(upgrade(empty))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'goals-migrate' AND datname = $1"
    await until(lambda: connection.fetchval(waiting, empty.db_name))
    assert await connection.fetchval("SELECT to_regclass('goals')") is None
    await connection.execute(f"SELECT pg_advisory_unlock({key})")
    await migration
    assert await connection.fetchval("SELECT to_regclass('goals')") == "goals"


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_migration_that_waits_for_a_long_transaction_lets_writers_go_on(
    empty: Settings, connection: asyncpg.Connection, revision: str
) -> None:
    await upgrade(empty)
    await downgrade(empty, "base")  # which leaves the table, so that the first revision has to wait for it too
    # part adoption
    await connection.execute("DROP TABLE goals; CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name VARCHAR NOT NULL)")
    # end adoption
    await upgrade(empty, "base" if revision == REVISIONS[0] else f"{revision}-1")
    writer = await asyncpg.connect(**connect_arguments(empty, WIDE), server_settings={"lock_timeout": "1000"})
    async with connection.transaction():
        await connection.execute("INSERT INTO goals (goal_name) VALUES ('first')")
        migration = asyncio.create_task(upgrade(empty, revision))

        async def waits_or_has_ended() -> bool:  # a revision that only makes a table waits for nobody
            waiting = "SELECT count(*) FROM pg_locks WHERE mode LIKE '%ExclusiveLock' AND NOT granted"
            return migration.done() or await writer.fetchval(waiting) > 0

        await until(waits_or_has_ended)
        assert revision != REVISIONS[0] or not migration.done()
        for number in range(20):  # the first of them wait behind the migration, until its own patience ends
            await writer.execute("INSERT INTO goals (goal_name) VALUES ($1)", f"meanwhile {number}")
    await migration
    assert await writer.fetchval("SELECT count(*) FROM goals") == 21
    await writer.close()


async def test_an_unreachable_server_is_named_with_the_remedy(empty: Settings) -> None:
    nowhere = empty.model_copy(update={"db_host": str(Path(str(empty.db_host)) / "nowhere")})
    with pytest.raises(CommandError, match=r"^cannot reach PostgreSQL at .*nowhere, port 5432 .*check DB_HOST"):
        await upgrade(nowhere)


async def test_a_primary_that_is_away_is_waited_for(
    empty: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = tmp_path / "primary"
    migration = asyncio.create_task(
        upgrade(empty.model_copy(update={"db_host": str(name), "goals_write_wait_seconds": 15.0}))
    )

    async def is_waiting() -> bool:
        return "Waiting for a primary: cannot reach PostgreSQL" in caplog.text

    await until(is_waiting)
    name.symlink_to(str(empty.db_host))
    await migration
    async with database_of(empty) as database:
        assert await store.select_revision(database) == SCHEMA_REVISION


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
    assert f"-> {SCHEMA_REVISION}" in done.stderr
    assert "PGSSLCERT ignored: DB_… and SSL configure the connection to PostgreSQL" in done.stderr
    assert (tmp_path / ".data" / "postgres").is_dir()
    assert not (tmp_path / ".data" / "postgres" / "postmaster.pid").exists()


def test_the_statements_can_be_read_before_they_are_run(tmp_path: Path) -> None:
    done = alembic("upgrade", "head", "--sql", folder=tmp_path)
    assert "CREATE TABLE goal_keys" in done.stdout
    assert not (tmp_path / ".data").exists()


@pytest.mark.parametrize("arguments", ["upgrade head", f"downgrade {SCHEMA_REVISION}:base"])
def test_the_statements_themselves_do_not_wait_long_for_the_table(tmp_path: Path, arguments: str) -> None:
    statements = alembic(*arguments.split(), "--sql", folder=tmp_path).stdout
    revisions = [part for part in statements.split("BEGIN;") if re.search(r"\bgoals\b", part)]
    first = [re.split(r";|\$\$", part.partition("SET LOCAL")[0])[-1].strip() for part in revisions]
    assert revisions
    assert [part.count("SET LOCAL lock_timeout = '200ms'") for part in revisions] == [1] * len(revisions)
    assert not [text for text in first if "TABLE goals" in text]


def test_the_embedded_servers_settings_are_settings(server: Path) -> None:
    assert embedded.SETTINGS.keys() <= Settings.model_fields.keys()
    assert server.is_dir()


def test_every_revision_is_a_number_and_follows_the_one_before() -> None:
    """A comparison of two shows which schema is newer."""
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
