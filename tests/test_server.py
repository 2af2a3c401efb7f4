"""Our server on the wire: what HTTP/1.1 asks of it, its limits, and what it has overridden of Hypercorn."""

import asyncio
import contextlib
import gc
import hashlib
import inspect
import logging
import re
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
import pytest
from hypercorn.asyncio import lifespan, run, task_group, tcp_server, worker_context
from hypercorn.protocol import h11, http_stream
from hypercorn.utils import LifespanFailureError
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

from goals import capacity, server
from goals.errors import ConfigurationError
from goals.limits import Limits
from goals.server import Listener
from goals.settings import Settings
from tests.conftest import WIDE, Service, serving, until_ready
from tests.wire import PATIENCE, Connection, ask, request
from tools.polling import until

SHORT = Limits(
    keep_alive=0.3, body_deadline=0.1, request_deadline=0.2, write_deadline=0.2, transport_grace=0.1, linger=0.2
)
LARGE = b"x" * 300_000


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body that was sent, or does what the path says."""
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    name = scope["path"].removeprefix("/")
    if name == "crash":
        raise RuntimeError("a secret")
    body, more = b"", name != "early"
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if name == "slow":
        await asyncio.sleep(60)
    body = LARGE if name in {"large", "gives-up"} else body
    length = len(body) - (name == "longer")
    sized = [] if name in {"chunks", "204", "304"} else [(b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": int(name) if name.isdigit() else 200, "headers": sized})
    if name == "half":
        raise RuntimeError("a secret")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1 if name == "gives-up" else None):
            await send({"type": "http.response.body", "body": body, "more_body": name == "chunks"})
    if name == "chunks":
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})


@contextlib.asynccontextmanager
async def room(app: ASGIApp = echo, limits: Limits = WIDE, most: int = 100) -> AsyncIterator[Listener]:
    """Serve `app` on a port of its own; at the end it is stopped, and has to be."""
    listener = Listener("public", server.listen("127.0.0.1", 0), app, most)
    running = server.Server([listener], limits, lambda: None, 0)
    serving = asyncio.create_task(running.serve())
    await until_open(listener)
    try:
        yield listener
    finally:
        running.stop()
        await asyncio.wait_for(serving, PATIENCE)


async def until_open(listener: Listener) -> None:
    async with Connection(listener.port) as connection:
        await connection.send(request("GET", "/"))
        await connection.read_reply()
    await until_empty(listener)


async def until_empty(listener: Listener) -> None:
    async def is_empty() -> bool:
        return not listener.open

    await until(is_empty)


async def exchange(port: int, data: bytes, *, ends: bool = False) -> bytes:
    """Send `data` and return everything that comes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if ends:
        writer.write_eof()
    async with asyncio.timeout(PATIENCE):
        received = await reader.read()
    writer.close()
    return re.sub(rb"date: [^\r]+\r\n", b"", received)


