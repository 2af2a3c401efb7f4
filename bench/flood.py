"""Measures how the service treats honest clients while others do not read, only connect, or send junk: `make flood`."""

import argparse
import asyncio
import contextlib
import multiprocessing
import re
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from bench import databases
from bench.servers import Server, Servers
from bench.wrk import MeasurementError
from goals.errors import ConfigurationError
from goals.limits import Limits

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LAST = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
PIPELINED = 60
JUNK_RATE = 500_000
"""Bytes per second."""
LONGEST = Limits().body_deadline + Limits().request_deadline + Limits().transport_grace + 1
"""Seconds until the connection of a client that does not read is closed."""
VALID = "requests for a missing page"
"""Each needs a response, like honest requests: no limit applies here, but the gateway's rate limit bounds them."""
JUNK = {
    "bad heads": b"GET / HTTP/1.1\r\nX : " + b"a" * 1000 + b"\r\n\r\n",
    "half requests": b"POST /add_goal HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n" + b"a" * 1000,
    VALID: b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1000 + b"\r\n\r\n",
    "no HTTP": bytes(range(256)) * 4,
}


class Finding(NamedTuple):
    """One line of the table."""

    what: str
    limit: str
    measured: str
    holds: bool


class Client:
    """A client of a flood: it sends its request and never reads the response.

    With `ends`, it closes its half of the connection, as if it had no more requests.
    """

    def __init__(self, port: int, sent: bytes, *, ends: bool) -> None:
        self._port, self._sent, self._ends = port, sent, ends
        self.socket: socket.socket | None = None

    async def connect(self) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(0)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                await loop.sock_connect(self.socket, ("127.0.0.1", self._port))
                await loop.sock_sendall(self.socket, self._sent)
                if self._ends:
                    self.socket.shutdown(socket.SHUT_WR)

    def is_cut(self) -> bool:
        if self.socket is None or self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            return True
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


@contextlib.asynccontextmanager
async def flood(port: int, number: int, sent: bytes, *, again: bool, ends: bool = False) -> AsyncIterator[None]:
    """Run `number` clients; with `again`, those that were cut off reconnect every second."""
    clients = [Client(port, sent, ends=ends) for _ in range(number)]

    async def press() -> None:
        while True:
            for start in range(0, number, 100):
                cut = [client for client in clients[start : start + 100] if client.is_cut()]
                for client in cut:
                    client.close()
                await asyncio.gather(*(client.connect() for client in cut))
            if not again:
                return
            await asyncio.sleep(1)

    pressing = asyncio.create_task(press())
    try:
        yield
    finally:
        pressing.cancel()
        await asyncio.wait([pressing])
        for client in clients:
            client.close()


