"""A TLS proxy for a server of the wheel, whose build does not support TLS; it negotiates as PostgreSQL does."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

# See "SSL Session Encryption" in the protocol's documentation: the length, 8, and the request code.
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@contextlib.asynccontextmanager
async def entrance(connect: Connect, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Yield a port on 127.0.0.1 that forwards to `connect`; a client that does not request TLS is disconnected."""

    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(8) == SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(context)
                inner_reader, inner_writer = await connect()
                await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        writer.close()

    server = await asyncio.start_server(enter, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
