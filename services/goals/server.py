"""The HTTP server: listeners, Hypercorn restricted to HTTP/1.1, connections with deadlines, drain and stop.

Hypercorn's release is pinned exactly, because parts of it are overridden (docs/adr/0030-a-server-of-our-own.md):
`TCPServer`, to abort connections at a deadline and to limit how much is read ahead and buffered for sending;
`H11Protocol`, to disable HTTP/2, WebSocket and CONNECT, and to send the head together with the body's first piece;
`worker_serve`, which hard-codes its classes and logs an error of `accept` once for each place in the backlog.
"""

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Coroutine, Sequence
from wsgiref.handlers import format_date_time

import h11
import structlog
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import events
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import ConnectionState, H11SendableEvent, LifespanState
from hypercorn.utils import parse_socket_addr
from starlette.types import ASGIApp

from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.middleware import SAFE_METHODS

log = structlog.get_logger(__name__)

Address = tuple[str, int] | None


class Refused(Exception):  # noqa: N818  not an error: it ends Hypercorn's loop over the events of a connection
    """Ends the connection; its argument, if any, is the status of a last response."""


class CanRead(EventWrapper):
    """A `can_read` whose wait ends with the connection.

    Hypercorn's own keeps a pipelined connection forever if the application gives up: the loop over its events wakes
    up, finds the next request still waiting, and waits again for a client that has left.
    """

    _left = False

    async def wait(self) -> None:
        if not self._left:
            await super().wait()
        if self._left:
            raise Refused

    def leave(self) -> None:
        self._left = True
        self._event.set()


class Parser(h11.Connection):
    """h11's connection, but data after a client's last request is ignored (RFC 9112, 9.6) and not an error."""

    def receive_data(self, data: bytes) -> None:
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        return h11.NEED_DATA if self.their_state is h11.MUST_CLOSE else super().next_event()


