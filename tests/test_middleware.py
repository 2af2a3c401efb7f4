"""What every request passes: headers, records, limits."""

import asyncio
import re
from collections.abc import Iterator

import httpx2
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from goals.middleware import STRICT_TRANSPORT_SECURITY, Guard, Headers, Record
from goals.settings import Settings
from goals.telemetry import Telemetry
from tests.clock import simulated
from tests.conftest import LIMITS, serving, speaking_to
from tests.wire import check_headers


async def test_every_answer_of_both_ports_carries_the_security_headers_and_names_no_server(
    client: httpx2.AsyncClient, operator: httpx2.AsyncClient
) -> None:
    answers = [
        await client.request(method, target)
        for method in ("GET", "HEAD", "POST", "DELETE")
        for target in ("/", "/add_goal", "/health", "/nowhere", "/static/goals.css", "/api/v1/goals", "/openapi.json")
    ]
    answers += [await operator.get(target) for target in ("/livez", "/readyz", "/version", "/metrics", "/nowhere")]
    for answer in answers:
        check_headers(answer.headers.items())
        assert {"server", "strict-transport-security", "set-cookie", "x-powered-by"}.isdisjoint(answer.headers)


async def test_strict_transport_security_is_sent_where_it_is_asked_for(settings: Settings) -> None:
    name, value = (part.decode() for part in STRICT_TRANSPORT_SECURITY)
    async with (
        serving(settings.model_copy(update={"goals_hsts": True})) as service,
        speaking_to(service.port) as client,
    ):
        assert (await client.get("/nowhere")).headers[name] == value


@pytest.mark.parametrize("given", ["a", "0", "4bf92f3577b34da6a3ce929d0e0e4736", "A-b_c.D", "x" * 64])
async def test_a_plain_request_id_runs_through(client: httpx2.AsyncClient, given: str) -> None:
    for target in ("/health", "/nowhere", "/api/v1/goals/x"):
        assert (await client.get(target, headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "-a", "a b", "a\tb", "é", 'a"b', "{}", "a,b", "x" * 65, "a=b;c"])
async def test_another_request_id_is_replaced_by_ours(client: httpx2.AsyncClient, given: str) -> None:
    answers = [await client.get("/health", headers={b"x-request-id": given.encode()}) for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert given not in ids
    assert len(set(ids)) == 2
    assert all(re.fullmatch("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", name) for name in ids)


def scope(path: str = "/", **values: object) -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        **values,
    }


_receive_nothing = asyncio.Queue[Message]().get


class Exchange:
    """What an ASGI application sends, without a server: for what no route of ours does.

    The client takes `patience` messages and no more.
    """

    def __init__(self, patience: int = 10) -> None:
        self._patience = patience
        self.sent: list[Message] = []

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive = _receive_nothing) -> None:
        # In a task of its own, as under Hypercorn.
        await asyncio.ensure_future(app(scope, receive, self._send))

    async def _send(self, message: Message) -> None:
        if len(self.sent) == self._patience:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def status(self) -> object:
        return self.sent[0]["status"]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.sent[0]["headers"])


async def greet(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def hang(_scope: Scope, _receive: Receive, _send: Send) -> None:
    await asyncio.Event().wait()


async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise TimeoutError("a secret")


async def fail_half_way(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("a secret")


async def test_while_the_service_drains_each_answer_asks_to_reconnect() -> None:
    exchange = Exchange()
    await exchange.run(Headers(greet, hsts=False, draining=lambda: True), scope())
    assert (b"connection", b"close") in exchange.headers


@simulated
async def test_a_request_that_takes_too_long_is_503_and_gives_its_connection_up() -> None:
    exchange = Exchange()
    await exchange.run(Guard(hang, limits=LIMITS), scope())
    assert exchange.status == 503
    assert {(b"retry-after", b"1"), (b"connection", b"close")} <= set(exchange.headers)


@simulated
async def test_the_time_that_a_body_took_is_not_the_requests() -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.9 * LIMITS.body_deadline)
        return {"type": "http.request", "body": b"a", "more_body": False}

    async def take_long(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.9 * LIMITS.request_deadline)
        await greet(scope, receive, send)

    exchange = Exchange()
    await exchange.run(Guard(take_long, limits=LIMITS), scope(headers=[(b"content-length", b"1")]), receive)
    assert exchange.status == 200


@simulated
async def test_a_client_that_does_not_read_its_answer_is_left_without_a_fuss() -> None:
    exchange = Exchange(patience=1)
    with capture_logs() as events:
        await exchange.run(Guard(greet, limits=LIMITS), scope())
    assert [message["type"] for message in exchange.sent] == ["http.response.start"]
    assert events == []  # the server counts it


async def test_headers_are_added_to_an_answer_and_not_to_what_it_was_made_from() -> None:
    response = PlainTextResponse("shared")
    given = list(response.raw_headers)
    exchange = Exchange()
    await exchange.run(Headers(response, hsts=True, draining=lambda: True), scope())
    assert len(exchange.headers) > len(given)
    assert response.raw_headers == given


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry("0")
    yield telemetry
    telemetry.close()


async def test_a_crash_is_logged_answered_and_not_explained(telemetry: Telemetry) -> None:
    lines: list[dict[str, object]] = []
    for path in ("/", "/api/v1/goals"):
        exchange = Exchange()
        with capture_logs() as events:
            record = Record(Guard(fail, limits=LIMITS), metrics=telemetry.requests, write=lines.append)
            await exchange.run(record, scope(path))
        assert exchange.status == 500
        assert b"x-request-id" in dict(exchange.headers)
        assert b"secret" not in exchange.sent[1]["body"]
        assert [(event["event"], event["exc_info"]) for event in events] == [("request crashed", True)]
    assert [line["status"] for line in lines] == [500, 500]
    assert 'error_type="TimeoutError"' in telemetry.expose("")[0].decode()


async def test_a_crash_with_half_an_answer_out_is_left_to_the_server_which_hangs_up(telemetry: Telemetry) -> None:
    lines: list[dict[str, object]] = []
    exchange = Exchange()
    record = Record(fail_half_way, metrics=telemetry.requests, write=lines.append)
    with capture_logs() as events, pytest.raises(RuntimeError):
        await exchange.run(record, scope())
    assert [message["type"] for message in exchange.sent] == ["http.response.start"]
    assert [event["event"] for event in events] == ["request crashed"]
    assert [line["status"] for line in lines] == [200]
