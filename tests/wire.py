"""Speaks HTTP byte by byte, for what no well-behaved client would send, and says what every answer must be like."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import NamedTuple, Self

from goals.middleware import SECURITY_HEADERS
from tests.conftest import WIDE

BODILESS = b""
LEAKS = (b"Traceback", b'File "', b"Error(", b"sqlalchemy", b"asyncpg", b"pydantic", b"starlette", b"hypercorn", b".py")
PATIENCE = 0.9 * WIDE.keep_alive
"""Seconds to wait for the end of a connection: less than an idle one is kept, so that an idle one is recognized."""


class Reply(NamedTuple):
    """One answer; `closed`: the server ended the connection after it."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool


class Connection:
    """A TCP connection to a port of this machine, as bytes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(0)
        self._port = port
        self._received = b""

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def send(self, data: bytes) -> None:
        # A client that is refused half-way may find the connection closed: the answer is there to be read all the same.
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def drip(self, data: bytes, *, seconds: float = 0.1) -> None:
        """Send `data` again and again, until cancelled."""
        while True:
            await self.send(data)
            await asyncio.sleep(seconds)

    def end_sending(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    async def read_reply(self, *, head: bool = False) -> Reply:
        """The next final answer; interim ones are passed over."""
        while True:
            while b"\r\n\r\n" not in self._received:
                await self._receive()
            start, _, self._received = self._received.partition(b"\r\n\r\n")
            line, *fields = start.decode("latin-1").split("\r\n")
            status = int(line.split(" ")[1])
            if status >= 200:
                break
        names = [field.partition(": ")[0].lower() for field in fields]
        headers = dict(zip(names, (field.partition(": ")[2] for field in fields), strict=True))
        assert len(headers) == len(names), f"a header field comes twice: {sorted(names)}"
        length = 0 if head else int(headers["content-length"])
        while len(self._received) < length:
            await self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return Reply(status, headers, body, closed=False)

    async def read_some(self) -> bytes:
        await self._receive()
        received, self._received = self._received, BODILESS
        return received

    async def read_end(self) -> None:
        """Return once the server has closed the connection, having sent nothing more."""
        # Unread bytes of ours turn the end into a reset.
        with contextlib.suppress(ConnectionError):
            assert await asyncio.get_running_loop().sock_recv(self._socket, 65536) == BODILESS
        assert self._received == BODILESS

    async def _receive(self) -> None:
        # Less than a page of ours, so that an answer takes several reads whatever the kernel does.
        chunk = await asyncio.get_running_loop().sock_recv(self._socket, 1024)
        assert chunk, f"the connection ended after {self._received!r}"
        self._received += chunk


async def ask(port: int, *pieces: bytes, closes: bool = False, head: bool = False) -> Reply:
    """Send the pieces and return the answer; with `closes`, once the server has closed the connection too.

    A connection that stays open must still serve: a second request on it is asked and answered.
    """
    async with asyncio.timeout(PATIENCE), Connection(port) as connection:
        for piece in pieces:
            await connection.send(piece)
        reply = await connection.read_reply(head=head)
        if closes:
            await connection.read_end()
        else:
            await connection.send(request("GET", "/health"))
            assert (await connection.read_reply()).body == b"OK"
        return reply._replace(closed=closes)


def request(method: str, target: str, *lines: str, body: bytes | None = None, host: str = "localhost") -> bytes:
    """A request with a Host, and a Content-Length where there is a body."""
    fields = [f"Host: {host}", *lines]
    if body is not None:
        fields.append(f"Content-Length: {len(body)}")
    return "\r\n".join([f"{method} {target} HTTP/1.1", *fields, "", ""]).encode("latin-1") + (body or BODILESS)


def form(path: str, body: bytes | str, *lines: str) -> bytes:
    """What a browser sends for a form."""
    content = body if isinstance(body, bytes) else body.encode()
    return request("POST", path, "Content-Type: application/x-www-form-urlencoded", *lines, body=content)


def chunked(*chunks: bytes, path: str = "/add_goal") -> Iterator[bytes]:
    """A form in pieces whose number nobody announces."""
    yield request("POST", path, "Content-Type: application/x-www-form-urlencoded", "Transfer-Encoding: chunked")
    for chunk in itertools.chain(chunks, [BODILESS]):
        yield b"%x\r\n%b\r\n" % (len(chunk), chunk)


def check(reply: Reply) -> None:
    """What holds for every answer, whatever was asked."""
    assert reply.status < 500 or reply.status == 501, reply
    assert "server" not in reply.headers
    if "x-request-id" in reply.headers:
        check_headers(reply.headers.items())
    else:
        # Hypercorn refuses what is no HTTP before the application sees it.
        assert (reply.body, reply.headers["connection"]) == (BODILESS, "close")
    assert not [leak for leak in LEAKS if leak in reply.body]
    assert reply.headers.get("location", "/") == "/"


def check_headers(headers: Iterable[tuple[str, str]]) -> None:
    wanted = {(name.decode(), value.decode()) for name, value in SECURITY_HEADERS}
    assert wanted <= set(headers)


@contextlib.asynccontextmanager
async def dripping(connection: Connection, data: bytes) -> AsyncIterator[None]:
    """Drip `data` meanwhile."""
    task = asyncio.create_task(connection.drip(data))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
