"""One suite of requests for both gateways: a client sees no difference but those that k8s/README.md lists."""

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.k8s.gateways import ALL, HOST, NAMES, OPERATOR, WRITTEN, Gateway, serve
from tools.polling import wait_until


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gateway]]:
    with contextlib.ExitStack() as stack:
        names = NAMES if WRITTEN is None else (*NAMES, "operator")
        yield {name: stack.enter_context(serve(name, tmp_path_factory.mktemp(name))) for name in names}


class Answer(NamedTuple):
    """What a client sees, and what the upstreams saw of it."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent: list[tuple[str, str, dict[str, str]]]


def connect(gateway: Gateway, port: int, name: str) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    if port == gateway.http:
        return plain
    context = ssl.create_default_context(cafile=gateway.authority)
    return context.wrap_socket(plain, server_hostname=name)


def ask(
    gateway: Gateway,
    method: str = "GET",
    target: str = "/",
    *,
    plain: bool = False,
    host: str = HOST,
    body: bytes | None = None,
    **headers: str,
) -> Answer:
    """Send one request on a connection of its own."""
    before = [len(one.seen) for one in gateway.upstreams]
    with connect(gateway, gateway.http if plain else gateway.https, HOST) as wire:
        named = {"Host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        wire.sendall(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))
        answer = read_answer(wire, method)
    seen = [one for upstream, count in zip(gateway.upstreams, before, strict=True) for one in upstream.seen[count:]]
    return answer._replace(sent=seen)


def send(gateway: Gateway, raw: bytes) -> Answer:
    """Send these bytes over TLS."""
    with connect(gateway, gateway.https, HOST) as wire:
        wire.sendall(raw)
        return read_answer(wire, "GET")


def read_answer(wire: socket.socket, method: str) -> Answer:
    """Read one answer and not a byte more, so that the next one can be read as well."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        received = wire.recv(1)
        assert received, "the gateway closed the connection without an answer"
        head += received
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    body = b""
    if method != "HEAD" and status not in {204, 304}:
        while len(body) < int(headers["content-length"]):
            body += wire.recv(int(headers["content-length"]) - len(body))
    return Answer(status, headers, body, [])


REQUESTS: dict[str, dict[str, Any]] = {
    "page": {},
    "page, with a query": {"target": "/?after=10"},
    "head": {"method": "HEAD"},
    "file": {"target": "/static/goals.css"},
    "health": {"target": "/health"},
    "ops port is not here": {"target": "/metrics"},
    "list": {"target": "/api/v1/goals"},
    "one goal": {"target": "/api/v1/goals/7"},
    "one goal's folder": {"target": "/goals"},
    "path that begins alike": {"target": "/api/v1/goalsmith"},
    "escaped path": {"target": "/api/v1/goals/%37"},
    "double slash": {"target": "//api/v1/goals"},
    "dots in the path": {"target": "/static/../api/v1/goals"},
    "options": {"method": "OPTIONS"},
    "form": {"method": "POST", "target": "/add_goal", "body": b"goal_name=read"},
    "goal that is edited": {"method": "POST", "target": "/goals/7", "body": b"goal_name=read&row_version=1"},
    "form without a body": {"method": "POST", "target": "/remove_goal", "body": b""},
    "api add": {"method": "POST", "target": "/api/v1/goals", "body": b'{"name":"read"}'},
    "api patch": {"method": "PATCH", "target": "/api/v1/goals/7", "body": b"{}"},
    "api delete": {"method": "DELETE", "target": "/api/v1/goals/7"},
    "body at the limit": {"method": "POST", "target": "/add_goal", "body": b"x" * 16_384},
    "body over the limit": {"method": "POST", "target": "/add_goal", "body": b"x" * 16_385},
    "body over the limit, of a read": {"target": "/", "body": b"x" * 16_385},
    "client's own request id": {"X_Request_ID": "mine"},
    "client's own forwarded for": {"X_Forwarded_For": "6.6.6.6"},
    "client's own forwarded proto": {"X_Forwarded_Proto": "http"},
    "key": {"method": "POST", "target": "/api/v1/goals", "body": b"{}", "Idempotency_Key": "one"},
    "upgrade to http2": {
        "Upgrade": "h2c",
        "Connection": "Upgrade, HTTP2-Settings",
        "HTTP2_Settings": "AAMAAABkAAQAAP__",
    },
    "upgrade to websocket": {"Upgrade": "websocket", "Connection": "Upgrade"},
    "expectation": {"method": "POST", "target": "/add_goal", "body": b"goal_name=read", "Expect": "something"},
    "method that nobody knows": {"method": "FOO"},
    "host in capitals": {"host": HOST.upper()},
    "part of an answer": {"Range": "bytes=0-3", "Accept_Encoding": "gzip"},
    "host with its port": {"host": f"{HOST}:443"},
    "plain http": {"plain": True},
    "plain http, a post": {"plain": True, "method": "POST", "target": "/add_goal", "body": b"goal_name=read"},
    "plain http, a path": {"plain": True, "target": "/api/v1/goals?after=1"},
    "service's own 503": {"X_Do": "status=503"},
    "service's own 500": {"X_Do": "status=500"},
    "service's own 429": {"X_Do": "status=429"},
    "service's own 304": {"X_Do": "status=304"},
    "a head of 12 kB in the answer": {"X_Do": "large-head"},
    "head of 7 kB": {"X_Long": "x" * 7_000},
    "header line of 9 kB": {"X_Long": "x" * 9_000},
    "slow answer": {"X_Do": "wait=6"},
}
DYING: dict[str, dict[str, Any]] = {
    "a read": {"target": "/"},
    "a post": {"method": "POST", "target": "/add_goal", "body": b"a=b"},
    "a patch": {"method": "PATCH", "target": "/api/v1/goals/7", "body": b"{}"},
    "a removal": {"method": "DELETE", "target": "/api/v1/goals/7"},
}
IGNORED = {"date", "connection", "server"}
"""Headers that say nothing of the configuration: `server` is the service's or nginx's name, the same for both."""