class Protocol(H11Protocol):
    """HTTP/1.1 only: an upgrade is ignored (RFC 9110, 7.8), CONNECT and other versions are refused."""

    def __init__(self, connection: "Connection", task_group: TaskGroup, client: Address, server: Address) -> None:
        about = connection.config, connection.context, task_group, ConnectionState(connection.state)
        super().__init__(connection.app, *about, False, client, server, connection.protocol_send)  # noqa: FBT003  no TLS
        self.connection: Parser = Parser(h11.SERVER, self.config.h11_max_incomplete_size)
        self.can_read = connection.can_read
        self._transport = connection
        self._head = b""

    async def handle(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._transport.can_read.leave()
        try:
            await super().handle(event)
        except Refused as refusal:
            for status in refusal.args:
                await self._send_error_response(status)
                await self.send(Closed())

    async def _check_protocol(self, request: h11.Request) -> None:
        """Replace Hypercorn's method, which accepts `Upgrade: h2c` and HTTP/2's preface."""
        if request.http_version not in {b"1.0", b"1.1"}:
            self._transport.listener.note("version", "refused an unsupported HTTP version")
            raise Refused(400)
        if request.method == b"CONNECT":
            raise Refused(501)

    async def _create_stream(self, request: h11.Request) -> None:
        """Replace Hypercorn's method, which accepts WebSocket."""
        about = self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server
        self.stream = HTTPStream(*about, self.stream_send, STREAM_ID)
        version, method = request.http_version.decode(), request.method.decode().upper()
        if method not in SAFE_METHODS:
            self._transport.wait_for_write()
        start = list(request.headers), version, method, request.target, self.connection_state
        await self.stream.handle(events.Request(STREAM_ID, *start))

    async def stream_send(self, event: events.Event) -> None:
        """Hold back a final response's head until its body starts, as ASGI requires; both then go out in one write."""
        match event:
            case events.Response(headers=headers, status_code=status):
                headers = headers + self.config.response_headers("h11")
                self._head = b"".join(self._encode(h11.Response(status_code=status, headers=headers)))
            case events.Body(data=data):
                pieces = self._encode(h11.Data(data=data))
                await self._flush(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            case events.EndBody():
                await self._flush(b"".join(self._encode(h11.EndOfMessage())))
            case _:  # events.StreamClosed
                self._head = b""  # the application crashed before its body: nothing has been sent
                await self._maybe_recycle()

    async def _flush(self, body: bytes) -> None:
        head, self._head = self._head, b""
        if head or body:
            await self._transport.write(head, body)

    def _encode(self, event: H11SendableEvent) -> list[bytes]:
        """Return an event's bytes like `_send_h11_event`, without a copy of the body; none if the client broke HTTP."""
        try:
            return self.connection.send_with_data_passthrough(event) or []
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return []


class Connection(TCPServer):
    """Hypercorn's connection with one timer that aborts the transport; it is set again only when it fires."""

    def __init__(self, listener: "Listener", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = listener.server
        super().__init__(listener.app, server.loop, server.config, server.context, server.state, reader, writer)
        self.listener = listener
        self.can_read = CanRead()
        self.idle, self._leaving = True, False
        self._limits = server.limits
        self._transport = writer.transport
        self._transport.set_write_buffer_limits(high=0)  # `drain` returns once the kernel has everything
        self._transport.max_size = 2 * server.limits.read_ahead  # type: ignore[attr-defined]  # undocumented; 256 kB
        self._task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]  # this runs in one
        self._expires = self._latest = self.loop.time() + server.limits.keep_alive
        self._timer = self.loop.call_at(self._expires, self._expire)

    async def run(self) -> None:
        """Serve the connection until it ends, within its limits."""
        self.listener.server.connections.add(self)
        sock = self.writer.get_extra_info("socket")
        try:
            # Outside the group, which would wrap the error if the client has already reset the connection.
            client, server = (parse_socket_addr(sock.family, of()) for of in (sock.getpeername, sock.getsockname))
            async with TaskGroup(self.loop) as task_group:
                self.protocol = Protocol(self, task_group, client, server)  # type: ignore[assignment]  # its wrapper chooses HTTP/2
                await self._read_data()
            del self.protocol  # breaks the reference cycle, so that the garbage collector has no work
        except OSError:
            pass
        finally:
            self.listener.server.connections.discard(self)
            self.can_read.leave()
            if self._transport.get_write_buffer_size():
                self._cut_off()  # the client closed its half and does not read the rest
            self._timer.cancel()
            self._transport.close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            self.idle = event.idle
            self._expire_in(self._limits.keep_alive if self.idle else self.listener.server.request_time)
            self._latest = self._expires
        elif isinstance(event, Closed):
            self._leave()
        elif isinstance(event, RawData) and event.data:
            await self.write(event.data)

    def wait_for_write(self) -> None:
        """Extend the deadline of the current request to that of a write."""
        limits = self._limits
        self._expire_in(limits.body_deadline + limits.write_deadline + limits.transport_grace)
        self._latest = self._expires

    async def write(self, head: bytes, body: bytes = b"") -> None:
        """Send the head with the body's first piece, then each piece once the kernel has taken the previous one."""
        piece = self._limits.answer_piece
        data: bytes | memoryview = head + (body if len(body) <= piece else body[:piece])
        sent = piece
        with contextlib.suppress(OSError):
            while not (self._leaving or self._transport.is_closing()):
                self._transport.write(data)
                data = b""  # asyncio keeps the rest
                if self._transport.get_write_buffer_size():
                    await self.writer.drain()
                if sent >= len(body):
                    return
                data = memoryview(body)[sent : sent + piece]
                sent += piece
        await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        data = None
        while data != b"" and not self._transport.is_closing():
            try:
                data = await self.reader.read(self._limits.read_ahead)
            except OSError:
                break
            if not (self._leaving or self._transport.is_closing()):
                await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())

    def stop(self) -> None:
        """Close the connection if it is idle; an active request closes it when it ends."""
        if self.idle:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now, and discard unsent data."""
        self._transport.abort()
        self._task.cancel()

    def _leave(self) -> None:
        """End the connection once the client has read the last response and closed, or after `linger`."""
        self.can_read.leave()
        if self._leaving or self._transport.is_closing():
            return
        self._leaving = True
        if self._transport.get_write_buffer_size():
            self._cut_off()  # the application has given up waiting for the client
            return
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # the client has reset it
        self._expire_in(self._limits.linger)

    def _expire_in(self, seconds: float) -> None:
        self._expires = self.loop.time() + seconds
        if self._expires < self._timer.when():
            self._timer.cancel()
            self._timer = self.loop.call_at(self._expires, self._expire)

    def _expire(self) -> None:
        if self._leaving and _count_unsent(self.writer.get_extra_info("socket")):
            self._expires = self._latest  # the last response gets as much time as any other
        if self._expires > self.loop.time():
            self._timer = self.loop.call_at(self._expires, self._expire)
        else:
            self._cut_off()

    def _cut_off(self) -> None:
        sock = self.writer.get_extra_info("socket")
        if not self._transport.is_closing() and (self._transport.get_write_buffer_size() or _count_unsent(sock)):
            self.listener.note("unread", "client did not read the response in time")
            # So that the kernel drops it too, instead of waiting for the client itself.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        self._timer.cancel()
        # Do not wait for an application that continues without its client either.
        self._timer = self.loop.call_later(self._limits.linger, self.abort)


def _count_unsent(sock: socket.socket) -> int:
    """Return the bytes that the kernel still has to send; 0 if that is unknown or the socket is closed."""
    with contextlib.suppress(OSError, ValueError):
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


class Listener:
    """A port: its application, its limit of connections, and counts of dropped connections by reason."""

    def __init__(self, name: str, sock: socket.socket, app: ASGIApp, most: int) -> None:
        self.name, self.most = name, most
        self.app = ASGIWrapper(app)  # type: ignore[arg-type]  # Starlette's ASGI types are looser
        self.open = 0
        self.dropped = dict.fromkeys(("full", "unread", "version", "accept"), 0)
        self._socket = sock
        self._quiet_until: dict[str, float] = {}

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def start(self, server: "Server") -> None:
        self.server = server
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, server.limits.kernel_buffer)  # connections inherit it
        with contextlib.suppress(AttributeError):  # for data that is unread when a connection closes; Linux only
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * server.request_time))
        self._socket.settimeout(0)
        self._socket.listen(server.limits.backlog)
        self._resume()

    def close(self) -> None:
        self.server.loop.remove_reader(self._socket)
        self._socket.close()

    def note(self, kind: str, event: str, **about: object) -> None:
        """Count a dropped connection by `kind`, and log it at most every `log_interval` for each kind."""
        self.dropped[kind] += 1
        now = self.server.loop.time()
        if now >= self._quiet_until.get(kind, 0):
            self._quiet_until[kind] = now + self.server.limits.log_interval
            log.warning(event, port=self.name, so_far=self.dropped[kind], **about)

    def _resume(self) -> None:
        if self._socket.fileno() >= 0:
            self.server.loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        limits = self.server.limits
        for _ in range(limits.accepts_per_turn if self.open < self.most else limits.refusals_per_turn):
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self.note("accept", "cannot accept connections", error=error.strerror)
                self.server.loop.remove_reader(self._socket)
                self.server.loop.call_later(0.1, self._resume)
                return
            if self.open >= self.most:
                sock.close()
                self.note("full", "connections over the limit are closed", limit=self.most)
            else:
                self.open += 1
                self.server.start(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        loop = self.server.loop
        try:
            reader = asyncio.StreamReader(self.server.limits.read_ahead, loop)
            protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
            connection = Connection(self, reader, asyncio.StreamWriter(transport, protocol, reader, loop))
            await connection.run()
        finally:
            self.open -= 1


class Server:
    """Hypercorn's `worker_serve` for our listeners, with drain and stop; the first application gets the lifespan.

    `drain` is called `drain_seconds` before the listeners are closed.
    """

    def __init__(
        self, listeners: Sequence[Listener], limits: Limits, drain: Callable[[], None], drain_seconds: float
    ) -> None:
        self.config, self.limits = configure(_Config(), limits), limits
        self.request_time = limits.body_deadline + limits.request_deadline + limits.transport_grace
        self.connections: set[Connection] = set()
        self.context = WorkerContext(None)
        self.state: LifespanState = {}
        self.loop = asyncio.get_running_loop()
        self._listeners, self._drain, self._drain_seconds = listeners, drain, drain_seconds
        self._draining, self._stopping, self._patience = False, asyncio.Event(), self.config.graceful_timeout
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, serving: Coroutine[None, None, None]) -> None:
        task = self.loop.create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Drain, then stop; a second call stops immediately and aborts active requests."""
        if self._draining:
            self._patience = 0
            self._stopping.set()
            self._abort()
        else:
            self._draining = True
            self._drain()
            self.loop.call_later(self._drain_seconds, self._stopping.set)
            log.info("draining", seconds=self._drain_seconds)

    async def serve(self) -> None:
        """Serve until stopped; then close idle connections, wait for active requests, and end the application."""
        lifespan = Lifespan(self._listeners[0].app, self.config, self.loop, self.state)
        application = self.loop.create_task(lifespan.handle_lifespan())
        await lifespan.wait_for_startup()
        if application.done():
            application.result()
        for listener in self._listeners:
            listener.start(self)
        try:
            await self._stopping.wait()
        finally:
            await self.context.terminated.set()
            for listener in self._listeners:
                listener.close()
            for connection in self.connections.copy():
                connection.stop()
            for seconds in (self._patience, self.limits.stop_margin):
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=seconds)
                self._abort()
            await lifespan.wait_for_shutdown()
            await application
        log.info("stopped")

    def _abort(self) -> None:
        for connection in self.connections.copy():
            connection.abort()


class _Config(Config):
    """Hypercorn's configuration with a `Date` header that is formatted once a second."""

    _second, _date = 0, b""

    def response_headers(self, _protocol: str) -> list[tuple[bytes, bytes]]:
        if (second := int(time.time())) != self._second:
            self._second, self._date = second, format_date_time(second).encode("ascii")
        return [(b"date", self._date)]


def configure(config: Config, limits: Limits) -> Config:
    """Apply the settings that do not depend on the application."""
    config.backlog = limits.backlog
    config.include_server_header = False
    config.keep_alive_timeout = limits.keep_alive
    config.keep_alive_max_requests = limits.keep_alive_requests
    config.h11_max_incomplete_size = limits.head_size
    config.graceful_timeout = limits.body_deadline + limits.request_deadline
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; a `ConfigurationError` says why that failed, and what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or "").partition(" (while")[0]  # the rest repeats the address
        remedy = "stop the program that uses it, or set GOALS_BIND, GOALS_PORT or GOALS_OPS_PORT"
        raise ConfigurationError(f"cannot listen on {host} port {port} ({reason}): {remedy}") from None
