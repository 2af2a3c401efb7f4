"""Reads while the primary is down: all servers are queried, and the one with the newest state is read.

An acknowledged commit is on its primary and on k of n standbys, so at least one of any n - k + 1 servers has it. No
reply is older than the read. docs/adr/0035-reads-from-a-standby.md describes the limits of this.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import structlog
from sqlalchemy import CompoundSelect, Row, Select, TextClause, UpdateBase, text
from sqlalchemy.util import greenlet_spawn

from goals import sqlstates
from goals.connections import Connector, Lineage, Timeline, make_engine
from goals.limits import Limits
from goals.reads import SharedReads
from goals.settings import Settings

log = structlog.get_logger(__name__)

Statement = Select[Any] | CompoundSelect[Any] | UpdateBase | TextClause
Outcome = TypeVar("Outcome")

_QUESTION = text("""
SELECT system_identifier AS system, pg_is_in_recovery() AS is_standby, pg_postmaster_start_time() AS started,
CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() OR current_setting('recovery_min_apply_delay') <> '0' END
AS is_held,
CASE WHEN pg_is_in_recovery() THEN 0
ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END AS timeline,
CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_insert_lsn() END - '0/0' AS received,
CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END - '0/0' AS replayed
FROM pg_control_system()
""")
_REPLAYED = text("SELECT pg_last_wal_replay_lsn() - '0/0'")


class NoQuorumError(Exception):
    """Too few servers replied, or their replies contradict one another: none of them may be read."""


class PostgresServer:
    """One server, by its address, with connections that are opened in advance."""

    def __init__(self, address: str, settings: Settings, limits: Limits) -> None:
        self.address = address
        self.unanswered = 0
        self.stuck: tuple[int, int] | None = None
        """The received position of an incomplete record, which cannot be replayed, and the replayed position."""
        self.has_replied = True
        self._size = limits.server_connections
        connector = Connector(settings, limits, address=address)
        self.engine = make_engine(connector.open, limits.server_connections, limits.ask_timeout)

    async def run(self, statement: Statement, parameters: Mapping[str, object] | None = None) -> Sequence[Row[Any]]:
        self.unanswered += 1
        try:
            return await greenlet_spawn(self._execute, statement, parameters)
        finally:
            self.unanswered -= 1

    async def fill(self) -> None:
        """Open all missing connections: in a failover, a new one takes seconds."""
        with contextlib.suppress(Exception):  # whatever it is, it is retried soon
            async with contextlib.AsyncExitStack() as held:
                for _ in range(self._size):
                    await held.enter_async_context(self.engine.connect())

    def _execute(self, statement: Statement, parameters: Mapping[str, object] | None) -> Sequence[Row[Any]]:
        with self.engine.sync_engine.connect() as connection:
            return connection.execute(statement, parameters).all()


class Reply(NamedTuple):
    """A server's state; `position` is the last byte of WAL that it has, in memory or on disk."""

    server: PostgresServer
    started: datetime
    """Identifies a server that has two addresses."""
    timeline: int
    """0 for a standby: an ordinary role cannot read its timeline."""
    position: int
    replayed: int


def choose(replies: Sequence[Reply], needed: int, newest: int) -> Reply:
    """Return the reply of the server to read from; a standby must first replay up to its position."""
    if len(replies) < needed:
        raise NoQuorumError(f"{len(replies)} servers replied, {needed} are needed")
    primaries = sorted((reply for reply in replies if reply.timeline), key=lambda reply: -reply.timeline)
    standbys = [reply for reply in replies if not reply.timeline]
    highest = max(standbys, key=lambda reply: reply.position, default=None)
    if not primaries:
        assert highest is not None  # noqa: S101  at least one server is needed, and none of them is a primary
        return highest
    primary = primaries[0]
    if primary.timeline < newest:
        raise NoQuorumError("the only primary is a former one")
    if [reply.timeline for reply in primaries].count(primary.timeline) > 1:
        raise NoQuorumError("two primaries are on one timeline")
    if highest is not None and highest.position > primary.position:
        raise NoQuorumError("a standby has WAL that its primary lacks")
    return primary


