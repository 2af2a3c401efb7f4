"""The HTTP client: one keep-alive HTTP/1.1 connection per user, parsed by llhttp inside the event loop's callback.

It avoids what makes a general client slow: each connection has one read watcher for its whole life, one timer per
process checks for timeouts, and only the parser touches every byte. It follows no redirects, keeps no cookies,
requests no compression and never retries on its own: it reports what one plain client saw.
"""

import ssl
from collections.abc import Callable
from time import perf_counter
from typing import Any, Generic, TypeVar

import gevent
from gevent import get_hub, getcurrent, socket, ssl as gevent_ssl
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from loadtest.scenario import Request, Target, add_header

SWEEP_SECONDS = 0.1
"""Interval of the check for timeouts, and so how late a timeout may be noticed."""

_LONGEST_PAUSE = 1.0
_FIRST_PAUSE = 0.01
_CHUNK = 65536
_LONGEST_HEAD = 65536
LONGEST_BODY = 8 * 2**20
"""Maximum bytes of a response body; a longer one is a failure, because every user keeps its response in memory."""


class Response:
    """A response, or the reason why there is none (`status` 0 and `error`)."""

    __slots__ = ("content", "error", "head", "received", "seconds", "status")

    def __init__(
        self, status: int, content: bytes, head: bytes, seconds: float, error: str | None = None, *, received: int = 0
    ) -> None:
        """`received` counts the bytes of the response with heads, chunk sizes and interim responses, without TLS."""
        self.status = status
        self.content = content
        self.head = head
        self.seconds = seconds
        self.error = error
        self.received = received

    def header(self, name: str) -> str | None:
        """Return the first header of this name."""
        return _find_header(self.head, name)