async def ask(port: int, request: bytes) -> tuple[int, float]:
    """Return the status and the seconds; 0 if the connection was closed without a response, -1 if nothing arrived."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(request)
                received = await reader.read()
    except ConnectionError:
        received = b""
    except TimeoutError:
        return -1, time.monotonic() - started
    return int(received[9:12] or 0), time.monotonic() - started


async def watch(port: int, request: bytes, seconds: float, every: float) -> list[tuple[int, float]]:
    """Send requests at a steady pace, however long the responses take."""
    asking = []
    for _ in range(int(seconds / every)):
        asking.append(asyncio.create_task(ask(port, request)))
        await asyncio.sleep(every)
    return await asyncio.gather(*asking)


def connections(process: psutil.Process, port: int) -> int:
    return sum(one.laddr[1] == port and bool(one.raddr) for one in process.net_connections("tcp"))


async def stay_silent(service: "Service", clients: int, seconds: float) -> list[Finding]:
    """Run three floods of clients that never read, each until all its clients have been cut off."""
    peaks, ends, gone = [], [], []
    for _ in range(3):
        started = time.monotonic()
        peak = 0
        async with flood(service.port, clients, GET * PIPELINED, again=False):
            last = started
            while time.monotonic() - started < seconds:
                peak = max(peak, service.process.memory_info().rss)
                if connections(service.process, service.port):
                    last = time.monotonic()
                await asyncio.sleep(0.2)
            gone.append(last - started)
        await asyncio.sleep(10)
        peaks.append(peak / 1e6)
        ends.append(service.process.memory_info().rss / 1e6)
    left, growth = connections(service.process, service.port), ends[2] - ends[0]
    return [
        Finding("peak RSS of three floods, MB", "< 150", f"{max(peaks):.0f}", max(peaks) < 150),
        Finding("growth of RSS from the first flood to the third, MB", "≤ 5", f"{growth:.1f}", growth <= 5),
        Finding("connections left", "0", str(left), left == 0),
        Finding("all cut off after, s", f"≤ {LONGEST:g}", f"{max(gone):.1f}", max(gone) <= LONGEST),
    ]


async def take_descriptors(service: "Service", name: str, seconds: float, sent: bytes, *, ends: bool) -> list[Finding]:
    """Run 2,000 clients, more than there are descriptors, which reconnect when they are cut off."""
    service.server.forget_output()
    async with flood(service.port, 2000, sent, again=True, ends=ends):
        probes, honest = await asyncio.gather(
            watch(service.ops_port, LIVEZ, seconds, 0.25), watch(service.port, LAST, seconds, 0.1)
        )
    lines = service.lines()
    await asyncio.sleep(10)
    after = await watch(service.port, LAST, 5, 0.1)
    slowest = max(took for _, took in probes)
    bad = sum(status != 200 for status, _ in probes)
    statuses = Counter(status for status, took in honest if status or took <= 1)
    well = sum(status == 200 for status, _ in after) / len(after)
    return [
        Finding(
            f"{name}: longest response of /livez, s", "≤ 1", f"{slowest:.2f}, {bad} failed", slowest <= 1 and not bad
        ),
        Finding(
            f"{name}: honest clients, 200 or closed immediately",
            "all",
            f"{statuses[200]} and {statuses[0]} of {len(honest)}",
            statuses[200] + statuses[0] == len(honest),
        ),
        Finding(f"{name}: share of 200 ten seconds later", "≥ 95 %", f"{well:.0%}", well >= 0.95),
        Finding(f"{name}: log lines besides requests", "≤ 100", str(lines), lines <= 100),
    ]


async def send_junk(port: int, kind: str, *, fresh: bool) -> None:
    """Send junk at a steady rate until cancelled, on one connection while it lasts, or on new ones, which it resets."""
    junk = JUNK[kind]
    writer: asyncio.StreamWriter | None = None
    started, sent = time.monotonic(), 0
    while True:
        with contextlib.suppress(OSError):
            if writer is None or fresh or writer.is_closing():
                if writer is not None:
                    writer.transport.abort()
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(junk)
            await writer.drain()
        sent += len(junk)
        await asyncio.sleep(max(0.0, started + sent / JUNK_RATE - time.monotonic()))


def throw(port: int, kind: str, fresh: bool) -> None:  # noqa: FBT001  a process has no keyword arguments
    asyncio.run(send_junk(port, kind, fresh=fresh))


async def be_honest(port: int, seconds: float) -> float:
    """Return the p99 of eight clients that each send one request after another on their own connection."""
    times: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        until = time.monotonic() + seconds
        with contextlib.closing(writer):
            while (started := time.monotonic()) < until:
                writer.write(GET)
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head)
                if found is None:
                    raise MeasurementError(f"an honest client got status {head[9:12].decode()}")
                await reader.readexactly(int(found[1]))
                times.append(time.monotonic() - started)

    await asyncio.gather(*(one() for _ in range(8)))
    return statistics.quantiles(times, n=100)[98]


async def throw_junk(service: "Service", rounds: int, seconds: float) -> list[Finding]:
    """Measure pairs of the same honest load, without and with junk."""
    findings = []
    for fresh in (False, True):
        for kind in JUNK:
            ratios = []
            for _ in range(rounds):
                calm = await be_honest(service.port, seconds)
                # In a separate process: in this one, it would slow down the clients that measure.
                throwing = multiprocessing.get_context("spawn").Process(
                    target=throw, args=(service.port, kind, fresh), daemon=True
                )
                throwing.start()
                await asyncio.sleep(1)
                ratios.append(await be_honest(service.port, seconds) / calm)
                throwing.kill()
                throwing.join()
            ratio = statistics.median(ratios)
            where = "new connections" if fresh else "one connection"
            spread = f"{ratio:.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            limit = "none" if kind == VALID else "≤ 2"
            what = f"{kind} on {where}: honest p99, relative to that without"
            findings.append(Finding(what, limit, spread, ratio <= 2 or kind == VALID))
    return findings


class Service(NamedTuple):
    """A running service, its ports, and its process."""

    server: Server
    port: int
    ops_port: int
    process: psutil.Process

    def lines(self) -> int:
        text = self.server.read_output()
        return sum('"event":"request"' not in line for line in text.splitlines())


@contextlib.contextmanager
def running(servers: Servers, folder: Path, descriptors: int | None = None) -> Iterator[Service]:
    with servers.service(folder, databases.LONG, descriptors=descriptors) as server:
        ports = re.search(r'"port":(\d+),"ops_port":(\d+)', server.read_output())
        if ports is None:
            raise MeasurementError("the service did not log its ports")
        yield Service(server, int(ports[1]), int(ports[2]), psutil.Process(server.process.pid))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flood", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="length of a flood (30)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs without and with junk (5)")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter of the service")
    chosen = parser.parse_args()
    servers = Servers(chosen.python.absolute())
    print("| figure | limit | measured | |\n|---|--:|--:|---|")
    missed = 0
    try:
        for finding in measure(servers, chosen.seconds, chosen.rounds):
            missed += not finding.holds
            print(
                f"| {finding.what} | {finding.limit} | {finding.measured} | {'' if finding.holds else 'missed'} |",
                flush=True,
            )
    except (MeasurementError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if missed else 0


def measure(servers: Servers, seconds: float, rounds: int) -> Iterator[Finding]:
    """Run everything, each kind of flood against its own service."""
    with databases.run(()) as folder:
        with running(servers, folder) as service:
            yield from asyncio.run(stay_silent(service, 1000, seconds))
        with running(servers, folder, descriptors=1024) as service:
            for name, sent, ends in (
                ("2,000 that do not read", GET * PIPELINED, False),
                ("2,000 that do not read and close their half", GET * PIPELINED, True),
                ("2,000 that only connect", b"", False),
            ):
                yield from asyncio.run(take_descriptors(service, name, seconds, sent, ends=ends))
        with running(servers, folder) as service:
            yield from asyncio.run(throw_junk(service, rounds, 2))


if __name__ == "__main__":
    sys.exit(main())
