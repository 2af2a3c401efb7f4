"""A real PostgreSQL for the whole run, a real service on real ports, and an empty table for each test."""

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from alembic import command
from alembic.config import Config
from anyio import to_thread
from sqlalchemy import text

from goals import app, embedded, logs
from goals.connections import connect_arguments
from goals.database import Database
from goals.limits import Limits
from goals.settings import Settings
from tools.polling import until

ROOT = Path(__file__).parent.parent
# The shell's own settings take no part.
_SETTINGS = re.compile("SSL$|DB_|GOALS_|OTEL_")
_others = {name: value for name, value in os.environ.items() if not _SETTINGS.match(name)}
os.environ.clear()
os.environ.update(_others)
LIMITS = Limits()
WIDE = replace(
    LIMITS,
    body_deadline=10 * LIMITS.body_deadline,
    request_deadline=10 * LIMITS.request_deadline,
    write_deadline=10 * LIMITS.write_deadline,
    keep_alive=10 * LIMITS.keep_alive,
    transport_grace=10 * LIMITS.transport_grace,
    linger=10 * LIMITS.linger,
    stop_margin=10 * LIMITS.stop_margin,
    traces_flush=10 * LIMITS.traces_flush,
    gate_timeout=10 * LIMITS.gate_timeout,
    group_time=10 * LIMITS.group_time,
    unresponsive_after=10 * LIMITS.unresponsive_after,
    acceptable_wait=10 * LIMITS.acceptable_wait,
    connect_timeout=10 * LIMITS.connect_timeout,
    statement_timeout=10 * LIMITS.statement_timeout,
    command_timeout=10 * LIMITS.command_timeout,
    retry_budget=10 * LIMITS.retry_budget,
    silence=10 * LIMITS.silence,
    ask_timeout=10 * LIMITS.ask_timeout,
    standby_timeout=10 * LIMITS.standby_timeout,
)
"""For tests that wait for no limit: only a machine that is ten times too slow for the product can break them."""


WAIT_FOR_THE_LOCK = "SELECT pg_advisory_xact_lock_shared(1)"
"""A statement that is under way for as long as the administrator holds the lock: `SELECT pg_advisory_lock(1)`."""


class Service(NamedTuple):
    """A running service: its two ports."""

    port: int
    ops_port: int


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[Path]:
    """The folder of the socket of a PostgreSQL that does not wait for the disk."""
    # Not in pytest's own folder, which the next run of pytest by root would close to the server's account.
    options = {"fsync": "off", "max_connections": "200"}
    with tempfile.TemporaryDirectory(prefix="goals-test-") as folder, embedded.run(Path(folder), options) as socket:
        yield socket


@pytest.fixture(scope="session")
def settings(server: Path) -> Settings:
    """Settings that lead to the embedded server and let the kernel choose the ports."""
    return Settings().model_copy(
        update=embedded.SETTINGS
        | {
            "db_host": str(server),
            "goals_port": 0,
            "goals_ops_port": 0,
            "goals_drain_seconds": 0.0,
            "goals_write_wait_seconds": 0.0,  # a server that is not there is not waited for
            "goals_log_format": "json",
        }
    )


@pytest.fixture(scope="session")
def schema(settings: Settings) -> None:
    """The schema at its newest revision, in the database that most tests share."""
    migrate(settings)


def migrate(settings: Settings, revision: str = "head") -> None:
    command.upgrade(Config(ROOT / "alembic.ini", attributes={"settings": settings, "limits": WIDE}), revision)


async def upgrade(settings: Settings, revision: str = "head") -> None:
    # In a thread: the migrations bring an event loop of their own.
    await to_thread.run_sync(migrate, settings, revision)


async def downgrade(settings: Settings, revision: str) -> None:
    await to_thread.run_sync(command.downgrade, alembic_config(settings), revision)


def alembic_config(settings: Settings) -> Config:
    return Config(ROOT / "alembic.ini", attributes={"settings": settings})


@pytest.fixture
async def empty(settings: Settings) -> AsyncIterator[Settings]:
    """Settings that lead to a database of this test's own, without a table."""
    async with fresh_database(settings) as fresh:
        yield fresh


