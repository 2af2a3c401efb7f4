"""A real PostgreSQL for the whole run, a real service on real ports, and an empty table for each test."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import httpx2
import pytest
from alembic import command
from alembic.config import Config
from anyio import to_thread
from sqlalchemy import text

from goals import app, embedded, logs
from goals.database import Database
from goals.limits import Limits
from goals.settings import Settings

ROOT = Path(__file__).parent.parent
LIMITS = Limits()


class Service(NamedTuple):
    """A running service: its two ports."""

    port: int
    operators_port: int


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[Path]:
    """The folder of the socket of a PostgreSQL that is told not to wait for the disk."""
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
            "goals_log_format": "json",
        }
    )


@pytest.fixture(scope="session")
def schema(settings: Settings) -> None:
    """The schema at its newest revision, in the database that most tests share."""
    migrate(settings)


def migrate(settings: Settings, revision: str = "head") -> None:
    command.upgrade(Config(ROOT / "alembic.ini", attributes={"settings": settings}), revision)


async def upgrade(settings: Settings, revision: str = "head") -> None:
    # In a thread: the migrations bring an event loop of their own.
    await to_thread.run_sync(migrate, settings, revision)


@pytest.fixture
async def empty(settings: Settings) -> AsyncIterator[Settings]:
    """Settings that lead to a database of this test's own, without a table."""
    name = f"test_{uuid4().hex}"
    administrator = await asyncpg.connect(host=settings.db_host, user="postgres", database="postgres")
    await administrator.execute(f'CREATE DATABASE "{name}" OWNER goals_user')
    yield settings.model_copy(update={"db_name": name})
    await administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await administrator.close()


@contextlib.asynccontextmanager
async def serving(settings: Settings, limits: Limits = LIMITS) -> AsyncIterator[Service]:
    """Serve as `python -m goals serve` does, but in this process and without its signals."""
    ports: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    stops: list[Callable[[], None]] = []
    serving = asyncio.create_task(
        app.serve(settings, limits, announce=lambda *pair: ports.set_result(Service(*pair)), heed=stops.append)
    )
    serving.add_done_callback(lambda _: ports.cancel())
    try:
        yield await ports
    finally:
        for stop in stops:
            stop()
        await serving  # raises what kept it from its ports


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    """Ask again and again until it holds; pytest's time limit bounds it."""
    while not await holds():
        await asyncio.sleep(0.01)


async def until_ready(service: Service) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:

        async def is_ready() -> bool:
            return (await client.get(f"http://127.0.0.1:{service.operators_port}/readyz")).status_code == 200

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
async def database(settings: Settings, schema: None) -> AsyncIterator[Database]:
    """The service's own way to an empty table."""
    database = Database(settings, LIMITS)
    async with database.engine.connect() as connection:
        await connection.execute(text("TRUNCATE goals RESTART IDENTITY"))
    await database.engine.dispose()
    yield database
    await database.close()


@pytest.fixture
async def client(service: Service, database: Database) -> AsyncIterator[httpx2.AsyncClient]:
    """Speaks to the public port of a service whose table is empty; follows no redirect."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
        yield client


@pytest.fixture
async def operator(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """Speaks to the operators' port."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{service.operators_port}", trust_env=False) as client:
        yield client
