"""The way to PostgreSQL: one pool, a gate before it, and the rules that carry a statement over a failover."""

import asyncio
import random
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import asyncpg
import structlog
from opentelemetry.metrics import NoOpMeter
from sqlalchemy import CompoundSelect, Connection, Select, TableClause, TextClause, UpdateBase, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import ExceptionContext, Row
from sqlalchemy.exc import DBAPIError, TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql import visitors
from sqlalchemy.util import greenlet_spawn

from goals.errors import DatabaseUnavailableError, OverloadedError, StatementRefusedError
from goals.settings import Settings
from goals.telemetry import DatabaseMetrics, Pool

if TYPE_CHECKING:
    from goals.traces import Traces  # importing it loads the exporter

log = structlog.get_logger(__name__)

# Seconds; the table in docs/operations.md gives the reason of each.
CONNECT_TIMEOUT = 1.0
STATEMENT_TIMEOUT = 1.0
COMMAND_TIMEOUT = 1.2
GATE_TIMEOUT = 0.5
RETRY_BUDGET = 3.0
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
SILENCE = 0.25
"""Without an answer for so long, while statements are under way, the database counts as away."""
REFUSAL = 0.25
"""How long no other connection is asked for after the server has refused one."""
QUICK = 0.25
"""A wait up to here is no sign of overload; after `GATE_TIMEOUT` without a shorter one, the queue is mere delay."""
CALM = 1.0
"""An outage is over when no statement has failed for so long: in some, only part of the connections is lost."""
GATE_QUEUE = 128
"""How many statements may wait for a connection; the next one is refused at once."""

# SQLSTATEs after which the connection must not go back to the pool: a standby (25006) answers pings for ever, and a
# server that shuts down or starts up (57P0x) will not become the one we want.
_DISCONNECTS = frozenset({"25006", "57P01", "57P02", "57P03"})
# SQLSTATEs that pass by themselves, so that the same statement may be sent again: those, lost connections (08),
# a rotated password (28P01), deadlocks (40), too many connections (53300), a plan older than a migration (0A000).
_TRANSIENT = _DISCONNECTS | {"0A000", "08000", "08001", "08003", "08004", "08006", "28P01", "40001", "40P01", "53300"}
# What a new connection may be told while those that exist go on: another password, too many connections.
_REFUSALS = frozenset({"28P01", "53300"})
# Classes that blame our statement or the data in it: defects of ours, never an outage. 42P01 and 42703 are the
# exception within 42, with 42501: the table, a column or a right is not there yet.
_DEFECTS = ("22", "23", "42")
_NOT_THERE_YET = frozenset({"42501", "42703", "42P01"})


