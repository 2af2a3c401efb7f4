"""Opens connections to PostgreSQL: over TLS, with the current password, and only to the newest primary."""

import asyncio
import contextlib
import errno
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from weakref import WeakSet

import asyncpg
import structlog
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from goals.limits import Limits

# part adoption
from goals.models import ADOPTED

# end adoption
from goals.settings import Settings
from goals.sqlstates import drop_useless_connections, is_rejection, sqlstate

log = structlog.get_logger(__name__)


class Timeline(NamedTuple):
    """A primary's system identifier and timeline: each promotion starts a new timeline of the same system.

    `pg_upgrade`, or loading a dump, makes a new system, whose timelines cannot be compared with those of another. A
    restore keeps the system, and takes a newer timeline if it finds the others in the archive.
    """

    system: int
    number: int


class FormerPrimaryError(ConnectionError):
    """The server is not the primary, or a newer primary is known, so it is used for neither reads nor writes."""


class Lineage:
    """The newest timeline that this process has seen, and the open connections to the primary on it."""

    def __init__(self) -> None:
        self.newest: Timeline | None = None
        self._open: WeakSet[asyncpg.Connection] = WeakSet()

    def admit(self, connection: asyncpg.Connection, timeline: Timeline) -> None:
        """Accept a new connection to `DB_HOST`, which decides what the system is; refuse a former primary."""
        newest = self.newest
        if newest is not None and newest.system == timeline.system and newest.number > timeline.number:
            raise FormerPrimaryError(errno.ESTALE, "another server has been promoted since")
        self.newest = connection.timeline = timeline
        self._close_older()
        self._open.add(connection)

    def learn(self, timeline: Timeline) -> None:
        """Note a server's timeline; if it is newer, close the connections to older ones."""
        newest = self.newest
        if newest is not None and timeline.system == newest.system and timeline.number > newest.number:
            self.newest = timeline
            self._close_older()

    def holds(self, connection: asyncpg.Connection) -> bool:
        """Whether a connection still leads to the newest known primary."""
        return connection.timeline in {None, self.newest}

    def _close_older(self) -> None:
        for connection in self._open:
            if not self.holds(connection):
                connection.terminate()


# Any role may run this.
_PLACE = """
SELECT system_identifier, CASE WHEN pg_is_in_recovery() THEN 0
ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END AS number FROM pg_control_system()
"""


_UNKNOWN = (asyncpg.UndefinedFunctionError, asyncpg.InsufficientPrivilegeError, asyncpg.FeatureNotSupportedError)
"""Errors that another product, or a managed cloud service, may return for that query."""


def connect_arguments(
    settings: Settings, limits: Limits, address: str | None = None, password: str | None = None
) -> dict[str, Any]:
    """Return the keyword arguments for `asyncpg.connect`; each call without a password reads it again.

    `address` selects one server; its certificate must still be valid for `DB_HOST`.
    """
    return {
        "host": address or settings.db_host,
        "port": settings.db_port,
        "user": settings.db_username,
        "password": settings.password() if password is None else password,
        "database": settings.db_name,
        "ssl": _tls(settings),
        "timeout": limits.connect_timeout,
    }


async def connect(
    settings: Settings, limits: Limits, *, address: str | None = None, password: str | None = None, **options: Any
) -> asyncpg.Connection:
    """Open a connection to the database of the settings; `options` are further arguments for `asyncpg.connect`."""
    connection = await asyncpg.connect(**connect_arguments(settings, limits, address, password), **options)
    # part adoption
    await look_for_adopted(connection)
    return connection
    # end adoption


# part adoption
async def look_for_adopted(connection: asyncpg.Connection) -> None:
    """Let the session find an adopted table before the view that replaces it under its former name."""
    try:
        await connection.execute(
            f"SELECT set_config('search_path', '{ADOPTED}, ' || current_setting('search_path'), false)"
        )
    except BaseException:
        connection.terminate()
        raise


# end adoption
def _tls(settings: Settings) -> ssl.SSLContext | str | bool:
    if settings.ssl == "disable":
        return False
    if settings.ssl in {"verify-ca", "verify-full"}:
        context = ssl.create_default_context(cafile=settings.db_ca_file)
        context.check_hostname = settings.ssl == "verify-full"
        context.__class__ = _Context
        context.name = settings.db_host  # type: ignore[attr-defined]  # a `_Context` has a name
        return context
    return settings.ssl


class _Context(ssl.SSLContext):
    """Verifies a server's certificate against the host name, even if the connection is made by address."""

    name: str

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002  ssl's own signature
        server_hostname: str | bytes | None = None,  # noqa: ARG002  likewise
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.name, session)