@pytest.fixture
async def connection(empty: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The service's role in the empty database."""
    connection = await asyncpg.connect(**connect_arguments(empty, WIDE))
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def database_of(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings, WIDE)
    yield database
    await database.close()


@pytest.fixture(scope="module")
async def own(settings: Settings) -> AsyncIterator[Settings]:
    """Settings that lead to one database for all tests of a module: another one takes longer than a test."""
    async with fresh_database(settings) as fresh:
        yield fresh


@pytest.fixture
async def owner(own: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The role that owns the module's database, in which nothing is left of the test before."""
    connection = await asyncpg.connect(**connect_arguments(own, WIDE))
    # part adoption
    await connection.execute("DROP SCHEMA IF EXISTS goals_adopted CASCADE")
    # end adoption
    await connection.execute("DROP SCHEMA IF EXISTS apart, public CASCADE; CREATE SCHEMA public")
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def fresh_database(settings: Settings, options: str = "") -> AsyncIterator[Settings]:
    name = f"test_{uuid4().hex}"
    administrator = await asyncpg.connect(host=settings.db_host, user="postgres", database="postgres")
    await administrator.execute(f'CREATE DATABASE "{name}" OWNER goals_user {options}')
    yield settings.model_copy(update={"db_name": name})
    await administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await administrator.close()


@contextlib.asynccontextmanager
async def serving(settings: Settings, limits: Limits = WIDE) -> AsyncIterator[Service]:
    """Serve as `python -m goals serve` does, but in this process and without its signals."""
    ports: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    stops: list[Callable[[], None]] = []
    serving = asyncio.create_task(
        app.serve(settings, limits, announce=lambda *pair: ports.set_result(Service(*pair)), on_signal=stops.append)
    )
    serving.add_done_callback(lambda _: ports.cancel())
    try:
        yield await ports
    finally:
        for stop in stops:
            stop()
        await serving  # raises what kept it from its ports


def speaking_to(port: int) -> httpx2.AsyncClient:
    """A client for one port of this machine; it follows no redirect, and waits longer than any limit."""
    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)


async def until_ready(service: Service) -> None:
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:

        async def is_ready() -> bool:
            return (await client.get(f"http://127.0.0.1:{service.ops_port}/readyz")).status_code == 200

        await until(is_ready)


@pytest.fixture(scope="session")
async def service(settings: Settings, schema: None) -> AsyncIterator[Service]:
    logs.configure("json")
    async with serving(settings) as service:
        await until_ready(service)
        yield service


@pytest.fixture
def restored_logs() -> Iterator[None]:
    """Lets a test catch what is logged; afterwards logs go to what is standard output for the others."""
    yield
    logs.configure("json")
    logs.context.set({})


@pytest.fixture
async def administrator(settings: Settings, schema: None) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(host=settings.db_host, user="postgres", database=settings.db_name)
    yield connection
    await connection.close()


async def until_running(administrator: asyncpg.Connection, part: str, number: int = 1) -> None:
    """Wait until so many statements run that have `part` in their text."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE $1 AND pid <> pg_backend_pid()"

    async def are_running() -> bool:
        return bool(await administrator.fetchval(query, f"%{part}%") >= number)

    await until(are_running)


@contextlib.asynccontextmanager
async def transaction(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """Another session's transaction, which comes to nothing."""
    connection = await asyncpg.connect(host=settings.db_host, user="postgres", database=settings.db_name)
    await connection.execute("BEGIN")
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def holding(settings: Settings, key: UUID) -> AsyncIterator[None]:
    """Within it another session has this key and has not committed; then it gives the key up."""
    async with transaction(settings) as other:
        await other.execute("INSERT INTO goal_keys (key, fingerprint, goal_id) VALUES ($1, '', 0)", key)
        yield


async def until_pending(service: Service, number: int) -> None:
    """Wait until at least so many requests wait for the database."""

    async def are_pending() -> bool:
        lines = (await asking.get("/metrics")).text.splitlines()
        (line,) = (line for line in lines if line.startswith("db_client_connection_pending_requests{"))
        return float(line.split()[1]) >= number

    async with speaking_to(service.ops_port) as asking:
        await until(are_pending)


async def until_blocked(administrator: asyncpg.Connection, part: str) -> None:
    """Wait until a statement that has `part` in its text waits for a lock; one that runs may still be parsed."""
    query = "SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1"
    await until(lambda: administrator.fetchval(query, f"%{part}%"))


@pytest.fixture
async def database(settings: Settings, schema: None) -> AsyncIterator[Database]:
    """The service's own way to an empty table."""
    database = Database(settings, WIDE)
    async with database.engine.connect() as connection:
        await connection.execute(text("TRUNCATE goals, goal_keys RESTART IDENTITY"))
    await database.engine.dispose()
    yield database
    await database.close()


@pytest.fixture
async def undated(database: Database) -> AsyncIterator[None]:
    """A goal without a creation time, like one that was added before the column existed."""
    await alter(database, "ALTER TABLE goals ALTER COLUMN created_at DROP NOT NULL")
    await alter(database, "INSERT INTO goals (goal_name, created_at) VALUES ('old', NULL)")
    yield
    await alter(database, "DELETE FROM goals")
    await alter(database, "ALTER TABLE goals ALTER COLUMN created_at SET NOT NULL")


@pytest.fixture
async def client(service: Service, database: Database) -> AsyncIterator[httpx2.AsyncClient]:
    """Speaks to the public port of a service whose table is empty; follows no redirect."""
    async with speaking_to(service.port) as client:
        yield client


@pytest.fixture
async def operator(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """Speaks to the ops port."""
    async with speaking_to(service.ops_port) as client:
        yield client


async def fill(database: Database, number: int, gaps: Iterable[int] = ()) -> list[int]:
    """Add goals of one moment, take those with the ids in `gaps` away, and return the ids, newest first."""
    statement = "INSERT INTO goals (goal_name) SELECT 'goal ' || number FROM generate_series(1, :number) AS number"
    await database.fetch(text(f"{statement} RETURNING id"), {"number": number})
    await database.fetch(text("DELETE FROM goals WHERE id = ANY(:gaps) RETURNING id"), {"gaps": list(gaps)})
    return sorted(set(range(1, number + 1)) - set(gaps), reverse=True)


async def alter(database: Database, statement: str) -> None:
    async with database.engine.connect() as connection:
        await connection.execute(text(statement))
