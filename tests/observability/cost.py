"""What recording and logging cost a request, in microseconds of CPU: `make observability` prints it."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from goals.logs import request_writer
from goals.middleware import Record
from goals.responses import answer
from goals.telemetry import Telemetry

ROUNDS, REPEATS = 10_000, 5
ROUTE = Route("/", answer)


async def respond(scope: Scope, _receive: Receive, send: Send) -> None:
    scope["route"] = ROUTE
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"OK"})


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def discard(_message: Message) -> None:
    """Take an answer and do nothing with it."""


async def time_requests(app: ASGIApp) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(ROUNDS):
            headers = [(b"host", b"localhost"), (b"accept", b"*/*"), (b"user-agent", b"a browser")]
            scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "http_version": "1.1"}
            await app(scope | {"scheme": "http", "headers": headers}, receive, discard)
        best = min(best, time.process_time() - began)
    return best / ROUNDS * 1e6


def time_statements(record: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        for _ in range(ROUNDS):
            record()
        best = min(best, time.process_time() - began)
    return best / ROUNDS * 1e6


async def main() -> None:
    telemetry = Telemetry("test")

    def record_statement() -> None:
        telemetry.database.record_wait(0.001)
        telemetry.database.record_statement("goals_database", "SELECT", "goals", None, 0.001)
        telemetry.database.record_use(0.001)

    bare = await time_requests(respond)
    silent = await time_requests(Record(respond, metrics=telemetry.requests, write=lambda _fields: None))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: ASYNC230  nobody waits
        whole = await time_requests(Record(respond, metrics=telemetry.requests, write=request_writer("json")))
        await asyncio.sleep(0)  # the last turn's lines are written in the next
    figures = {
        "request_recorded_microseconds": round(silent - bare, 1),
        "request_logged_microseconds": round(whole - silent, 1),
        "statement_recorded_microseconds": round(time_statements(record_statement), 1),
    }
    print(json.dumps(figures, indent=2))  # noqa: T201  what it is for


if __name__ == "__main__":
    asyncio.run(main())