def make_engine(connect: Callable[[], Awaitable[asyncpg.Connection]], size: int, patience: float) -> AsyncEngine:
    """Make a pool of `size` connections for single statements in autocommit; the connections are used in turn."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        isolation_level="AUTOCOMMIT",
        pool_size=size,
        max_overflow=0,
        pool_timeout=patience,
        hide_parameters=True,
        pool_reset_on_return=None,  # nothing is open after a single statement in autocommit
    )
    event.listen(engine.sync_engine, "handle_error", drop_useless_connections)
    return engine


def explain(error: BaseException, settings: Settings) -> str:
    """Explain in one line why there is no connection, or why PostgreSQL refused something, and what to do."""
    where = f"PostgreSQL at {settings.db_host}, port {settings.db_port}"
    origin = (isinstance(error, DBAPIError) and error.orig and error.orig.__cause__) or error
    message = str(origin).partition("\n")[0]
    match origin:
        case ConnectionError() if "SSL upgrade" in message and settings.ssl in {"allow", "prefer"}:
            line = f"{settings.db_host}, port {settings.db_port} is not a PostgreSQL server: check DB_HOST and DB_PORT"
        case ConnectionError() if "SSL upgrade" in message:
            line = f"{where} has no TLS, but SSL={settings.ssl} requires it: turn it on there, or set SSL=disable"
        case ssl.SSLCertVerificationError():
            line = f"no TLS with {where} ({origin.verify_message}): check DB_CA_FILE and DB_HOST"
        case ssl.SSLError():
            reason = origin.reason or type(origin).__name__
            line = f"no TLS with {where} ({reason}): check SSL, DB_CA_FILE and the files in ~/.postgresql"
        case PermissionError() if settings.ssl != "disable" and not str(settings.db_host).startswith("/"):
            line = f"cannot read a client key in ~/.postgresql ({origin.strerror}): let this account read that folder"
        case OSError():
            line = f"cannot reach {where} ({origin.strerror or type(origin).__name__}): check DB_HOST and the server"
        case asyncpg.ProtocolViolationError() if "startup parameter" in message:
            line = f"{where} is a pooler ({message}): set DB_HOST to PostgreSQL itself"
        case asyncpg.ConnectionDoesNotExistError():
            line = f"{where} closed the connection: check that it is PostgreSQL, and see its log"
        case asyncpg.PostgresError():
            line = f"PostgreSQL refused ({origin.sqlstate}): {message}"
        case _:
            line = f"{type(origin).__name__}: {message}"
    return line


def handle_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Do not log a lost connection that nothing awaits any longer: the code that opened it has already seen the error.

    A cancelled TLS handshake of asyncpg leaves a future behind whose exception nothing can retrieve.
    """
    if not (
        isinstance(context.get("future"), asyncio.Future) and isinstance(context.get("exception"), ConnectionError)
    ):
        loop.default_exception_handler(context)


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """Closes without a Terminate message: with a frozen or vanished server, a clean close would hang."""

    timeline: Timeline | None = None

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109  asyncpg's own signature
        self.terminate()


class Connector:
    """Opens connections with the password that is in the file now, or else with the last one that was accepted.

    A rotation changes the server and the file one after the other. If the file changes first, a connection that is
    lost before the server follows can be replaced only with the former password. After a refusal, no connection is
    attempted for a moment: otherwise every statement would retry for each place in the pool that lost its connection.
    """

    def __init__(
        self, settings: Settings, limits: Limits, *, lineage: Lineage | None = None, address: str | None = None
    ) -> None:
        """Connect to `DB_HOST`, where `lineage` rejects former primaries, or to one server by its `address`."""
        self._settings = settings
        self._limits = limits
        self._lineage = lineage
        self._address = address
        self.accepted: str | None = None
        self._uses_former = False
        self._rejection: Exception | None = None
        self._shut_until = 0.0

    async def open(self) -> asyncpg.Connection:
        """Open a connection; after a refusal, raise the same error for `rejected_backoff` without trying again."""
        loop = asyncio.get_running_loop()
        if self._rejection is not None and loop.time() < self._shut_until:
            raise self._rejection.with_traceback(None)
        try:
            connection = await self._log_in()
        except (asyncpg.PostgresError, OSError) as error:
            if is_rejection(error):
                if self._rejection is None:
                    log.warning("database refuses connections", error=type(error).__name__, sqlstate=sqlstate(error))
                self._rejection, self._shut_until = error, loop.time() + self._limits.rejected_backoff
            raise
        if self._rejection is not None:
            self._rejection = None
            log.info("database accepts connections again")
        return connection

    async def _log_in(self) -> asyncpg.Connection:
        password = self._settings.password()
        try:
            connection = await self._connect(password)
        except asyncpg.InvalidPasswordError:
            if self.accepted in {None, password}:
                raise
            connection = await self._connect(self.accepted)
            if not self._uses_former:
                self._uses_former = True
                log.warning("database rejects the new password but accepts the former one", sqlstate="28P01")
            return connection
        if self._uses_former:
            self._uses_former = False
            log.info("database accepts the new password")
        self.accepted = password
        return connection

    async def _connect(self, password: str | None) -> asyncpg.Connection:
        connection = await connect(
            self._settings,
            self._limits,
            address=self._address,
            password=password,
            command_timeout=self._limits.command_timeout,
            connection_class=_Connection,
            server_settings={
                "application_name": "goals",
                "jit": "off",
                "statement_timeout": str(int(self._limits.statement_timeout * 1000)),
                "lock_timeout": "0",  # a role may have one; a group of adds sets its own
            },
        )
        if self._lineage is not None:
            await self._check_place(connection, self._lineage)
        return connection

    async def _check_place(self, connection: asyncpg.Connection, lineage: Lineage) -> None:
        try:
            # A PostgreSQL-compatible server may lack these functions, or deny the right to call them.
            with contextlib.suppress(*_UNKNOWN):
                place = await connection.fetchrow(_PLACE)
                if not place["number"]:
                    raise FormerPrimaryError(errno.ESTALE, "the server is a standby, not the primary")
                lineage.admit(connection, Timeline(place["system_identifier"], place["number"]))
        except BaseException:
            connection.terminate()
            raise