def _find_header(head: bytes, name: str) -> str | None:
    wanted = name.lower().encode("latin-1")
    for line in head.split(b"\r\n\r\n", 1)[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == wanted:
            return value.strip().decode("latin-1")
    return None


def encode(request: Request, target: Target) -> bytes:
    """Return the request as sent over the wire (RFC 9112)."""
    headers = dict(request.headers)
    add_header(headers, "Host", target.authority)
    add_header(headers, "User-Agent", "goals-loadtest")
    if request.body or request.method in {"POST", "PATCH", "PUT"}:
        headers["Content-Length"] = str(len(request.body))
    lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + request.body


class Connector:
    """What the clients of a process share: the target's address, the TLS context, and the check for timeouts."""

    def __init__(self, target: Target, timeout: float, connected: Callable[[float], None]) -> None:
        self.target = target
        self.timeout = timeout
        self.connected = connected
        self.clients: set[Client[Any]] = set()
        self._context = gevent_ssl.create_default_context() if target.scheme == "https" else None
        self._addresses: list[Any] = []
        # A timer of the loop, whose callback runs in the hub: a user that it wakes switches back to the rest of the
        # sweep, which would not work from a separate greenlet.
        self._sweeper = get_hub().loop.timer(SWEEP_SECONDS, SWEEP_SECONDS, ref=False)
        self._sweeper.start(self._sweep)

    def connect(self) -> Any:
        """Return a connected gevent socket with verified TLS; raise an `OSError` on failure."""
        begun = perf_counter()
        if not self._addresses:
            self._addresses = socket.getaddrinfo(self.target.host, self.target.port, 0, socket.SOCK_STREAM)
        addresses = self._addresses
        for place, address in enumerate(addresses, 1):
            try:
                connection = self._connect_to(address)
            except OSError:
                if place == len(addresses):
                    self._addresses = []  # the name may resolve differently next time
                    raise
            else:
                self._addresses = [address]
                self.connected(perf_counter() - begun)
                return connection
        raise OSError(f"no address is known for {self.target.host}")

    def _connect_to(self, address_info: Any) -> Any:
        family, kind, protocol, _, address = address_info
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(self.timeout)
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is None:
                return connection
            return self._context.wrap_socket(connection, server_hostname=self.target.host)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        self._sweeper.stop()
        self._sweeper.close()

    def _sweep(self) -> None:
        now = perf_counter()
        for client in list(self.clients):
            # Check each client now: a user that was woken may have closed others, or sent its next request.
            if client.parked and now - client.begun > self.timeout:
                client.fail(f"no response within {self.timeout:g} s")


Answer = TypeVar("Answer", bound=Response)


class Client(Generic[Answer]):
    """One user's connection, with one request at a time; do not share it. `answer` is the class of its responses."""

    _done: bool
    _keep: bool
    _status: int
    _head: bytes
    _in_head: bool
    _chunks: list[bytes]
    _length: int
    _error: str | None
    _received: int

    def __init__(self, connector: Connector, answer: type[Answer]) -> None:
        self._answer = answer
        self.pause = 0.0
        """Seconds that the user must wait before the next request after a failed connection."""
        self.parked = False
        self.begun = 0.0
        self._connector = connector
        self._connection: Any = None
        self._tls: Any = None
        self._watcher: Any = None
        self._switch_to_hub = get_hub().switch
        self._loop = get_hub().loop
        self._has_body = True
        self._parser_is_used_up = False
        self._reset()
        connector.clients.add(self)

    def request(self, wire: bytes, *, has_body: bool = True) -> Answer:
        """Send the encoded request and wait for its response; errors are returned in it, not raised.

        `has_body` is false for a HEAD, whose response has no body, whatever its length says.
        """
        self._has_body = has_body
        self._wake = getcurrent().switch
        self._reset()
        self.begun = begun = perf_counter()
        try:
            if self._connection is None:
                self._open()
            sent = self._send(wire)
            if sent != len(wire):
                # The rest does not fit the socket's buffer: send it cooperatively. The response may arrive meanwhile.
                self._connection.sendall(wire[sent:])
            if not self._done and self._error is None:
                self.parked = True
                self._switch_to_hub()
        except (OSError, gevent.Timeout) as error:
            # A server may respond and close before it has read everything: the response still counts.
            if not self._done and self._connection is not None:
                self._on_readable()
            if not self._done:
                self._error = self._error or _describe(error)
            self._disconnect()
        except BaseException:
            self._disconnect()
            raise
        finally:
            self.parked = False
        seconds = perf_counter() - begun
        if not self._done:
            self._disconnect()
            return self._answer(0, b"", b"", seconds, self._error, received=self._received)
        if not self._keep:
            self._disconnect()
        return self._answer(self._status, b"".join(self._chunks), self._head, seconds, received=self._received)

    def close(self) -> None:
        self._connector.clients.discard(self)
        self._disconnect()

    def fail(self, error: str) -> None:
        """End the waiting request from outside."""
        self._error = error
        self._disconnect()
        self._finish()

    def _open(self) -> None:
        try:
            connection = self._connector.connect()
        except OSError:
            self.pause = min(max(self.pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            raise
        self.pause = 0.0
        self._connection = connection
        if isinstance(connection, gevent_ssl.SSLSocket):
            # The TLS object itself: its `read` and `write` never block, because the underlying socket does not.
            self._tls = connection._sslobj  # noqa: SLF001  gevent's own methods would wait
            self._send, self._receive = self._tls.write, self._tls.read
        else:
            self._tls = None
            raw = connection._sock  # noqa: SLF001  gevent's own methods would wait
            self._send, self._receive = raw.send, raw.recv
        self._make_parser()
        self._watcher = self._loop.io(connection.fileno(), 1)
        self._watcher.start(self._on_readable)

    def _make_parser(self) -> None:
        self._parser = HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self._parser_is_used_up = False

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._watcher.stop()
            self._watcher.close()
            self._connection.close()
            self._connection = None

    def _reset(self) -> None:
        if self._parser_is_used_up:
            self._make_parser()
        self._done = False
        self._error = None
        self._head = b""
        self._in_head = True
        self._chunks = []
        self._length = 0
        self._received = 0

    def _on_readable(self) -> None:
        while True:
            try:
                data = self._receive(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except ssl.SSLZeroReturnError:
                data = b""
            except OSError as error:
                self.fail(_describe(error))
                return
            if data:
                self._take(data)
            else:
                self._end()
            # The watcher only sees the socket: check for data that TLS has already decrypted.
            if self._connection is None or self._tls is None or not self._tls.pending():
                return

    def _take(self, data: bytes) -> None:
        if not self.begun:
            self.fail("unsolicited data")
            return
        self._received += len(data)
        if self._in_head:
            self._head += data
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.fail(f"not HTTP/1.1: {error}")
            return
        if self._length > LONGEST_BODY:
            self._done = False
            self.fail(f"a body of more than {LONGEST_BODY // 2**20} MiB")
        elif self._done:
            self._finish()
        elif self._in_head and len(self._head) > _LONGEST_HEAD:
            self.fail(f"a head of more than {_LONGEST_HEAD // 1024} KiB")

    def _end(self) -> None:
        """Handle a close by the server, which ends a body without an announced length (RFC 9112, 6.3)."""
        announced = ("content-length", "transfer-encoding")
        if self.begun and not self._in_head and not any(_find_header(self._head, name) for name in announced):
            self._status = self._parser.get_status_code()
            self._keep, self._done = False, True
            self._disconnect()
            self._finish()
        else:
            self.fail("closed by the server before the response was complete")

    def _finish(self) -> None:
        self.begun = 0.0
        if self.parked:
            self.parked = False
            self._wake()

    # Called by the parser.

    def on_headers_complete(self) -> None:
        if self._done:
            raise ValueError("a second response to one request")
        self._in_head = False
        if not self._has_body and (status := self._parser.get_status_code()) >= 200:  # noqa: PLR2004  see below
            # llhttp does not know about HEAD and waits for a body, so the next response needs a new parser.
            self._status, self._keep, self._done = status, self._parser.should_keep_alive(), True
            self._parser_is_used_up = True

    def on_body(self, chunk: bytes) -> None:
        self._length += len(chunk)
        if self._length <= LONGEST_BODY:  # a longer one fails as soon as the parser returns
            self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        if self._done:  # the response to a HEAD, without a length
            return
        status = self._parser.get_status_code()
        if status < 200:  # noqa: PLR2004  an interim response (RFC 9110, 15.2): the final one follows
            self._head = self._head.partition(b"\r\n\r\n")[2]
            self._in_head = True
            self._chunks.clear()
            return
        self._status = status
        # llhttp can only tell inside this callback whether the connection may be kept.
        self._keep = self._parser.should_keep_alive()
        self._done = True


def _describe(error: BaseException) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"certificate refused: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {error.reason or error}"
        case TimeoutError() | gevent.Timeout():
            return "timed out while connecting or sending"
        case OSError() if error.strerror:
            return error.strerror.lower()
    return str(error) or type(error).__name__
