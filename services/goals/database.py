"""How a statement runs: an attempt on a connection of the pool, and the retries that carry it over a failover."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import asyncpg
import structlog
from opentelemetry.metrics import NoOpMeter
from sqlalchemy import CompoundSelect, Connection, Select, TableClause, TextClause, UpdateBase, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql import visitors
from sqlalchemy.util import greenlet_spawn

from goals import connections, sqlstates
from goals.connections import Connector
from goals.errors import DatabaseUnavailableError, LockedError, OverloadedError
from goals.gate import Gate
from goals.limits import Limits
from goals.settings import Settings
from goals.telemetry import DatabaseMetrics, Pool

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from goals.traces import Traces  # importing it loads the exporter

log = structlog.get_logger(__name__)

Statement = Select[Any] | CompoundSelect[Any] | UpdateBase | TextClause
_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy types it so


class Result(NamedTuple):
    """What a statement gave, how many attempts it took, and the span of the last one where there are traces."""

    rows: Sequence[Row[Any]]
    attempts: int
    span: "SpanContext | None"


class Database:
    """Runs single statements in autocommit, at most `size` at once, each answered or given up within `retry_budget`.

    `OverloadedError`: nothing was done. `DatabaseUnavailableError`: the outcome is not known. An attempt that hangs is
    left behind and never holds its caller, whatever the server or the network does.
    """

    def __init__(
        self, settings: Settings, limits: Limits, metrics: DatabaseMetrics | None = None, traces: "Traces | None" = None
    ) -> None:
        metrics = DatabaseMetrics(NoOpMeter("goals")) if metrics is None else metrics

        connector = Connector(settings, limits)

        async def connect() -> asyncpg.Connection:
            began = time.perf_counter()
            connection = await connector.open()
            metrics.record_creation(time.perf_counter() - began)
            return connection

        self._settings, self._limits = settings, limits
        self.size = settings.goals_pool_size
        self.engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            isolation_level="AUTOCOMMIT",
            pool_size=self.size,
            max_overflow=0,
            pool_timeout=limits.gate_timeout,
            hide_parameters=True,
            pool_reset_on_return=None,  # nothing is open after a single statement in autocommit
        )
        event.listen(self.engine.sync_engine, "handle_error", sqlstates.drop_useless_connections)
        self.gate = Gate(self.size, limits)
        self._name = settings.db_name
        self._metrics = metrics
        self._traces = traces
        self._descriptions: WeakKeyDictionary[Statement, tuple[str, str | None, str]] = WeakKeyDictionary()
        metrics.observe_pool(self._look)
        metrics.observe_gate(self.gate.rejections)
        self._attempts: set[asyncio.Task[tuple[Sequence[Row[Any]], SpanContext | None]]] = set()
        self._failures: dict[tuple[str, str | None], float] = {}
        self._failed_at = 0.0
        self.explanation = ""
        """One line of what was behind the last failure, and what to do."""

    async def fetch(
        self, statement: Statement, parameters: Mapping[str, object] | None = None, *, repeatable: bool = True
    ) -> Sequence[Row[Any]]:
        """`run` for those who need only the rows."""
        return (await self.run(statement, parameters, repeatable=repeatable)).rows

    async def run(
        self,
        statement: Statement,
        parameters: Mapping[str, object] | None = None,
        *,
        repeatable: bool = True,
        admitted: int = 0,
    ) -> Result:
        """Run one statement, for so many callers that the gate has `admitted` before.

        It is sent again after a transient failure, so it must be idempotent. With `repeatable=False` it is sent once:
        only a connection that could not be made is tried again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.retry_budget
        pause = self._limits.first_pause
        number = 0
        while True:
            number += 1
            asked = time.perf_counter()
            try:
                await self.gate.enter(deadline, admitted)
            except OverloadedError as full:
                if number == 1:
                    raise
                # An attempt was sent: that nothing was done would be a guess.
                raise DatabaseUnavailableError("The database is not available.") from full
            attempt = asyncio.create_task(self._attempt(statement, parameters, asked, repeatable=repeatable))
            self._attempts.add(attempt)
            attempt.add_done_callback(self._forget)
            await asyncio.wait({attempt}, timeout=deadline - loop.time())
            if not attempt.done():
                attempt.cancel()
                raise DatabaseUnavailableError("The database did not answer in time.")
            error = attempt.exception()
            if error is None:
                self._note_answer(loop.time())
                rows, span = attempt.result()
                return Result(rows, number, span)
            if not sqlstates.is_transient(error):
                translated = sqlstates.translate(error)
                if isinstance(translated, DatabaseUnavailableError):
                    self._note_failure(loop.time(), sqlstates.origin_of(error))
                if isinstance(translated, LockedError) and number > 1 and not admitted:
                    translated = DatabaseUnavailableError("The database did not say whether it was done.")
                # PostgreSQL's own words quote the row, and whatever crashes a request is logged with its causes.
                raise translated from translated.__cause__
            self._note_failure(loop.time(), error)
            wait = random.uniform(0, pause)  # noqa: S311  jitter is no secret
            if loop.time() + wait >= deadline:
                raise DatabaseUnavailableError("The database is not available.") from error
            await asyncio.sleep(wait)
            pause = min(pause * 2, self._limits.longest_pause)

    async def _attempt(
        self, statement: Statement, parameters: Mapping[str, object] | None, asked: float, *, repeatable: bool
    ) -> tuple[Sequence[Row[Any]], "SpanContext | None"]:
        began = time.perf_counter()
        try:
            # One greenlet for check-out, statement and return; an AsyncConnection makes three, a fifth of the cost.
            rows = await greenlet_spawn(self._execute, statement, parameters, asked, repeatable=repeatable)
        except BaseException as error:
            self._record(statement, sqlstates.error_type(error), time.perf_counter() - began)
            raise
        return rows, self._record(statement, None, time.perf_counter() - began)

    def _execute(
        self, statement: Statement, parameters: Mapping[str, object] | None, asked: float, *, repeatable: bool
    ) -> Sequence[Row[Any]]:
        with self._borrow() as connection:
            borrowed = time.perf_counter()
            self._metrics.record_wait(borrowed - asked)
            try:
                return connection.execute(statement, parameters).all()
            except Exception as error:
                if repeatable or not sqlstates.is_transient(error):
                    raise
                raise DatabaseUnavailableError("The database did not say whether it was done.") from error
            finally:
                self._metrics.record_use(time.perf_counter() - borrowed)

    def _borrow(self) -> Connection:
        """Take a connection that the driver does not know to be closed, past places that cannot be filled now."""
        places = self.size
        while True:
            try:
                connection = self.engine.sync_engine.connect()
                while connection.connection.driver_connection.is_closed():  # type: ignore[union-attr]  # it has one
                    connection.invalidate()  # as those of a former primary are; the next in the pool comes instead
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

    def _forget(self, attempt: "asyncio.Task[tuple[Sequence[Row[Any]], SpanContext | None]]") -> None:
        self._attempts.discard(attempt)
        self.gate.leave()
        if not attempt.cancelled():
            attempt.exception()  # marks it as seen, where the caller has long left

    def _note_answer(self, now: float) -> None:
        self.gate.note_answer(now)
        if self._failures and now - self._failed_at > self._limits.recovered_after:
            log.info("database answers again", after_seconds=round(self._failed_at - min(self._failures.values()), 3))
            self._failures.clear()

    def _note_failure(self, now: float, error: BaseException) -> None:
        """Log each kind of failure once in an outage: what it begins with is seldom what it goes on with."""
        kind = (type(error).__name__, sqlstates.sqlstate(error))
        self._failed_at = now
        self.explanation = connections.explain(error, self._settings)
        if kind not in self._failures:
            self._failures[kind] = now
            log.warning("database does not answer", error=kind[0], sqlstate=kind[1])

    async def fill(self) -> None:
        """Open every connection of the pool: later, in a failover or a password rotation, a new one may not be had."""
        deadline = asyncio.get_running_loop().time() + self._limits.retry_budget
        async with asyncio.timeout_at(deadline), AsyncExitStack() as held:
            for _ in range(self.size):
                await self.gate.enter(deadline)
                held.callback(self.gate.leave)
                await held.enter_async_context(self.engine.connect())

    async def close(self) -> None:
        for attempt in self._attempts:
            attempt.cancel()
        await asyncio.gather(*self._attempts, return_exceptions=True)
        await self.engine.dispose()


def _describe(statement: Statement) -> tuple[str, str | None, str]:
    """Give a statement's operation, its table, and its text with placeholders.

    The first two are those of the construct, unless the statement says in its options what it is for.
    """
    elements = list(visitors.iterate(statement))
    tables = [element.name for element in elements if isinstance(element, TableClause)]
    changes = [element for element in elements if isinstance(element, UpdateBase)]  # within others: what it is for
    text = str(statement.compile(dialect=_dialect))
    options = statement.get_execution_options()
    operation = options.get("operation") or next(iter(changes), statement).__visit_name__.upper()
    return operation, options.get("collection") or next(iter(tables), None), text
