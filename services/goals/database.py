"""Runs statements on pooled connections, retries them, and waits for the primary during a failover."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import asyncpg
import structlog
from opentelemetry.metrics import NoOpMeter
from sqlalchemy import Connection, TableClause, UpdateBase
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql import visitors
from sqlalchemy.util import greenlet_spawn

from goals import connections, sqlstates
from goals.connections import Connector, FormerPrimaryError, Lineage, make_engine
from goals.errors import DatabaseUnavailableError, OverloadedError
from goals.gate import Gate
from goals.limits import Limits
from goals.settings import Settings
from goals.standbys import NoQuorumError, Standbys, Statement
from goals.telemetry import DatabaseMetrics, Pool

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from goals.traces import Traces  # importing it loads the exporter

log = structlog.get_logger(__name__)

_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy types it so


class Result(NamedTuple):
    """The rows of a statement, the number of attempts, the last attempt's span if traced, and which server answered."""

    rows: Sequence[Row[Any]]
    attempts: int = 1
    span: "SpanContext | None" = None
    standby: bool = False
    """Whether a standby answered, because the primary was down."""


class Database:
    """Runs single statements in autocommit, at most `size` concurrently, each with a deadline.

    The deadline is `retry_budget`, or for a write the time that it waits for the primary. `OverloadedError`: nothing
    was done. `DatabaseUnavailableError`: the outcome is unknown. An attempt that hangs is abandoned and never blocks
    its caller past the deadline, whatever the server or the network does.
    """

    def __init__(
        self, settings: Settings, limits: Limits, metrics: DatabaseMetrics | None = None, traces: "Traces | None" = None
    ) -> None:
        metrics = DatabaseMetrics(NoOpMeter("goals")) if metrics is None else metrics

        self._lineage = Lineage()
        self._connector = Connector(settings, limits, lineage=self._lineage)

        async def connect() -> asyncpg.Connection:
            began = time.perf_counter()
            connection = await self._connector.open()
            metrics.record_creation(time.perf_counter() - began)
            return connection

        self._settings, self._limits = settings, limits
        self.size = settings.goals_pool_size
        self.engine = make_engine(connect, self.size, limits.gate_timeout)
        self.standbys = (
            None if settings.db_standby_host is None else Standbys(settings, limits, self._lineage, self._record)
        )
        self._write_wait = max(limits.retry_budget, min(settings.goals_write_wait_seconds, limits.write_wait))
        self._last_deadline = float("inf")
        self._return: asyncio.Task[None] | None = None
        self.gate = Gate(self.size, limits)
        self._name = settings.db_name
        self._metrics = metrics
        self._traces = traces
        self._descriptions: WeakKeyDictionary[Statement, tuple[str, str | None, str]] = WeakKeyDictionary()
        metrics.observe_pool(self._look)
        metrics.observe_gate(self.gate.rejections)
        self._attempts: set[asyncio.Task[Result]] = set()
        self._failures: dict[tuple[str, str | None], float] = {}
        self._failed_at = 0.0
        self.explanation = ""
        """The cause of the last failure and its remedy, in one line."""

    async def fetch(
        self,
        statement: Statement,
        parameters: Mapping[str, object] | None = None,
        *,
        write: bool = False,
        for_write: bool = False,
    ) -> Sequence[Row[Any]]:
        """Run a statement like `run`, and return only its rows."""
        return (await self.run(statement, parameters, write=write, for_write=for_write)).rows

    async def read(self, statement: Statement, parameters: Mapping[str, object] | None = None) -> Result:
        """Run a read-only statement; while the primary is down, on a standby that has every commit."""
        if self.standbys is None or self._settings.db_standby_replies is None:
            return await self.run(statement, parameters)
        loop = asyncio.get_running_loop()
        began = loop.time()
        on_primary = asyncio.create_task(self.run(statement, parameters))
        try:
            while not on_primary.done():
                patience = max(began, self.gate.answered_at) + self._limits.silence - loop.time()
                if patience > 0 and not self.gate.is_shut:
                    either: set[asyncio.Future[Any]] = {on_primary, self.gate.shutting()}
                    await asyncio.wait(either, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                else:
                    result = await self._read_elsewhere(self.standbys, statement, parameters, on_primary)
                    if result is not None:
                        return result
                    await asyncio.wait({on_primary}, timeout=self._limits.ask_pause)
            return on_primary.result()
        finally:
            on_primary.cancel()

    async def _read_elsewhere(
        self,
        standbys: Standbys,
        statement: Statement,
        parameters: Mapping[str, object] | None,
        on_primary: asyncio.Task[Result],
    ) -> Result | None:
        """Return another server's answer; None if the primary answers first, or if no standby may be read."""
        elsewhere = asyncio.create_task(standbys.read(statement, parameters))
        try:
            await asyncio.wait({on_primary, elsewhere}, return_when=asyncio.FIRST_COMPLETED)
            if not elsewhere.done():
                return None
            rows, standby = elsewhere.result()
        except NoQuorumError:
            self._metrics.record_standby_read("refused")
            result = None
        else:
            self._metrics.record_standby_read("standby" if standby else "primary")
            result = Result(rows, standby=standby)
        finally:
            elsewhere.cancel()
        if result is not None and result.standby:
            self._check_primary(asyncio.get_running_loop().time())
        return result

    async def run(
        self,
        statement: Statement,
        parameters: Mapping[str, object] | None = None,
        *,
        repeatable: bool = True,
        admitted: int = 0,
        write: bool = False,
        for_write: bool = False,
    ) -> Result:
        """Run one statement on the primary; `admitted` is the number of callers that the gate has admitted already.

        A transient failure is retried, so the statement must be idempotent. With `repeatable=False` it is sent only
        once: only a failure to connect is retried. A `write` waits longer for the primary, and so does a read
        `for_write`.
        """
        loop = asyncio.get_running_loop()
        began, deadline = loop.time(), self.deadline(write=write or for_write)
        pause = self._limits.first_pause
        number = 0
        while True:
            number += 1
            asked = time.perf_counter()
            # A statement that began before the drain waits no longer than a new one does.
            deadline = min(deadline, max(self._last_deadline, began + self._limits.retry_budget))
            try:
                await self.gate.enter(deadline, admitted, write=write)
            except OverloadedError as full:
                if number == 1:
                    raise
                # An attempt was sent before, so it is unknown whether anything was done.
                raise self.unavailable("The database is not available.", write=write) from full
            attempt = asyncio.create_task(
                self._attempt(statement, parameters, asked, repeatable=repeatable, write=write)
            )
            self._attempts.add(attempt)
            attempt.add_done_callback(partial(self._forget, write=write))
            await asyncio.wait({attempt}, timeout=deadline - loop.time())
            if not attempt.done():
                attempt.cancel()
                raise self.unavailable("The database did not answer in time.", write=write)
            error = attempt.exception()
            if error is None:
                self._note_answer(loop.time(), write=write)
                return attempt.result()._replace(attempts=number)
            # The lost attempt may still hold the locks that the retry waits for.
            held = number > 1 and sqlstates.sqlstate(error) in sqlstates.HELD
            if not held and not sqlstates.is_transient(error):
                translated = sqlstates.translate(error)
                if isinstance(translated, DatabaseUnavailableError):
                    self._note_failure(loop.time(), sqlstates.origin_of(error))
                # PostgreSQL's message quotes the row, and a crash is logged with its causes: drop the original error.
                raise translated from translated.__cause__
            self._note_failure(loop.time(), error)
            if sqlstates.is_loss(error):
                self._check_primary(loop.time(), silent=isinstance(error, TimeoutError))
            wait = random.uniform(0, pause)  # noqa: S311  jitter is no secret
            if loop.time() + wait >= deadline:
                raise self.unavailable("The database is not available.", write=write) from error
            await asyncio.sleep(wait)
            pause = min(pause * 2, self._limits.longest_pause)

    def deadline(self, *, write: bool) -> float:
        """Return the deadline, in the event loop's time, of a statement that starts now."""
        seconds = self._write_wait if write else self._limits.retry_budget
        return asyncio.get_running_loop().time() + seconds

    def drain(self) -> None:
        """Let writes wait no longer than reads, because this process is about to stop."""
        self._last_deadline = asyncio.get_running_loop().time() + self._limits.retry_budget
        self._write_wait = self._limits.retry_budget
        self.gate.hurry(self._last_deadline)

    def unavailable(self, text: str, *, write: bool) -> DatabaseUnavailableError:
        """Return the error of a statement with an unknown outcome, and when to retry it."""
        return DatabaseUnavailableError(text, self.gate.retry_after(asyncio.get_running_loop().time(), write=write))

    async def _attempt(
        self,
        statement: Statement,
        parameters: Mapping[str, object] | None,
        asked: float,
        *,
        repeatable: bool,
        write: bool,
    ) -> Result:
        began = time.perf_counter()
        try:
            # One greenlet for check-out, statement and return; an AsyncConnection needs three, a fifth of the cost.
            rows, connection = await greenlet_spawn(self._execute, statement, parameters, asked, repeatable=repeatable)
            seconds = time.perf_counter() - began
            if write and self.standbys is not None and seconds > self._limits.silence:
                # It may have been frozen long enough for another server to be promoted.
                await self.standbys.look()
            if not self._lineage.holds(connection):
                former = FormerPrimaryError("another server has been promoted in the meantime")
                if repeatable:
                    raise former
                raise DatabaseUnavailableError("The database did not confirm whether it was done.") from former
        except BaseException as error:
            self._record(statement, sqlstates.error_type(error), time.perf_counter() - began)
            raise
        return Result(rows, span=self._record(statement, None, seconds))

    def _execute(
        self, statement: Statement, parameters: Mapping[str, object] | None, asked: float, *, repeatable: bool
    ) -> tuple[Sequence[Row[Any]], asyncpg.Connection]:
        with self._borrow() as connection:
            borrowed = time.perf_counter()
            self._metrics.record_wait(borrowed - asked)
            try:
                rows = connection.execute(statement, parameters).all()
            except Exception as error:
                if repeatable or not sqlstates.is_transient(error):
                    raise
                raise DatabaseUnavailableError("The database did not confirm whether it was done.") from error
            finally:
                self._metrics.record_use(time.perf_counter() - borrowed)
            return rows, connection.connection.driver_connection

    def _borrow(self) -> Connection:
        """Take a connection that the driver has not closed; skip places in the pool that cannot be filled now."""
        places = self.size
        while True:
            try:
                connection = self.engine.sync_engine.connect()
                while connection.connection.driver_connection.is_closed():  # type: ignore[union-attr]  # it has one
                    connection.invalidate()  # e.g. to a former primary; the next one in the pool replaces it
            except (DBAPIError, OSError) as error:
                places -= 1
                if not places or not sqlstates.is_rejection(error):
                    raise
            else:
                return connection

    def _record(self, statement: Statement, failure: str | None, seconds: float) -> "SpanContext | None":
        description = self._descriptions.get(statement)
        if description is None:
            description = self._descriptions[statement] = _describe(statement)
        operation, collection, text = description
        self._metrics.record_statement(self._name, operation, collection, failure, seconds)
        if self._traces is None:
            return None
        return self._traces.record_statement(self._name, operation, collection, failure, seconds, text)

    def _look(self) -> Pool:
        pool = self.engine.pool
        assert isinstance(pool, QueuePool)  # noqa: S101  what SQLAlchemy makes for a pool_size
        return Pool(pool.checkedout(), pool.checkedin(), self.size, self.gate.waiting)

    def _forget(self, attempt: asyncio.Task[Result], *, write: bool) -> None:
        self._attempts.discard(attempt)
        self.gate.leave(write=write)
        if not attempt.cancelled():
            attempt.exception()  # marks it as retrieved, even if the caller has left

    def _note_answer(self, now: float, *, write: bool) -> None:
        self.gate.note_answer(now, write=write)
        if self._failures and now - self._failed_at > self._limits.recovered_after:
            log.info("database answers again", after_seconds=round(self._failed_at - min(self._failures.values()), 3))
            self._failures.clear()

    def _note_failure(self, now: float, error: BaseException) -> None:
        """Log each kind of failure once per outage: later failures usually differ from the first."""
        kind = (type(error).__name__, sqlstates.sqlstate(error))
        self._failed_at = now
        self.explanation = connections.explain(error, self._settings)
        if kind not in self._failures:
            self._failures[kind] = now
            log.warning("database does not answer", error=kind[0], sqlstate=kind[1])

    def _check_primary(self, now: float, *, silent: bool = False) -> None:
        """Start looking for a primary, unless only this statement timed out and others are answered."""
        if self._return is not None and not self._return.done():
            return
        if not silent or now - self.gate.answered_at > self._limits.silence:
            self._return = asyncio.create_task(self._await_primary())

    async def _await_primary(self) -> None:
        """Connect to `DB_HOST` repeatedly, and in parallel if attempts hang, until a primary answers.

        If it answers immediately, only a connection was lost; otherwise the gate stays shut until it answers. A server
        that refuses this connection counts as up: statements report the reason, or use the connections they have.
        """
        loop = asyncio.get_running_loop()
        pings = set[asyncio.Task[None]]()
        try:
            while True:
                pings.add(asyncio.create_task(self._ping()))
                done, pings = await asyncio.wait(
                    pings, timeout=self._limits.ping_pause, return_when=asyncio.FIRST_COMPLETED
                )
                errors = [ping.exception() for ping in done]
                if not all(error is not None and sqlstates.is_loss(error) for error in errors):
                    return self.gate.open(loop.time())
                if not self.gate.is_shut:
                    self.gate.shut(loop.time())
                for error in filter(None, errors):
                    self._note_failure(loop.time(), error)
                if done:
                    await asyncio.sleep(self._limits.ping_pause)
        finally:
            for ping in pings:
                ping.cancel()
            await asyncio.gather(*pings, return_exceptions=True)

    async def _ping(self) -> None:
        connection = await self._connector.open()
        connection.terminate()
        if self.standbys is not None:
            # It may have been frozen long enough for another server to be promoted.
            await self.standbys.look()
        if not self._lineage.holds(connection):
            raise FormerPrimaryError("another server has been promoted in the meantime")

    async def fill(self) -> None:
        """Open every connection of the pool: a failover or a password rotation may make new ones impossible later."""
        deadline = asyncio.get_running_loop().time() + self._limits.retry_budget
        async with asyncio.timeout_at(deadline), AsyncExitStack() as held:
            for _ in range(self.size):
                await self.gate.enter(deadline)
                held.callback(self.gate.leave)
                await held.enter_async_context(self.engine.connect())

    async def close(self) -> None:
        under_way = [*self._attempts, *([] if self._return is None else [self._return])]
        for one in under_way:
            one.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        if self.standbys is not None:
            await self.standbys.close()
        await self.engine.dispose()


def _describe(statement: Statement) -> tuple[str, str | None, str]:
    """Return a statement's operation, its table, and its text with placeholders.

    The first two come from the construct, unless the statement's execution options set them.
    """
    elements = list(visitors.iterate(statement))
    tables = [element.name for element in elements if isinstance(element, TableClause)]
    changes = [element for element in elements if isinstance(element, UpdateBase)]  # also within a CTE
    text = str(statement.compile(dialect=_dialect))
    options = statement.get_execution_options()
    operation = options.get("operation") or next(iter(changes), statement).__visit_name__.upper()
    return operation, options.get("collection") or next(iter(tables), None), text