OK = b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"
CLOSE = "Connection: close"
WIRE = {
    "one request": (request("GET", "/", CLOSE), b"HTTP/1.1 200 \r\ncontent-length: 0\r\nConnection: close\r\n\r\n"),
    "a body": (
        request("POST", "/", CLOSE, body=b"abc"),
        b"HTTP/1.1 200 \r\ncontent-length: 3\r\nConnection: close\r\n\r\nabc",
    ),
    "HEAD": (request("HEAD", "/large", CLOSE), b"HTTP/1.1 200 \r\ncontent-length: 300000\r\nConnection: close\r\n\r\n"),
    "204": (request("GET", "/204", CLOSE), b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n"),
    "304": (request("GET", "/304", CLOSE), b"HTTP/1.1 304 \r\nConnection: close\r\n\r\n"),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 \r\ncontent-length: 0\r\nConnection: close\r\n\r\n"),
    "HTTP/1.0 and no length": (
        b"POST /chunks HTTP/1.0\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 \r\nConnection: close\r\n\r\naend",
    ),
    "chunks": (
        request("POST", "/chunks", CLOSE, body=b"abc"),
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n3\r\nend\r\n0\r\n\r\n",
    ),
    "pipelined": (
        request("GET", "/") * 3 + request("POST", "/", body=b"a") + request("GET", "/", CLOSE),
        OK * 3 + b"HTTP/1.1 200 \r\ncontent-length: 1\r\n\r\na" + OK[:-2] + b"Connection: close\r\n\r\n",
    ),
    "something after the last request": (
        request("POST", "/", CLOSE, body=b"a") + b"\r\n" + request("GET", "/"),
        b"HTTP/1.1 200 \r\ncontent-length: 1\r\nConnection: close\r\n\r\na",
    ),
    "a crash": (request("GET", "/crash"), b"HTTP/1.1 500 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
    "a crash after the head": (request("GET", "/half"), b""),
    "a body longer than was announced": (request("POST", "/longer", body=b"abc"), b""),
}


@pytest.mark.parametrize(("sent", "received"), WIRE.values(), ids=WIRE)
async def test_each_answer_is_byte_by_byte_what_http_asks_for(sent: bytes, received: bytes) -> None:
    async with room() as listener:
        assert await exchange(listener.port, sent) == received


async def test_a_client_that_has_ended_its_half_gets_all_its_answers() -> None:
    async with room() as listener:
        assert await exchange(listener.port, request("GET", "/") * 3, ends=True) == OK * 3
        for half in (request("POST", "/", body=b"abc")[:-1], request("GET", "/")[:-2]):
            assert (await exchange(listener.port, half, ends=True)).startswith(b"HTTP/1.1 400 \r\n")
        assert await exchange(listener.port, b"", ends=True) == b""


async def test_who_waits_to_be_asked_for_a_body_is_asked() -> None:
    head, body = request("POST", "/", CLOSE, "Expect: 100-continue", body=b"abc")[:-3], b"abc"
    async with room() as listener, Connection(listener.port) as connection:
        await connection.send(head)
        assert re.fullmatch(rb"HTTP/1.1 100 \r\ndate: [^\r]+\r\n\r\n", await connection.read_some())
        await connection.send(body)
        assert (await connection.read_reply()).body == b"abc"


async def test_a_large_answer_arrives_whole_however_slowly_it_is_read() -> None:
    async with room(limits=replace(SHORT, request_deadline=PATIENCE)) as listener:
        assert (await exchange(listener.port, request("GET", "/large", CLOSE))).endswith(LARGE)


async def test_an_early_answer_is_read_by_a_client_that_still_sends() -> None:
    """It closes its half and drops what comes, so that no reset takes the answer away (RFC 9112, 9.6)."""
    sent = request("POST", "/early", CLOSE, body=b"a" * 1_000_000)
    async with room(limits=replace(SHORT, linger=PATIENCE)) as listener, Connection(listener.port) as connection:
        await connection.send(sent)  # all of it: nothing is left over for a reset
        assert (await connection.read_reply()).status == 200
        await connection.read_end()


async def test_what_follows_the_last_request_while_it_is_carried_out_is_read_and_ignored() -> None:
    asked, done = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/waits":
            asked.set()
            await done.wait()
        await echo(scope, receive, send)

    async with room(app) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(request("GET", "/waits", CLOSE))
        await asked.wait()
        writer.write(b"x" * 10_000_000)  # more than all buffers hold
        await writer.drain()
        done.set()
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_client_that_goes_on_sending_is_hung_up_on() -> None:
    async with room(limits=SHORT) as listener, Connection(listener.port) as connection:
        await connection.send(request("POST", "/early", CLOSE, body=b"a" * 1_000_000)[:-1])
        assert (await connection.read_reply()).status == 200
        await until_empty(listener)


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux counts the segments of a connection")
async def test_a_small_answer_is_one_write() -> None:
    async with room() as listener, Connection(listener.port) as connection:
        for number in (1, 2, 3):
            await connection.send(request("POST", "/", body=b"abc"))
            assert (await connection.read_reply()).body == b"abc"
            info = connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
            assert struct.unpack_from("I", info, 152) == (number,)  # tcpi_data_segs_in


async def test_the_date_is_that_of_the_second(service: Service) -> None:
    for _ in range(2):
        before = int(time.time())
        reply = await ask(service.port, request("GET", "/health"))
        assert before <= parsedate_to_datetime(reply.headers["date"]).timestamp() <= time.time()
        await asyncio.sleep(1)  # the next second: nothing else makes another date


@contextlib.asynccontextmanager
async def not_reading(port: int, *requests: bytes) -> AsyncIterator[socket.socket]:
    """A client that takes nothing from its connection."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(0)
    with contextlib.closing(client):
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(client, b"".join(requests).removesuffix(END))
            if requests[-1:] == (END,):
                client.shutdown(socket.SHUT_WR)
        yield client


END = b"end"
"""Instead of a request: the client ends its half."""
STUCK = {
    "does not read": ([request("GET", "/large")] * 60, 1),
    "does not read its last answer": ([request("GET", "/large", CLOSE)], 1),
    "does not read, and has ended its half": ([request("GET", "/large")] * 60 + [END], 1),
    "does not read its last answer, and has ended its half": ([request("GET", "/large"), END], 1),
    "does not read what its application gives up": ([request("GET", "/gives-up")] * 20, 1),
    "does not read what the kernel has": ([request("POST", "/", body=b"a" * 50_000)], 1),
    "sends nothing": ([], 0),
    "sends half a head": ([request("GET", "/")[:-2]], 0),
    "sends half a body": ([request("POST", "/", body=b"abc")[:-1]], 0),
    "asks for what takes forever": ([request("GET", "/slow")], 0),
    "sends more than anybody takes": ([request("POST", "/slow"), *[b"a" * 100_000] * 20], 0),
    "sends a body that nobody takes": ([request("POST", "/early", body=b"a" * 1_000_000)], 0),
}


@pytest.mark.parametrize(("sent", "unread"), STUCK.values(), ids=STUCK)
async def test_no_connection_outlives_its_limits(
    sent: list[bytes], unread: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with room(limits=SHORT) as listener, not_reading(listener.port, *sent) as client:
        await until_empty(listener)
        assert listener.dropped == {"full": 0, "unread": unread, "version": 0, "accept": 0}
        # A reset: the kernel does not wait for the client in our stead either.
        assert not unread or client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux ends it, and tells of it in /proc")
async def test_the_kernel_keeps_no_answer_of_a_client_that_has_ended_its_half() -> None:
    sent = request("POST", "/", body=b"a" * 50_000), END
    async with room(limits=SHORT) as listener, not_reading(listener.port, *sent) as client:
        ends = f":{listener.port:04X}", f":{client.getsockname()[1]:04X}"
        await until_empty(listener)

        def is_known() -> bool:
            lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
            return any((line[1][8:], line[2][8:]) == ends for line in lines)

        async def is_forgotten() -> bool:
            return not is_known()

        await until(is_forgotten)


async def test_what_an_application_gives_up_is_not_kept_for_a_client_that_has_ended_its_half() -> None:
    async with room() as listener, not_reading(listener.port, request("GET", "/gives-up"), END):
        await until_empty(listener)
        assert listener.dropped["unread"] == 1


async def test_a_slow_client_may_read_its_last_answer_until_its_request_ends() -> None:
    """Much longer than the linger of one that has read it all."""
    limits = replace(SHORT, request_deadline=PATIENCE, linger=0.1)
    async with room(limits=limits) as listener, not_reading(listener.port, request("GET", "/large", CLOSE)) as client:
        received = b""
        while len(received) < len(LARGE):
            await asyncio.sleep(0.02)  # a slow reader
            received += await asyncio.get_running_loop().sock_recv(client, 4096)
            assert received
        assert received.endswith(b"x")


async def test_clients_that_do_not_read_are_one_line_and_leave_nothing_behind(restored_logs: None) -> None:
    async with room(limits=SHORT) as listener:
        with capture_logs() as events:
            async with contextlib.AsyncExitStack() as clients:
                for _ in range(20):
                    await clients.enter_async_context(not_reading(listener.port, *[request("GET", "/large")] * 60))
                await until_empty(listener)
        assert events == [
            {
                "event": "client did not read the response in time",
                "log_level": "warning",
                "port": "public",
                "so_far": 1,
            }
        ]
        assert listener.dropped["unread"] == 20
        gc.collect()
        kinds = (server.Connection, server.Protocol, http_stream.HTTPStream)
        assert [thing for thing in gc.get_objects() if isinstance(thing, kinds)] == []


async def test_requests_are_read_ahead_within_a_bound() -> None:
    """What a client pipelines behind a request that takes its time stays with it."""
    async with (
        room(limits=replace(SHORT, request_deadline=PATIENCE)) as listener,
        Connection(listener.port) as connection,
    ):
        connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent = 0
        await connection.send(request("GET", "/slow"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await asyncio.get_running_loop().sock_sendall(connection._socket, request("GET", "/"))
                    sent += len(request("GET", "/"))
        assert sent < 150_000  # both kernels' buffers and ours; asyncio alone would take 256 kB at once
        listener.server.stop()  # the room's own is then the second, which waits for no request


async def test_a_connection_over_the_limit_is_closed_before_a_byte_is_read(restored_logs: None) -> None:
    async with room(limits=replace(SHORT, keep_alive=PATIENCE), most=2) as listener:
        async with contextlib.AsyncExitStack() as clients:
            held = [await clients.enter_async_context(Connection(listener.port)) for _ in range(2)]
            with capture_logs() as events:
                for _ in range(20):
                    async with Connection(listener.port) as refused:
                        await refused.read_end()
            for client in held:
                await client.send(request("GET", "/"))
                assert (await client.read_reply()).status == 200
        assert listener.dropped["full"] == 20
        assert len(events) == 1
        await until_empty(listener)
        assert await exchange(listener.port, request("GET", "/", CLOSE))


async def test_a_full_public_port_leaves_the_operators_theirs(settings: Settings, schema: None) -> None:
    async with serving(settings.model_copy(update={"goals_max_connections": 3})) as service:
        await until_ready(service)
        async with contextlib.AsyncExitStack() as clients:
            for _ in range(6):
                await clients.enter_async_context(Connection(service.port))
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{service.ops_port}", trust_env=False) as operator:
                assert (await operator.get("/livez")).text == "live"
                metrics = (await operator.get("/metrics")).text
        for line in (
            'goals_connections{port="public"} 3.0',
            'goals_connections{port="operators"} 1.0',
            'goals_connections_limit{port="public"} 3.0',
            'goals_connections_dropped_total{port="public",reason="full"} 3.0',
        ):
            assert line in metrics


async def test_an_error_of_accept_is_counted_and_gone_when_it_is_over(restored_logs: None) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with room() as listener:
        with contextlib.ExitStack() as clients, capture_logs() as events:
            for _ in range(10):
                clients.enter_context(socket.create_connection(("127.0.0.1", listener.port)))
            with socket.socket() as highest:
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), limits[1]))
            try:

                async def is_counted() -> bool:
                    return listener.dropped["accept"] >= 2

                await until(is_counted)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert [event["event"] for event in events] == ["cannot accept connections"]
        await until_empty(listener)
        assert await exchange(listener.port, request("GET", "/", CLOSE))


async def test_a_port_that_was_closed_accepts_nothing_again() -> None:
    async with room() as listener:
        pass
    listener._resume()  # as the timer does that an error of accept has set
    assert listener._socket.fileno() == -1


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


async def test_clients_that_reset_their_connection_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def be_left(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["method"] == "GET":
            return await echo(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        reset(client)
        return None

    async with room(be_left, replace(SHORT, keep_alive=PATIENCE)) as listener:
        # Before it was accepted: this does not let the event loop do it.
        reset(socket.create_connection(("127.0.0.1", listener.port)))
        client = socket.create_connection(("127.0.0.1", listener.port))

        async def is_read() -> bool:
            return len(listener.server.connections) == 1

        await until(is_read)
        reset(client)
        await until_empty(listener)
        # While it is answered.
        client = socket.create_connection(("127.0.0.1", listener.port))
        client.sendall(request("POST", "/"))
        await until_empty(listener)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_an_application_that_cannot_start_ends_the_server() -> None:
    async def fail(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no luck"})

    listener = Listener("public", server.listen("127.0.0.1", 0), fail, 1)
    with contextlib.closing(listener._socket), pytest.raises(LifespanFailureError, match="no luck"):
        await server.Server([listener], SHORT, lambda: None, 0).serve()


async def test_nobody_waits_for_a_connection_that_has_ended() -> None:
    can_read = server.CanRead()
    can_read.leave()
    await can_read.clear()
    with pytest.raises(server.Refused):
        await can_read.wait()


def test_what_the_kernel_does_not_tell_of_counts_as_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert server._count_unsent(listening) == 0
    assert server._count_unsent(listening) == 0  # which is closed


@pytest.mark.parametrize("hurries", [False, True])
async def test_a_stop_does_not_wait_for_clients_that_do_not_read(
    hurries: bool,  # noqa: FBT001  a parameter of the test
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = replace(SHORT, keep_alive=60, request_deadline=60 if hurries else 0.2)
    listener = Listener("public", server.listen("127.0.0.1", 0), echo, 100)
    running = server.Server([listener], limits, lambda: None, 0)
    serving = asyncio.create_task(running.serve())
    await until_open(listener)
    async with contextlib.AsyncExitStack() as clients:
        for _ in range(20):
            await clients.enter_async_context(not_reading(listener.port, *[request("GET", "/large")] * 60))
            await clients.enter_async_context(not_reading(listener.port, request("GET", "/slow")))
        for _ in range(1 + hurries):
            running.stop()
        await asyncio.wait_for(serving, PATIENCE)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_connections_are_bounded_by_descriptors_and_memory() -> None:
    limits = Limits()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    derived = capacity.most_connections(None, limits)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert 1 <= derived <= hard - limits.operators_connections - limits.spare_descriptors
    assert capacity.most_connections(None, replace(limits, connection_memory=limits.connection_memory * 1000)) < derived
    assert capacity.most_connections(7, limits) == 7
    with pytest.raises(ConfigurationError, match=f"limit of {hard} file descriptors leaves room for"):
        capacity.most_connections(hard, limits)


TOUCHED = {
    "worker_serve, which Server.serve stands in for": (run.worker_serve, "ae30269c42b95442"),
    "TCPServer, whose run, protocol_send and _read_data are overridden": (tcp_server.TCPServer, "3bfa72b319509f2b"),
    "H11Protocol, whose subclass Protocol overrides four methods and replaces two attributes": (
        h11.H11Protocol,
        "b32a61e0a8ca2127",
    ),
    "HTTPStream": (http_stream.HTTPStream, "e0f656feb55ab89c"),
    "EventWrapper, whose wait is overridden by CanRead": (worker_context.EventWrapper, "04c3221b13f0a31f"),
    "WorkerContext": (worker_context.WorkerContext, "6eeeae02ae174a68"),
    "TaskGroup": (task_group.TaskGroup, "1260b105c058872d"),
    "the task of an application": (task_group._handle, "e37cfe3db06eb470"),
    "Lifespan": (lifespan.Lifespan, "164b3fdbe941195d"),
}


@pytest.mark.parametrize(("touched", "digest"), TOUCHED.values(), ids=TOUCHED)
def test_hypercorn_is_the_release_that_the_server_room_was_written_for(touched: type, digest: str) -> None:
    found = hashlib.sha256(inspect.getsource(touched).encode()).hexdigest()[:16]
    assert found == digest, (
        f"{touched.__module__}.{touched.__qualname__} is not what services/goals/server.py was written for: this is"
        f" another release than the one pinned in pyproject.toml. Read what has changed, bring server.py and"
        f" docs/adr/0030-a-server-of-our-own.md in line, then put {found} here."
    )
