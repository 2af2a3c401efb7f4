"""Requests that two parsers may frame differently, each with another one behind it that adds a goal."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator
from typing import NamedTuple

from tests.wire import PATIENCE, request

HOST = b"Host: <host>\r\n"
FIELDS = HOST + b"Content-Type: application/x-www-form-urlencoded\r\n"
POST = b"POST /health HTTP/1.1"
END = b"0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
NO_LENGTH = b"Content-Length: 0\r\n"


class Shape(NamedTuple):
    """One ambiguity; `write` puts the hidden request behind it."""

    name: str
    line: bytes
    fields: bytes
    before: bytes = b""
    inside: bool = False
    """The hidden request is the body by one reading, not what follows it."""
    end: bytes = b"\r\n"

    def write(self, hidden: bytes) -> bytes:
        body = b"%x\r\n%b\r\n%b" % (len(hidden), hidden, END) if self.inside else self.before + hidden
        fields = self.fields.replace(b"<hidden>", b"%d" % len(hidden)).replace(b"<body>", b"%d" % len(body))
        head = self.line + b"\r\n" + FIELDS + fields + b"\r\n"
        return head.replace(b"\r\n", self.end) + body


CODINGS = {
    "another word": b" xchunked",
    "identity after it": b" chunked, identity",
    "identity before it": b" identity, chunked",
    "gzip before it": b" gzip, chunked",
    "no space": b"chunked",
    "a tab before it": b"\tchunked",
    "a space after it": b" chunked ",
    "capitals": b" CHUNKED",
    "a parameter": b" chunked;q=1",
    "quotes": b' "chunked"',
    "a vertical tab": b" chunked\x0b",
    "a tab in it": b" chu\tnked",
    "a folded line": b" chunked\r\n x",
    "a line feed": b" chunked\n",
    "a comma before it": b" ,chunked",
    "a comma after it": b" chunked,",
    "nothing": b"",
    "identity": b" identity",
}
NAMES = {
    "a space after the name": b"Transfer-Encoding ",
    "a space before the name": b" Transfer-Encoding",
    "an underscore": b"Transfer_Encoding",
    "a NUL after the name": b"transfer-encoding\x00",
    "behind a line feed": b"X: x\nTransfer-Encoding",
    "behind a carriage return": b"X: x\rTransfer-Encoding",
    "behind a folded line": b"X\r\n : y\r\nTransfer-Encoding",
    "a tab after the name": b"Transfer-Encoding\t",
}
LENGTHS = {
    "a plus": b"+0",
    "a minus": b"-0",
    "two zeros": b"00",
    "two spaces": b" 0",
    "a space after it": b"0 ",
    "hexadecimal": b"0x0",
    "two in one": b"0,0",
    "two in one with a space": b"0, 0",
    "a vertical tab": b"0\x0b",
    "an underscore": b"1_0",
    "a semicolon": b"0;",
    "nothing": b"",
    "an Arabic digit": b"\xd9\xa0",
    "thousands of zeros": b"0" * 4400,
    "more than any number": b"9" * 23,
    "two of them": b"0\r\nContent-Length: <hidden>",
}
CHUNKS = {
    "an extension": b"0;x\r\n\r\n",
    "an extension with a line break in quotes": b'0;x="\r\n\r\n"\r\n\r\n',
    "line feeds": b"0\n\n",
    "a line feed at the end": b"0\r\n\n",
    "a line feed at the size": b"0\n\r\n",
    "many zeros": b"0" * 17 + b"\r\n\r\n",
    "0x": b"0x0\r\n\r\n",
    "a plus": b"+0\r\n\r\n",
    "a minus": b"-0\r\n\r\n",
    "a space before it": b" 0\r\n\r\n",
    "a space after it": b"0 \r\n\r\n",
    "a tab after it": b"0\t\r\n\r\n",
    "a trailer": b"0\r\nX: y\r\n\r\n",
    "a trailer that frames": b"0\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an extension that is a line feed": b"0;\n\r\n\r\n",
    "no line break after a chunk": b"1\r\naXX0\r\n\r\n",
    "a line feed after a chunk": b"1\r\na\n0\r\n\r\n",
    "a line feed in an extension": b"1;a\nb\r\nc\r\n0\r\n\r\n",
    "more than any number": b"100000000000000000\r\n\r\n",
    "no number": b"g\r\n\r\n",
}
LINES = {
    "HTTP/1.0": b"POST /health HTTP/1.0",
    "no version": b"POST /health",
    "two spaces": b"POST  /health HTTP/1.1",
    "tabs": b"POST\t/health\tHTTP/1.1",
    "a space after it": b"POST /health HTTP/1.1 ",
    "a carriage return after it": b"POST /health HTTP/1.1\r",
    "empty lines before it": b"\r\n\r\nPOST /health HTTP/1.1",
    "HTTP/01.1": b"POST /health HTTP/01.1",
    "HTTP/1.10": b"POST /health HTTP/1.10",
    "small letters": b"post /health HTTP/1.1",
    "the whole address": b"POST http://<host>/health HTTP/1.1",
    "a fragment": b"POST /health#x HTTP/1.1",
    "a byte from 0x80 on": b"POST /he\x80alth HTTP/1.1",
    "a NUL": b"POST /health?\x00 HTTP/1.1",
}
WEBSOCKET = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"


def shapes() -> Iterator[Shape]:
    length, get = b"Content-Length: <hidden>\r\n", b"GET /health HTTP/1.1"
    yield Shape("length and chunks", POST, b"Content-Length: <body>\r\n" + CHUNKED, END)
    yield Shape("chunks and a short length", POST, b"Content-Length: 4\r\n" + CHUNKED, inside=True)
    for name, value in CODINGS.items():
        yield Shape(f"coding: {name}", POST, b"Transfer-Encoding:" + value + b"\r\n", END)
        yield Shape(f"coding and no length: {name}", POST, NO_LENGTH + b"Transfer-Encoding:" + value + b"\r\n", END)
    for name, field in NAMES.items():
        yield Shape(f"field: {name}", POST, NO_LENGTH + field + b": chunked\r\n", END)
    for name, value in LENGTHS.items():
        yield Shape(f"length: {name}", POST, b"Content-Length: " + value + b"\r\n")
    for name, chunk in CHUNKS.items():
        yield Shape(f"chunk: {name}", POST, CHUNKED, chunk)
    for name, line in LINES.items():
        yield Shape(f"line, chunks: {name}", line, CHUNKED, END)
        yield Shape(f"line, no length: {name}", line, NO_LENGTH)
    yield Shape("GET with a length", get, length)
    yield Shape("GET with chunks", get, CHUNKED, inside=True)
    yield Shape("HEAD with a length", b"HEAD / HTTP/1.1", length)
    yield Shape("bare line feeds", POST, NO_LENGTH, end=b"\n")
    yield Shape("a folded length", POST, b"X: a\r\n Content-Length: <hidden>\r\n")
    yield Shape("100-continue", POST, length + b"Expect: 100-continue\r\n")
    yield Shape("another expectation", POST, length + b"Expect: x\r\n")
    yield Shape("Connection names the length", POST, length + b"Connection: content-length\r\n")
    yield Shape("Connection names the coding", POST, CHUNKED + b"Connection: transfer-encoding\r\n", inside=True)
    yield Shape("h2c with a body", POST, length + b"Upgrade: h2c\r\nConnection: upgrade\r\n")
    upgrade = b"Upgrade: websocket\r\nConnection: upgrade\r\n" + WEBSOCKET
    yield Shape("websocket with a body", b"GET / HTTP/1.1", length + upgrade)
    yield Shape("a trailer that is a Host", POST, CHUNKED + b"Trailer: host\r\n", b"0\r\nHost: evil.example\r\n\r\n")


SHAPES = {shape.name: shape for shape in shapes()}


class Outcome(NamedTuple):
    """What a client saw of a shape: the statuses of all answers, and whether the connection was closed in time."""

    statuses: list[int]
    closed: bool


async def send(
    port: int, shape: Shape, name: str, host: str = "localhost", tls: ssl.SSLContext | None = None
) -> Outcome:
    """Send a shape with one behind it that adds a goal, and one that ends the connection, and read everything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=host if tls else None)
    form = "Content-Type: application/x-www-form-urlencoded"
    hidden = request("POST", "/add_goal", form, body=f"goal_name={name}".encode(), host=host)
    last = request("GET", "/health", "Connection: close", host=host)
    received, closed = b"", False
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(PATIENCE + 2):
            writer.write(shape.write(hidden).replace(b"<host>", host.encode()) + last)
            while chunk := await reader.read(65536):
                received += chunk
            closed = True
    writer.close()
    return Outcome([int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", received)], closed)


async def send_all(port: int, host: str = "localhost", tls: ssl.SSLContext | None = None) -> dict[str, Outcome]:
    """Each shape on a connection of its own, many at a time: some take as long as a body may."""
    turns = asyncio.Semaphore(32)

    async def take_turn(name: str) -> Outcome:
        async with turns:
            return await send(port, SHAPES[name], name, host, tls)

    return dict(zip(SHAPES, await asyncio.gather(*map(take_turn, SHAPES)), strict=True))
