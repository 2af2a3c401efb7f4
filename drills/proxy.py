"""A TCP proxy that routes connections like a Kubernetes Service, and injects faults into them."""

import asyncio
import contextlib
import itertools
import re
import socket
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

_DONE = re.compile(rb"C\0\0\0.(?:INSERT 0|SELECT) [1-9]\d*\0")
"""PostgreSQL's CommandComplete message after a committed statement that returns rows; the service's writes are CTEs,
which are answered like a SELECT."""


_OPENING = 2
"""Statements of a new connection before its use: set the search path, and check that it leads to the primary."""
_BACKLOG = 1024


class _Side(asyncio.Protocol):
    """One of the two connections of a link."""

    def __init__(self, received: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._received = received
        self._lost = lost
        self.transport: asyncio.Transport | None = None
        self.peer: _Side | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  tells mypy what asyncio gives
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  asyncio's own signature
        self.closed = True
        self._lost()
        if self.peer is not None:
            self.peer.close()

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.closed:
            self.peer.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.closed:
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()  # after all written data is sent

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Link:
    """A client's connection and the connection to the server behind it."""

    def __init__(self, proxy: "TcpProxy", port: int | None) -> None:
        self._proxy = proxy
        self._port = port
        self._early = bytearray()
        self._connected = False
        self._done = 0
        self.silent = False
        self.client = _Side(self._from_client, self._forget)
        self.server = _Side(self._from_server, self._forget)

    async def connect(self) -> None:
        try:
            if self._port is None:
                raise ConnectionRefusedError
            await asyncio.get_running_loop().create_connection(lambda: self.server, "127.0.0.1", self._port)
        except OSError:
            self.abort()
            return
        self.client.peer, self.server.peer = self.server, self.client
        self._connected = True
        if self.client.closed:
            self.server.close()
        elif not self.silent:
            self.server.write(bytes(self._early))

    def _from_client(self, data: bytes) -> None:
        if not self._connected:
            self._early += data
        elif not self.silent:
            self.server.write(data)

    def _from_server(self, data: bytes) -> None:
        done = _DONE.search(data) is not None
        self._done += done
        if self._proxy.replies_to_drop and done and self._done > _OPENING:
            self._proxy.replies_to_drop -= 1
            self.abort()
        elif not self.silent:
            self.client.write(data)

    def abort(self) -> None:
        self.client.abort()
        self.server.abort()

    def _forget(self) -> None:
        self._proxy.links.discard(self)


class TcpProxy:
    """A port on a loopback address that routes each new connection to one of `ports` in turn; existing ones stay.

    Without ports, a connection is reset immediately. An asynchronous context manager. Several proxies may have the same
    `port` on different addresses, like the pods behind one name; 0 lets the kernel choose.
    """

    def __init__(self, ports: Iterable[int] = (), *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.address = address
        self.port = port
        self.replies_to_drop = 0
        """How many replies to finished statements, including reads, to lose, each with its connection."""
        self.route_to(ports)
        self.links: set[_Link] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._fillers: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        self._socket = socket.create_server((self.address, self.port), backlog=_BACKLOG)
        self._socket.settimeout(0)
        self.port = int(self._socket.getsockname()[1])
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._accepting.cancel()
        self._socket.close()
        self.sever()
        for filler in self._fillers:
            filler.close()

    def route_to(self, ports: Iterable[int]) -> None:
        self.ports = list(ports)
        self._turns = itertools.cycle(self.ports)

    def sever(self) -> None:
        """Reset every connection."""
        for link in list(self.links):
            link.abort()

    def silence(self) -> None:
        """Leave every connection open, but forward nothing more: half-open, as after the loss of a host."""
        for link in self.links:
            link.silent = True

    async def swallow(self) -> None:
        """Act like a lost host: connections carry no more data, and new ones get no answer to their SYN."""
        self.silence()
        self._accepting.cancel()
        await asyncio.wait({self._accepting})
        # Linux: a listener with a full queue drops connections (Documentation/networking/ip-sysctl.rst).
        self._socket.listen(0)
        for _ in range(2):
            filler = socket.socket()
            filler.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                filler.connect((self.address, self.port))
            self._fillers.append(filler)

    async def reappear(self) -> None:
        """Accept connections again; silent ones stay silent."""
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self._socket.listen(_BACKLOG)
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._socket)
            task = loop.create_task(self._serve(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(self, next(self._turns, None))
        self.links.add(link)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link.client, connection)
        await link.connect()