class Standbys:
    """All servers behind `DB_STANDBY_HOST`: they report the newest primary, and serve reads while it is unavailable."""

    def __init__(
        self,
        settings: Settings,
        limits: Limits,
        lineage: Lineage,
        record: Callable[[Statement, str | None, float], object],
    ) -> None:
        self._settings, self._limits, self._lineage, self._record = settings, limits, lineage, record
        self._needed = settings.db_standby_replies
        self._servers: dict[str, PostgresServer] = {}
        self._shared = SharedReads(self._ask)
        self._left_behind: set[asyncio.Task[Any]] = set()
        self._is_resolved = True

    async def watch(self) -> None:
        """Keep connections to each server open, and notice promotions, until cancelled."""
        async with asyncio.TaskGroup() as watching:
            watching.create_task(self._watch_name())  # a resolver may hang for a long time
            while True:
                await self._shared.get(len(self._servers))
                self._fill()
                await asyncio.sleep(self._limits.watch_interval)

    def _fill(self) -> None:
        """Start to reopen lost connections to the servers that answer."""
        for server in self._servers.values():
            if server.unanswered < self._limits.server_connections:
                self._leave_behind(server.fill())

    async def look(self) -> None:
        """Ask all servers whether another primary has been promoted."""
        await self._shared.get(len(self._servers))

    async def read(
        self, statement: Statement, parameters: Mapping[str, object] | None
    ) -> tuple[Sequence[Row[Any]], bool]:
        """Run a read-only statement; return its rows and whether a standby answered, or raise `NoQuorumError`.

        The rows reflect every commit that was acknowledged before the call.
        """
        assert self._needed is not None  # noqa: S101  otherwise `Database` reads only from the primary
        if self._lineage.newest is None:
            raise NoQuorumError("no primary has been seen")
        replies = await self._shared.get(self._needed)
        reply = choose(replies, self._needed, self._lineage.newest.number)
        if not reply.timeline:
            await self._wait_for_replay(reply)
        # A separate statement: one that checked the position itself would use an older snapshot.
        began = time.perf_counter()
        failure = None
        try:
            rows = await self._within(self._limits.standby_timeout, reply.server.run(statement, parameters))
        except Exception as error:  # noqa: BLE001  whatever it is, another server may work
            failure = sqlstates.error_type(error)
            raise NoQuorumError(f"{reply.server.address} did not answer ({failure})") from None
        finally:
            self._record(statement, failure, time.perf_counter() - began)
        return rows, not reply.timeline

    async def close(self) -> None:
        for task in self._left_behind:
            task.cancel()
        await asyncio.gather(*self._left_behind, return_exceptions=True)
        for server in self._servers.values():
            await server.engine.dispose()

    async def _watch_name(self) -> None:
        while True:
            await self._look_up()
            await asyncio.sleep(self._limits.resolve_interval if self._servers else self._limits.watch_interval)

    async def _look_up(self) -> None:
        """Look up the servers' addresses; without an answer, keep the known ones."""
        host, port = self._settings.db_standby_host, self._settings.db_port
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if self._is_resolved:
                log.warning("DB_STANDBY_HOST cannot be resolved; known servers are kept", error=str(error))
            self._is_resolved = False
            return
        self._is_resolved = True
        addresses = {str(address[0]) for *_, address in found}
        for address in self._servers.keys() - addresses:
            if not self._servers[address].has_replied:
                await self._servers.pop(address).engine.dispose()
        for address in sorted(addresses - self._servers.keys())[: self._limits.servers - len(self._servers)]:
            self._servers[address] = PostgresServer(address, self._settings, self._limits)

    async def _ask(self, enough: int) -> list[Reply]:
        """Query every server, and return the replies once there are enough, or after `ask_timeout`.

        A slightly later reply is included too: it may come from the primary. If a server replies that it is the
        primary, this waits for all servers: another one may have been promoted.
        """
        replies: dict[datetime, Reply] = {}
        asked = {
            self._leave_behind(self._question(server))
            for server in self._servers.values()
            if server.unanswered < self._limits.server_connections
        }
        loop = asyncio.get_running_loop()
        until = loop.time() + self._limits.ask_timeout
        while asked and loop.time() < until:
            done, asked = await asyncio.wait(asked, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            replies |= {reply.started: reply for task in done if (reply := task.result()) is not None}
            if len(replies) >= enough and not any(reply.timeline for reply in replies.values()):
                until = min(until, loop.time() + self._limits.ask_grace)
        return [await self._catch_up(reply, replies.values()) for reply in replies.values()]

    async def _catch_up(self, reply: Reply, others: Iterable[Reply]) -> Reply:
        """Query a primary again if it is behind: the others' data may have been written since it replied."""
        if reply.timeline and reply.position < max(other.position for other in others):
            with contextlib.suppress(TimeoutError):
                return await self._within(self._limits.ask_timeout, self._question(reply.server)) or reply
        return reply

    async def _question(self, server: PostgresServer) -> Reply | None:
        try:
            (row,) = await server.run(_QUESTION)
        except Exception:  # noqa: BLE001  a server that cannot report its state counts as no reply
            server.has_replied = False
            return None
        server.has_replied = True
        newest = self._lineage.newest
        if newest is not None and row.system != newest.system:
            return None
        if not row.is_standby:
            self._lineage.learn(Timeline(row.system, row.timeline))
            return Reply(server, row.started, row.timeline, int(row.received), 0)
        # Before a standby starts streaming, it may have acknowledged more than it has read of its own WAL since its
        # start. If replay is paused or delayed, an incomplete last record cannot be detected.
        if row.received is None or row.replayed is None or row.is_held:
            return None
        return Reply(server, row.started, 0, int(max(row.received, row.replayed)), int(row.replayed))

    async def _wait_for_replay(self, reply: Reply) -> None:
        """Wait until the standby has replayed all it has received, except for an incomplete last record."""
        loop, server, replayed = asyncio.get_running_loop(), reply.server, reply.replayed
        began = moved = loop.time()
        while replayed < reply.position and server.stuck != (reply.position, replayed):
            now = loop.time()
            if now - moved >= self._limits.replay_stall:
                server.stuck = reply.position, replayed
            elif now - began >= self._limits.replay_timeout:
                raise NoQuorumError(f"{server.address} has not replayed what it has received")
            else:
                await asyncio.sleep(self._limits.replay_pause)
                try:
                    ((lsn,),) = await self._within(self._limits.ask_timeout, server.run(_REPLAYED))
                    position = int(lsn)
                except Exception as error:  # noqa: BLE001  as in `read`
                    raise NoQuorumError(f"{server.address} did not answer ({sqlstates.error_type(error)})") from None
                if position != replayed:
                    replayed, moved = position, loop.time()

    async def _within(self, seconds: float, running: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Wait for `running` up to `seconds`; then raise `TimeoutError` and leave it running."""
        task = self._leave_behind(running)
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError
        return task.result()

    def _leave_behind(self, running: Coroutine[Any, Any, Outcome]) -> asyncio.Task[Outcome]:
        """Start a task that need not be awaited: cancelling a statement would cost its connection, and time."""
        task = asyncio.create_task(running)
        self._left_behind.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved
