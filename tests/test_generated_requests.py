"""Thousands of requests that nobody thought of: each is answered, in time, and none breaks the service."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import secrets
from collections.abc import Callable
from dataclasses import replace

import pytest

from goals import logs
from goals.app import OPS_ROUTES, PUBLIC_ROUTES
from goals.settings import Settings
from tests.conftest import LIMITS, WIDE, serving, until_ready
from tests.wire import BODILESS, LEAKS, form

REQUESTS = 5000
CONNECTIONS = 16
PATIENCE = 60.0
"""Seconds for an answer: more than the limits that the service is given here."""

ANSWERED = re.compile(rb"(?:HTTP/1\.1 100 \r\n(?:.+\r\n)*\r\n)?HTTP/1\.1 ([2-4][0-9][0-9]|501|503|505) ")
NAMES = [*"abz09", *"/?#%&=+:;.,@[]{}\"'\\ <>\t\r\n\0\x7f", "%2F", "%00", "%zz", "..", "é", "\u202e", "\N{ROCKET}"]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "A" * 300]
VERSIONS = [b"HTTP/1.1"] * 40 + [b"HTTP/1.0"] * 6 + [b"HTTP/2.0", b"HTTP/9.9", b"HTTP/0.9", b"HTTP/1", b"http/1.1", b""]
HOSTS = ["localhost"] * 20 + [
    "localhost:80",
    "127.0.0.1",
    "[::1]:8080",
    "evil.example",
    "",
    "a b",
    "[::",
    "localhost:x",
]
FIELDS = {
    "Accept": ["*/*", "text/html", "application/openmetrics-text; version=x", ";q=", "," * 500],
    "Accept-Encoding": ["gzip", "identity;q=0", "*;q=nan"],
    "Connection": ["close", "keep-alive", "Upgrade, close", "Host", ",,"],
    "Content-Encoding": ["gzip", "identity", ""],
    "Content-Type": [
        *["application/json"] * 4, *["application/x-www-form-urlencoded"] * 4, "text/plain", "multipart/form-data", ";",
    ],
    "Cookie": ["a=b; c", "=" * 900],
    "Expect": ["100-continue", "bananas"],
    "Idempotency-Key": ["01890a5d-ac96-774b-bcce-b302099a8057", '"01890a5d-ac96-774b-bcce-b302099a8057"', '"', "x"],
    "If-Match": ["*", '"x"', "W/", ", " * 90],
    "If-None-Match": ["*", '"x"', 'W/"x"', ""],
    "Origin": ["http://localhost", "https://evil.example", "null", "", "://", "http://[", "http://localhost:99999"],
    "Range": ["bytes=0-0", "bytes=-", "x"],
    "Sec-Fetch-Site": ["same-origin", "cross-site", "none", "\t"],
    "TE": ["trailers", "x"],
    "Traceparent": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0-0-0", "x"],
    "Upgrade": ["websocket", "foo/2", "TLS/1.3"],
    "X-Request-ID": ["a", "\x80", "x" * 900],
    "X": ["a" * 17_000, "b" * 8000, "\xff\xfe", ""],
    "Bad Name": ["x"],
    "": ["x"],
}  # fmt: skip


def draw_target(draw: random.Random) -> str:
    """Any of the four forms of a target (RFC 9112, 3.2), or something like one."""
    path = draw.choice([route.path for route in (*PUBLIC_ROUTES, *OPS_ROUTES)])
    path = re.sub(r"{\w+}", lambda _: draw.choice(["1", "0", "99999999999999999999", "x", "goals.css", "%2e%2e"]), path)
    if draw.random() < 0.3:
        path += "".join(draw.choices(NAMES, k=draw.randrange(12)))
    if draw.random() < 0.3:
        pairs = [(name, value) for name in ("before", "after", "limit", "x", "") for value in ("1", "x", "", "%", "-1")]
        path += "?" + "&".join("=".join(pair) for pair in draw.choices(pairs, k=draw.choice([1, 1, 2, 3, 400])))
    if draw.random() < 0.75:
        return path
    authority = draw.choice(HOSTS)
    return draw.choice([f"http://{authority}{path}", f"HTTPS://{authority}", f"ftp://x{path}", authority, "*", ""])


def draw_text(draw: random.Random) -> str:
    return "".join(draw.choices(NAMES, k=draw.choice([1, 5, 40, 300])))


def draw_json(draw: random.Random, depth: int = 0) -> object:
    kind = draw.randrange(8 if depth < 3 else 5)
    if kind < 5:
        return [None, True, draw.randrange(-(2**70), 2**70), draw.random() * 1e308, draw_text(draw)][kind]
    if kind == 5:
        return [draw_json(draw, depth + 1) for _ in range(draw.randrange(4))]
    names = ["goal_name", "x", draw_text(draw)]
    return {draw.choice(names): draw_json(draw, depth + 1) for _ in range(draw.randrange(4))}


BODIES: list[Callable[[random.Random], bytes]] = [
    lambda _: BODILESS,
    lambda draw: json.dumps(draw_json(draw)).encode(),
    lambda draw: json.dumps({"goal_name": draw_text(draw)}).encode(),
    lambda draw: json.dumps(dict.fromkeys(map(str, range(draw.randrange(1500))), 1)).encode(),
    lambda draw: f"goal_name={draw_text(draw)}".encode(),
    lambda draw: b"goal_id=%d" % draw.randrange(-1, 9),
    lambda draw: b"&".join(b"f%d=" % number for number in range(draw.randrange(3000))),
    lambda draw: draw.randbytes(draw.randrange(300)),
    lambda draw: b"[" * draw.randrange(17_000),
]


def draw_request(draw: random.Random) -> bytes:
    if draw.random() < 0.1:  # one that is right but for a field or two
        lines = [f"{name}: {draw.choice(FIELDS[name])}" for name in draw.sample(["Accept", "Cookie", "TE", "Range"], 2)]
        typed = draw.choice([f"goal_name={draw.randrange(9)}", "goal_name=%zz", "goal_name=", "x=1"])
        return form("/add_goal", typed, "Connection: close", *lines)
    fields = [(name, draw.choice(FIELDS[name])) for name in draw.sample([*FIELDS], draw.choice([0, 1, 2, 3, 5]))]
    fields += [("Host", host) for host in draw.choices(HOSTS, k=draw.choice([0, *[1] * 30, 2]))]
    fields += [("X", "y")] * draw.choice([0] * 40 + [120])
    body = draw.choice(BODIES)(draw)
    framing = draw.random()
    if framing < 0.7:
        fields.append(("Content-Length", str(len(body))))
    elif framing < 0.85:
        fields.append(("Transfer-Encoding", draw.choice([*["chunked"] * 8, "gzip, chunked", "x"])))
        sizes = [draw.randrange(1, 900) for _ in range(20)] if body else []
        pieces = [body[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
        body += draw.choice([*[b"0\r\n\r\n"] * 8, b"0\r\nX: y\r\n\r\n", b"zz\r\n\r\n", b"-1\r\n\r\n"])
    elif framing < 0.9:
        fields.append(("Content-Length", draw.choice([str(max(len(body) - 1, 0)), "-1", "x", "1, 2", "9" * 30])))
    else:
        body = BODILESS
    if draw.random() < 0.004:  # never complete; few, since each takes the deadline of a body
        fields, body = [("Host", "localhost"), ("Content-Length", "9")], b"1234"
    draw.shuffle(fields)
    head = [f"{name}: {value}" for name, value in (*fields, ("Connection", "close"))]
    line = b"%b %b %b" % (draw.choice(METHODS).encode(), draw_target(draw).encode(), draw.choice(VERSIONS))
    return line + b"\r\n" + "\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + body


async def exchange(port: int, sent: bytes) -> bytes:
    """Everything that the service answers until it closes the connection."""
    answer = b""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with contextlib.suppress(ConnectionResetError):  # it did not read all that was sent; its answer came before
                writer.write(sent)
                while chunk := await reader.read(65536):
                    answer += chunk
        finally:
            writer.transport.abort()
    return answer


@pytest.mark.timeout(900)  # a quarter of a minute on a quiet machine
@pytest.mark.usefixtures("restored_logs", "schema")
async def test_each_of_thousands_of_generated_requests_is_answered(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    logs.configure("json")
    draw = random.Random(seed)  # noqa: S311  nothing secret
    statuses: set[int] = set()
    async with serving(settings, replace(WIDE, body_deadline=LIMITS.body_deadline)) as service:
        await until_ready(service)
        requests = iter([(port, draw_request(draw)) for port, _ in zip(itertools.cycle(service), range(REQUESTS))])

        async def send() -> None:
            for port, sent in requests:
                answer = await exchange(port, sent)
                found = ANSWERED.match(answer)
                assert found, f"SEED={seed}: {sent!r} was answered {answer[:300]!r}"
                assert not [leak for leak in LEAKS if leak in answer and b"/metrics" not in sent], (seed, sent, answer)
                statuses.add(int(found[1]))

        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(send())
    output = capsys.readouterr()
    with capsys.disabled():
        print(f"\n{REQUESTS:,} generated requests, SEED={seed}: {sorted(statuses)}")  # noqa: T201  to have them again
    assert output.err == ""
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line for line in lines if line["level"] == "error" or "exception" in line] == []
    assert statuses >= {200, 303, 400, 403, 404, 405, 408, 413, 414, 415, 422, 431, 501}
