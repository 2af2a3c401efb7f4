"""A server that answers as a path says, well or badly, and counts what it was asked."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from time import perf_counter
from typing import Self

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
LARGE = bytes(range(256)) * 8192  # 2 MiB, more than any buffer on the way

Writer = asyncio.StreamWriter
Script = Callable[[Writer, bytes], Awaitable[bool]]
"""Answers one request, given its body; true keeps the connection."""


class Server:
    """Listens on a port that the kernel chose, in a thread of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: Counter[str] = Counter()
        self.connections = 0
        self.head = b""
        """The last request's."""
        self.times: list[float] = []
        self.answer_after = 0.0
        self.stall: tuple[float, float] | None = None
        """Seconds after the first request at which nothing is answered, and until when."""
        self.port = 0
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    @property
    def count(self) -> int:
        return sum(self.requests.values())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=self._tls, backlog=4096, limit=2**16)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _talk(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._converse(reader, writer):
                pass
        writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: Writer) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b" ", 2)
        name = path.decode()
        now = perf_counter()
        self.requests[name] += 1
        self.head = head
        self.times.append(now)
        if name == "/refuse-early":
            # Answers and closes without having read the body.
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return False
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        body = await reader.readexactly(int(length.split(b":")[1]))
        since = now - self.times[0]
        if self.stall and self.stall[0] <= since < self.stall[1]:
            await asyncio.sleep(self.stall[1] - since)
        if self.answer_after:
            await asyncio.sleep(self.answer_after)
        if method == b"HEAD":
            return await _raw(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        for header in (b"cookie", b"authorization"):
            if name == {b"cookie": "/cookie/show", b"authorization": "/auth"}[header]:
                values = [
                    line.partition(b":")[2].strip() for line in head.split(b"\r\n") if line.lower().startswith(header)
                ]
                return await _whole(writer, b", ".join(values))
        if name.partition("?")[0] == "/echo":
            return await _whole(writer, method + b" " + body)
        script = SCRIPTS.get(name)
        return await script(writer, body) if script else await _raw(writer, OK)


async def _raw(writer: Writer, data: bytes) -> bool:
    writer.write(data)
    await writer.drain()
    return True


async def _whole(writer: Writer, content: bytes) -> bool:
    return await _raw(writer, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))


def _parts(*parts: bytes, keep: bool = True) -> Script:
    """A script that sends its parts one by one, each in a packet of its own."""

    async def script(writer: Writer, _: bytes) -> bool:
        for part in parts:
            await _raw(writer, part)
            await asyncio.sleep(0.01)
        return keep

    return script


async def _drip(writer: Writer, _: bytes) -> bool:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndrops":
        await _raw(writer, bytes([byte]))
        await asyncio.sleep(0.001)
    return True


async def _hang(writer: Writer, _: bytes) -> bool:
    await asyncio.sleep(30)
    return False


async def _reset(writer: Writer, _: bytes) -> bool:
    writer.transport.abort()
    return False


async def _wait(writer: Writer, _: bytes) -> bool:
    await asyncio.sleep(0.2)
    return await _whole(writer, b"late")


async def _send_large(writer: Writer, _: bytes) -> bool:
    return await _whole(writer, LARGE)


async def _send_without_end(writer: Writer, _: bytes) -> bool:
    await _raw(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _round in range(1000):  # far beyond any bound, though not forever
        await _raw(writer, b"%x\r\n%b\r\n" % (len(LARGE), LARGE))
    return False


async def _measure(writer: Writer, body: bytes) -> bool:
    return await _whole(writer, str(len(body)).encode())


SCRIPTS: dict[str, Script] = {
    "/split": _parts(
        b"HTTP/1.1 200 OK\r\nTransfer-Enc", b"oding: chunked\r\n\r\n3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n"
    ),
    "/close": _parts(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nOK", keep=False),
    "/end": _parts(b"HTTP/1.1 200 OK\r\n\r\nuntil ", b"the end", keep=False),
    "/end-1.0": _parts(b"HTTP/1.0 200 OK\r\n\r\n", keep=False),
    "/500": _parts(b"HTTP/1.1 500 Broken\r\nContent-Length: 1\r\n\r\nE"),
    "/503": _parts(b"HTTP/1.1 503 Later\r\nRetry-After: 1\r\nContent-Length: 5\r\n\r\n1, 22"),
    "/continue": _parts(b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    "/hints": _parts(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 103 Early", b" Hints\r\n\r\n", OK),
    "/redirect": _parts(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
    "/loop": _parts(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"),
    "/cookie/set": _parts(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/cookie\r\nContent-Length: 0\r\n\r\n"),
    "/204": _parts(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "/304": _parts(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 99\r\n\r\n'),
    "/switch": _parts(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "/garbage": _parts(b"this is not HTTP\r\n\r\n"),
    "/long-head": _parts(b"HTTP/1.1 200 OK\r\nX-Filler: " + 100_000 * b"x"),
    "/cut-head": _parts(b"HTTP/1.1 200 OK\r\nContent-", keep=False),
    "/cut-body": _parts(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nOK", keep=False),
    "/cut-chunk": _parts(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", keep=False),
    "/nothing": _parts(keep=False),
    "/twice": _parts(OK + OK),
    "/idle": _parts(OK, keep=False),
    "/drip": _drip,
    "/hang": _hang,
    "/reset": _reset,
    "/wait": _wait,
    "/large": _send_large,
    "/endless": _send_without_end,
    "/measure": _measure,
}


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, kept from others."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
