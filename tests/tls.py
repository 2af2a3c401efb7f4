"""An entrance with TLS before the embedded server, whose build has none; it negotiates as PostgreSQL does."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

# The protocol's documentation, "SSL Session Encryption": length 8 and the request's code.
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


@contextlib.asynccontextmanager
async def entrance(socket: Path, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Yield the port on 127.0.0.1 behind which the server at `socket` is; who does not ask for TLS is sent away."""

    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(8) == SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(context)
                inner_reader, inner_writer = await asyncio.open_unix_connection(str(socket / ".s.PGSQL.5432"))
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