def connect_arguments(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for `asyncpg.connect`; the password is read anew at each call."""
    return {
        "host": settings.db_host,
        "port": settings.db_port,
        "user": settings.db_username,
        "password": settings.password(),
        "database": settings.db_name,
        "ssl": _tls(settings),
        "timeout": CONNECT_TIMEOUT,
    }


def _tls(settings: Settings) -> ssl.SSLContext | str | bool:
    if settings.ssl == "disable":
        return False
    if settings.ssl in {"verify-ca", "verify-full"}:
        context = ssl.create_default_context(cafile=settings.db_ca_file)
        context.check_hostname = settings.ssl == "verify-full"
        return context
    return settings.ssl


def sqlstate(error: BaseException) -> str | None:
    """Give the SQLSTATE (PostgreSQL, appendix A) behind an error of SQLAlchemy or asyncpg, where there is one."""
    if not isinstance(error, DBAPIError):
        return getattr(error, "sqlstate", None)
    # For a plan that is older than a migration (0A000) SQLAlchemy leaves the code with the driver's error.
    return getattr(error.orig, "sqlstate", None) or getattr(getattr(error.orig, "__cause__", None), "sqlstate", None)


Statement = Select[Any] | CompoundSelect[Any] | UpdateBase | TextClause
_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy types it so


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """Closes without a goodbye: a server that froze or vanished would let us wait for its answer."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109  asyncpg's own signature
        self.terminate()


class _Connector:
    """Opens connections with the password that the file holds now, and else with the one that was accepted last.

    A rotation changes the server and the file one after the other. Where the file comes first, every connection that
    is lost between them can be replaced only by the former password. After a refusal none is asked for during a
    moment: each place in the pool whose connection was lost would ask again for every statement.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.accepted: str | None = None
        self._uses_former = False
        self._refusal: Exception | None = None
        self._shut_until = 0.0

    async def open(self) -> asyncpg.Connection:
        loop = asyncio.get_running_loop()
        if self._refusal is not None and loop.time() < self._shut_until:
            raise self._refusal.with_traceback(None)
        try:
            connection = await self._log_in()
        except (asyncpg.PostgresError, OSError) as error:
            if _is_refusal(error):
                if self._refusal is None:
                    log.warning("database refuses a connection", error=type(error).__name__, sqlstate=sqlstate(error))
                self._refusal, self._shut_until = error, loop.time() + REFUSAL
            raise
        if self._refusal is not None:
            self._refusal = None
            log.info("database accepts connections again")
        return connection

    async def _log_in(self) -> asyncpg.Connection:
        arguments = connect_arguments(self._settings)
        password = arguments["password"]
        try:
            connection = await _connect(arguments)
        except asyncpg.InvalidPasswordError:
            if self.accepted in {None, password}:
                raise
            connection = await _connect({**arguments, "password": self.accepted})
            if not self._uses_former:
                self._uses_former = True
                log.warning("database refuses the password, and takes the former one", sqlstate="28P01")
            return connection
        if self._uses_former:
            self._uses_former = False
            log.info("database takes the password")
        self.accepted = password
        return connection


async def _connect(arguments: Mapping[str, Any]) -> asyncpg.Connection:
    return await asyncpg.connect(
        **arguments,
        command_timeout=COMMAND_TIMEOUT,
        connection_class=_Connection,
        server_settings={
            "application_name": "goals",
            "jit": "off",
            "statement_timeout": str(int(STATEMENT_TIMEOUT * 1000)),
        },
    )


class Gate:
    """Lets `size` callers in at once, the others in the order they came (a pool of connections is not fair by itself).

    A caller waits at most `GATE_TIMEOUT` while statements succeed, and until its own deadline while none does: then it
    is the database that is away, perhaps only for a failover. Once it is back, the wait counts anew.

    A queue is there for bursts. Where it stands, because more comes than can be done, everybody in it waits for
    nothing: then only half of `size` may wait, until it has emptied (after Nichols and Jacobson: Controlling Queue
    Delay, 2012).
    """

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._queue: deque[asyncio.Future[None]] = deque()
        self.rejections = {"full": 0, "slow": 0, "down": 0}
        self._stands = False
        self._quick_at = 0.0
        self._answering_since = 0.0
        self._answered_at = 0.0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def note_answer(self, now: float) -> None:
        """Tell that a statement has succeeded."""
        if now - self._answered_at > SILENCE:
            self._answering_since = now
        self._answered_at = now

    async def enter(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        came_at = now = loop.time()
        if self._free:
            self._free -= 1
            self._quick_at = now
            return
        if len(self._queue) >= self._room(now):
            self.rejections["full"] += 1
            raise OverloadedError("Too many requests are waiting for the database.")
        turn = loop.create_future()
        self._queue.append(turn)
        try:
            while not turn.done():
                patience = max(came_at, self._answering_since) + GATE_TIMEOUT - now
                if now >= deadline:
                    self.rejections["down"] += 1
                    raise DatabaseUnavailableError("The database did not answer in time.")
                if patience <= 0 and now - self._answered_at <= SILENCE:
                    self.rejections["slow"] += 1
                    raise OverloadedError("The database has more to do than it can.")
                await asyncio.wait({turn}, timeout=min(patience if patience > 0 else SILENCE, deadline - now))
                now = loop.time()
            if now - came_at <= QUICK:
                self._quick_at = now
        except BaseException:
            if turn.done():
                self.leave()
            else:
                self._queue.remove(turn)
            raise

    def leave(self) -> None:
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._free += 1
            self._stands = False

    def _room(self, now: float) -> int:
        """How many may wait now."""
        is_answering = now - self._answered_at <= SILENCE
        if is_answering and now - max(self._quick_at, self._answering_since) > GATE_TIMEOUT:
            self._stands = True
        return self._size // 2 if self._stands else GATE_QUEUE


class Database:
    """Runs single statements in autocommit, at most `size` at once, each answered or given up within `RETRY_BUDGET`.

    `OverloadedError`: nothing was done. `DatabaseUnavailableError`: the outcome is not known. An attempt that hangs is
    left behind and never holds its caller, whatever the server or the network does.
    """

    def __init__(
        self, settings: Settings, metrics: DatabaseMetrics | None = None, traces: "Traces | None" = None
    ) -> None:
        metrics = DatabaseMetrics(NoOpMeter("goals")) if metrics is None else metrics

        connector = _Connector(settings)

        async def connect() -> asyncpg.Connection:
            began = time.perf_counter()
            connection = await connector.open()
            metrics.record_creation(time.perf_counter() - began)
            return connection

        self.size = settings.goals_pool_size
        self.engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            isolation_level="AUTOCOMMIT",
            pool_size=self.size,
            max_overflow=0,
            pool_timeout=GATE_TIMEOUT,
            hide_parameters=True,
            pool_reset_on_return=None,  # nothing is open after a single statement in autocommit
        )
        event.listen(self.engine.sync_engine, "handle_error", _drop_useless_connections)
        self.gate = Gate(self.size)
        self._name = settings.db_name
        self._metrics = metrics
        self._traces = traces
        self._descriptions: WeakKeyDictionary[Statement, tuple[str, str | None, str]] = WeakKeyDictionary()
        metrics.observe_pool(self._look)
        metrics.observe_gate(self.gate.rejections)
        self._attempts: set[asyncio.Task[Sequence[Row[Any]]]] = set()
        self._failures: dict[tuple[str, str | None], float] = {}
        self._failed_at = 0.0

    async def fetch(
        self, statement: Statement, parameters: Mapping[str, object] | None = None, *, repeatable: bool = True
    ) -> Sequence[Row[Any]]:
        """`run` for those who need only the rows."""
        rows, _ = await self.run(statement, parameters, repeatable=repeatable)
        return rows

    async def run(
        self, statement: Statement, parameters: Mapping[str, object] | None = None, *, repeatable: bool = True
    ) -> tuple[Sequence[Row[Any]], int]:
        """Run one statement and return its rows and how many attempts it took.

        It is sent again after a transient failure, so it must be idempotent. With `repeatable=False` it is sent once:
        only a connection that could not be made is tried again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RETRY_BUDGET
        pause = FIRST_PAUSE
        number = 0
        while True:
            number += 1
            asked = time.perf_counter()
            try:
                await self.gate.enter(deadline)
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
                return attempt.result(), number
            if not _is_transient(error):
                translated = _translate(error)
                if isinstance(translated, DatabaseUnavailableError):
                    self._note_failure(loop.time(), _origin(error))
                # PostgreSQL's own words quote the row, and whatever crashes a request is logged with its causes.
                raise translated from translated.__cause__
            self._note_failure(loop.time(), error)
            wait = random.uniform(0, pause)  # noqa: S311  jitter is no secret
            if loop.time() + wait >= deadline:
                raise DatabaseUnavailableError("The database is not available.") from error
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _attempt(
        self, statement: Statement, parameters: Mapping[str, object] | None, asked: float, *, repeatable: bool
    ) -> Sequence[Row[Any]]:
        began = time.perf_counter()
        failure = None
        try:
            # One greenlet for check-out, statement and return; an AsyncConnection makes three, a fifth of the cost.
            return await greenlet_spawn(self._execute, statement, parameters, asked, repeatable=repeatable)
        except BaseException as error:
            failure = _error_type(error)
            raise
        finally:
            self._record(statement, failure, time.perf_counter() - began)

    def _execute(
        self, statement: Statement, parameters: Mapping[str, object] | None, asked: float, *, repeatable: bool
    ) -> Sequence[Row[Any]]:
        with self._borrow() as connection:
            borrowed = time.perf_counter()
            self._metrics.record_wait(borrowed - asked)
            try:
                return connection.execute(statement, parameters).all()
            except Exception as error:
                if repeatable or not _is_transient(error):
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
                if not places or not _is_refusal(error):
                    raise
            else:
                return connection

    def _record(self, statement: Statement, failure: str | None, seconds: float) -> None:
        description = self._descriptions.get(statement)
        if description is None:
            description = self._descriptions[statement] = _describe(statement)
        operation, collection, text = description
        self._metrics.record_statement(self._name, operation, collection, failure, seconds)
        if self._traces is not None:
            self._traces.record_statement(self._name, operation, collection, failure, seconds, text)

    def _look(self) -> Pool:
        pool = self.engine.pool
        assert isinstance(pool, QueuePool)  # noqa: S101  what SQLAlchemy makes for a pool_size
        return Pool(pool.checkedout(), pool.checkedin(), self.size, self.gate.waiting)

    def _forget(self, attempt: asyncio.Task[Sequence[Row[Any]]]) -> None:
        self._attempts.discard(attempt)
        self.gate.leave()
        if not attempt.cancelled():
            attempt.exception()  # marks it as seen, where the caller has long left

    def _note_answer(self, now: float) -> None:
        self.gate.note_answer(now)
        if self._failures and now - self._failed_at > CALM:
            log.info("database answers again", after_seconds=round(self._failed_at - min(self._failures.values()), 3))
            self._failures.clear()

    def _note_failure(self, now: float, error: BaseException) -> None:
        """Log each kind of failure once in an outage: what it begins with is seldom what it goes on with."""
        kind = (type(error).__name__, sqlstate(error))
        self._failed_at = now
        if kind not in self._failures:
            self._failures[kind] = now
            log.warning("database does not answer", error=kind[0], sqlstate=kind[1])

    async def fill(self) -> None:
        """Open every connection of the pool: later, in a failover or a password rotation, a new one may not be had."""
        deadline = asyncio.get_running_loop().time() + RETRY_BUDGET
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
    """Give a statement's operation, its table (both from the construct), and its text with placeholders."""
    elements = list(visitors.iterate(statement))
    tables = [element.name for element in elements if isinstance(element, TableClause)]
    changes = [element for element in elements if isinstance(element, UpdateBase)]  # within others: what it is for
    text = str(statement.compile(dialect=_dialect))
    return next(iter(changes), statement).__visit_name__.upper(), next(iter(tables), None), text


def _error_type(error: BaseException) -> str:
    """Name an error for a metric: by its SQLSTATE, or by its class where it never came from the server."""
    origin = _origin(error)
    return sqlstate(origin) or type(origin).__qualname__


def _origin(error: BaseException) -> BaseException:
    return (isinstance(error, DatabaseUnavailableError) and error.__cause__) or error


def _is_refusal(error: BaseException) -> bool:
    # The certificate says that the server is not the one we trust.
    return sqlstate(error) in _REFUSALS or isinstance(error, ssl.SSLCertVerificationError)


def _drop_useless_connections(context: ExceptionContext) -> None:
    error = context.original_exception
    if isinstance(error, OSError) or sqlstate(error) in _DISCONNECTS:
        context.is_disconnect = True  # and the others of the pool with it: what is silent or a standby is so for all
    else:
        # The driver knows of each connection that was closed; the others work, and perhaps cannot be replaced now.
        context.invalidate_pool_on_disconnect = False


def _is_transient(error: BaseException) -> bool:
    return (
        isinstance(error, OSError)  # refused, reset, unresolved, timed out: asyncpg and SQLAlchemy leave these bare
        or (isinstance(error, DBAPIError) and (error.connection_invalidated or sqlstate(error) in _TRANSIENT))
    )


def _translate(error: BaseException) -> BaseException:
    if isinstance(error, PoolTimeoutError):
        return OverloadedError("No connection to the database became free.")
    if not isinstance(error, DBAPIError):
        return error
    state = sqlstate(error) or ""
    if state in _NOT_THERE_YET or not state.startswith(_DEFECTS):
        return DatabaseUnavailableError("The database cannot do this now.")
    origin = error.orig.__cause__ if error.orig is not None else None
    constraint = getattr(origin, "constraint_name", None)
    return StatementRefusedError(f"{type(origin).__name__} ({state}, constraint {constraint}): {error.statement}")