def observe(gateway: Gateway, **request: Any) -> dict[str, Any]:
    """The answer, and what reached the service, as far as a client could tell gateways apart by it."""
    answer = ask(gateway, **request)
    echoed = not answer.body or answer.body.startswith(b"{")  # the upstream's, which lists what it was sent
    passed_on = ("host", "x-forwarded-for", "x-forwarded-proto", "idempotency-key")
    return {
        "status": answer.status,
        "headers": {
            key: value
            for key, value in answer.headers.items()
            if key not in IGNORED | ({"content-length"} if echoed else set())
        },
        "body": None if echoed else answer.body,
        "received": [
            (method, target, {key: sent.get(key) for key in passed_on}) for method, target, sent in answer.sent
        ],
    }


# part compose
@pytest.mark.parametrize("name", ["cluster", OPERATOR])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=list(REQUESTS))
def test_both_answer_alike(gateways: dict[str, Gateway], name: str, request_: dict[str, Any]) -> None:
    assert observe(gateways["compose"], **request_) == observe(gateways[name], **request_)


# end compose
@pytest.mark.parametrize("name", ["cluster", OPERATOR])
@pytest.mark.parametrize("request_", DYING.values(), ids=list(DYING))
def test_both_repeat_the_same_requests_when_the_application_dies(
    tmp_path: Path, name: str, request_: dict[str, Any]
) -> None:
    # Gateways of its own: the cluster's takes a replica out for 10 s when it has failed once.
    seen = []
    for each in (*NAMES[:-1], name):
        (tmp_path / each).mkdir()
        with serve(each, tmp_path / each) as gateway:
            seen.append(observe(gateway, X_Do="die", **request_))
    # Compose's gateway asks again once more by the new list of replicas, which no client can see (docs/adr/0021).
    tries = [len(one.pop("received")) for one in seen]
    assert [count > 1 for count in tries] == [request_.get("method") in {None, "DELETE"}] * len(seen)
    assert seen == [seen[0]] * len(seen)
    assert seen[0]["status"] == 502
    assert seen[0]["headers"]["retry-after"] == "1"


