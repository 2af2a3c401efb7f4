"""The yardstick: Hypercorn as the service starts it, before an application that does nothing."""

import asyncio
import gc
import socket
import sys

from hypercorn.asyncio import serve
from starlette.types import Message, Receive, Scope, Send

from goals.app import hypercorn_config
from goals.limits import Limits

_HEADERS = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"2")]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    start: Message = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
    await send(start)
    await send({"type": "http.response.body", "body": b"OK"})


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    # The service does so too; here it is about what this file's imports have left.
    gc.collect()
    gc.freeze()
    asyncio.run(serve(answer, hypercorn_config([listener], Limits())))  # type: ignore[arg-type]  # Starlette's ASGI types are looser
