"""The baselines: an application that does nothing, served by Hypercorn as released, or by our server.

Both use the service's configuration of Hypercorn: `python -m bench.bare hypercorn|server PORT`.
"""

import asyncio
import gc
import sys

from hypercorn.asyncio import serve as serve_by_hypercorn
from hypercorn.config import Config
from starlette.types import Message, Receive, Scope, Send

from goals import capacity, server, signals
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


async def serve(name: str, port: int) -> None:
    limits = Limits()
    listener = server.listen("127.0.0.1", port)
    if name == "hypercorn":
        config = server.configure(Config(), limits)
        config.bind = [f"fd://{listener.detach()}"]
        await serve_by_hypercorn(answer, config)  # type: ignore[arg-type]  # Starlette's ASGI types are looser
    else:
        public = server.Listener("public", listener, answer, capacity.most_connections(None, limits))
        http = server.Server([public], limits, lambda: None, 0)
        signals.call(http.stop)
        await http.serve()


if __name__ == "__main__":
    # As the service does; here for the objects that this file's imports created.
    gc.collect()
    gc.freeze()
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