@pytest.mark.parametrize("name", ALL)
def test_the_service_hears_of_the_client_from_the_gateway_alone(gateways: dict[str, Gateway], name: str) -> None:
    gateway = gateways[name]
    answer = ask(gateway, X_Request_ID="mine", X_Forwarded_For="6.6.6.6", X_Forwarded_Proto="http")
    ((_, _, sent),) = answer.sent
    assert sent["x-forwarded-for"] == "127.0.0.1"
    assert sent["x-forwarded-proto"] == "https"
    assert re.fullmatch("[0-9a-f]{32}", sent["x-request-id"])
    # nginx writes the line once the answer is sent.
    wait_until(lambda: f'"{sent["x-request-id"]}"' in gateway.log.read_text(), "the request's line in the log", 10)


@pytest.mark.parametrize("name", ALL)
def test_writers_are_limited_and_asked_to_come_again(tmp_path: Path, name: str) -> None:
    targets = ("/add_goal", "/remove_goal", "/goals/7", "/api/v1/goals", "/api/v1/goals/7")
    with serve(name, tmp_path) as gateway, connect(gateway, gateway.https, HOST) as wire:
        # Without a pause, so that the machine's speed decides little: 41 pass, and 20 more for each second it takes.
        for _ in range(30):
            for target in targets:
                wire.sendall(f"POST {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n".encode())
        wire.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * 60)
        answers = [read_answer(wire, "POST") for _ in range(30 * len(targets))]
        reads = [read_answer(wire, "GET") for _ in range(60)]
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.status for answer in answers} == {200, 429}
    assert len(answers) - len(refused) >= 41
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert {answer.status for answer in reads} == {200}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("part", ["a head", "a body"])
def test_a_client_that_sends_too_slowly_is_disconnected(gateways: dict[str, Gateway], name: str, part: str) -> None:
    begun = time.monotonic()
    with connect(gateways[name], gateways[name].https, HOST) as wire:
        wire.sendall(b"POST /add_goal HTTP/1.1\r\n")
        if part == "a body":
            wire.sendall(f"Host: {HOST}\r\nContent-Length: 100\r\n\r\ngoal_name=".encode())
        answered = wire.recv(1000)
    assert not answered or answered.startswith(b"HTTP/1.1 408")
    # 5 s for a head, 2 s for a body; nginx's own defaults are 60 s each.
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("name", ["cluster", OPERATOR])
def test_one_late_answer_of_each_replica_shuts_nobody_out(tmp_path: Path, name: str) -> None:
    with serve(name, tmp_path) as gateway:
        late = [ask(gateway, X_Do="wait=6") for _ in range(2)]
        assert [answer.status for answer in late] == [200, 200]
        assert [ask(gateway).status for _ in range(4)] == [200] * 4


# part compose
@pytest.mark.parametrize("name", ["cluster", OPERATOR])
def test_what_differs_is_what_the_table_says(gateways: dict[str, Gateway], tmp_path: Path, name: str) -> None:
    """The rows of k8s/README.md, "Compose's gateway and the cluster's"."""
    compose, cluster = gateways["compose"], gateways[name]
    assert ask(compose, host="other.test").status == 200  # the service refuses the host (GOALS_HOSTS)
    assert ask(cluster, host="other.test").status == 404
    assert send(compose, b"GET / HTTP/1.0\r\n\r\n").status == 200
    assert send(cluster, b"GET / HTTP/1.0\r\n\r\n").status == 404
    elsewhere = f"GET https://other.test/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    assert send(compose, elsewhere).status == 200
    assert send(cluster, elsewhere).status == 404
    assert ask(compose, plain=True, host="other.test").status == 301
    assert ask(cluster, plain=True, host="other.test").status == 404
    keyed: dict[str, Any] = REQUESTS["key"] | {"X_Do": "die"}
    tries, after = {}, {}
    for each in ("compose", name):
        (tmp_path / each).mkdir()
        with serve(each, tmp_path / each) as gateway:
            tries[each] = len(ask(gateway, **keyed).sent)
            ask(gateway, X_Do="die")
            after[each] = ask(gateway).status
    assert tries["compose"] > tries[name] == 1
    assert after == {"compose": 200, name: 502}


# end compose
