"""A cheap target that returns a constant after 75 ms; `/count` returns its number of requests."""

import asyncio
import sys

DELAY_SECONDS = 0.075


class Slow(asyncio.Protocol):
    """One connection, with requests without a body, one at a time, as the tools send them."""

    requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what a TCP server is given
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(b"\r\n\r\n"):
            return
        counts = self._received.startswith(b"GET /count ")
        self._received = b""
        Slow.requests += 1
        if counts:
            self._answer(str(Slow.requests).encode())
        else:
            asyncio.get_running_loop().call_later(DELAY_SECONDS, self._answer, b"OK")

    def _answer(self, content: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
