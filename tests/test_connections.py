"""What stands between the service and PostgreSQL is named as what it is, by `migrate` and by the probe of readiness."""

import asyncio
import contextlib
import gc
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import asyncpg
import pytest
from alembic.util import CommandError

from goals.connections import explain, handle_loop_error
from goals.settings import Settings
from tests.conftest import WIDE, serving, speaking_to, upgrade
from tools.polling import until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def without_tls(settings: Settings, client: Streams) -> None:
    """PostgreSQL with `ssl = off`, asked for TLS."""
    reader, writer = client
    await reader.readexactly(8)
    writer.write(b"N")
    await reader.read()


async def strict_pooler(settings: Settings, client: Streams) -> None:
    """PgBouncer as it comes."""
    reader, writer = client
    await read_startup(reader)
    fields = "SFATAL", "VFATAL", "C08P01", "Munsupported startup parameter: statement_timeout"
    body = b"".join(field.encode() + b"\0" for field in fields) + b"\0"
    writer.write(b"E" + struct.pack("!I", 4 + len(body)) + body)


async def lenient_pooler(settings: Settings, client: Streams) -> None:
    """PgBouncer with `ignore_startup_parameters`, and a server connection that was made before."""
    startup = await read_startup(client[0])
    kept = {name: startup[name] for name in ("user", "database", "application_name")}
    body = struct.pack("!I", 3 << 16) + b"".join(f"{name}\0{value}\0".encode() for name, value in kept.items()) + b"\0"
    server = await asyncio.open_unix_connection(f"{settings.db_host}/.s.PGSQL.5432")
    server[1].write(struct.pack("!I", 4 + len(body)) + body)
    await asyncio.gather(pump(client[0], server[1]), pump(server[0], client[1]))


async def read_startup(reader: asyncio.StreamReader) -> dict[str, str]:
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    words = (await reader.readexactly(length - 4))[4:].decode().split("\0")
    return dict(zip(words[::2], words[1::2], strict=False))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def in_front(
    settings: Settings, act: Callable[[Settings, Streams], Awaitable[None]], tls: str
) -> AsyncIterator[Settings]:
    """Settings that lead to what acts as something else than our PostgreSQL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await act(settings, (reader, writer))

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield settings.model_copy(update={"db_host": "127.0.0.1", "db_port": port, "ssl": tls})


@pytest.mark.parametrize(
    ("act", "tls", "reason"),
    [
        (without_tls, "require", "has no TLS, but SSL=require requires it: turn it on there"),
        (strict_pooler, "disable", "is a pooler (unsupported startup parameter: statement_timeout): set DB_HOST to"),
        (lenient_pooler, "disable", "a pooler drops startup parameters"),
    ],
)
async def test_what_is_in_the_way_is_named(
    empty: Settings, act: Callable[[Settings, Streams], Awaitable[None]], tls: str, reason: str
) -> None:
    await upgrade(empty)
    async with in_front(empty, act, tls) as settings:
        with pytest.raises(CommandError) as refusal:
            await upgrade(settings)
        assert reason in str(refusal.value)
        limits = replace(WIDE, retry_budget=2.0)
        async with serving(settings, limits) as service, speaking_to(service.ops_port) as operator:

            async def says_so() -> bool:
                return reason in (await operator.get("/readyz")).text

            await until(says_so)


async def another_protocol(settings: Settings, client: Streams) -> None:
    """A web server."""
    client[1].write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


async def hanging_up(settings: Settings, client: Streams) -> None:
    await read_startup(client[0])


@pytest.mark.parametrize(
    ("act", "tls", "reason"),
    [
        (another_protocol, "prefer", "is not a PostgreSQL server: check DB_HOST and DB_PORT"),
        (hanging_up, "disable", "closed the connection"),
    ],
)
async def test_what_is_not_postgresql_is_told(
    empty: Settings, act: Callable[[Settings, Streams], Awaitable[None]], tls: str, reason: str
) -> None:
    async with in_front(empty, act, tls) as settings:
        with pytest.raises(CommandError, match=reason):
            await upgrade(settings)


def test_a_key_that_cannot_be_read_is_named(settings: Settings) -> None:
    """As asyncpg finds it where HOME belongs to another account."""
    error = PermissionError(13, "Permission denied")
    assert explain(error, settings).startswith("cannot reach PostgreSQL at ")  # a socket needs no key
    remote = settings.model_copy(update={"db_host": "localhost", "ssl": "prefer"})
    assert explain(error, remote).startswith("cannot read a client key in ~/.postgresql (Permission denied)")


def test_what_the_driver_refuses_is_told_in_its_words(settings: Settings) -> None:
    error = asyncpg.ClientConfigurationError("`sslmode` parameter must be one of: disable\nand more")
    assert explain(error, settings) == "ClientConfigurationError: `sslmode` parameter must be one of: disable"


async def test_only_what_a_connection_leaves_behind_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(handle_loop_error)
    for error in (ConnectionError("left behind"), RuntimeError("a defect")):
        loop.create_future().set_exception(error)
    gc.collect()
    loop.set_exception_handler(None)
    assert ["a defect" in str(record.exc_info) for record in caplog.records] == [True]
