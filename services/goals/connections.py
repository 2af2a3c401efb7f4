"""How a connection to PostgreSQL is opened: TLS, the password of the moment, and a pause after a refusal."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

import asyncpg
import structlog
from sqlalchemy.exc import DBAPIError

from goals.limits import Limits

# part adoption
from goals.models import ADOPTED

# end adoption
from goals.settings import Settings
from goals.sqlstates import is_rejection, sqlstate

log = structlog.get_logger(__name__)


def connect_arguments(settings: Settings, limits: Limits) -> dict[str, Any]:
    """Keyword arguments for `asyncpg.connect`; the password is read again at each call."""
    return {
        "host": settings.db_host,
        "port": settings.db_port,
        "user": settings.db_username,
        "password": settings.password(),
        "database": settings.db_name,
        "ssl": _tls(settings),
        "timeout": limits.connect_timeout,
    }


# part adoption
async def look_for_adopted(connection: asyncpg.Connection) -> None:
    """Let the session find an adopted table before the view that stands in its former place."""
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
        return context
    return settings.ssl


def explain(error: BaseException, settings: Settings) -> str:
    """Say in one line why there is no connection, or why PostgreSQL refused something, and what to do."""
    where = f"PostgreSQL at {settings.db_host}, port {settings.db_port}"
    origin = (isinstance(error, DBAPIError) and error.orig and error.orig.__cause__) or error
    message = str(origin).partition("\n")[0]
    match origin:
        case ConnectionError() if "SSL upgrade" in message and settings.ssl in {"allow", "prefer"}:
            line = (
                f"what is at {settings.db_host}, port {settings.db_port} is not PostgreSQL: check DB_HOST and DB_PORT"
            )
        case ConnectionError() if "SSL upgrade" in message:
            line = f"{where} has no TLS, and SSL={settings.ssl} asks for it: turn it on there, or set SSL=disable"
        case ssl.SSLCertVerificationError():
            line = f"no TLS with {where} ({origin.verify_message}): check DB_CA_FILE and DB_HOST"
        case ssl.SSLError():
            reason = origin.reason or type(origin).__name__
            line = f"no TLS with {where} ({reason}): check SSL, DB_CA_FILE and the files in ~/.postgresql"
        case PermissionError() if settings.ssl != "disable" and not str(settings.db_host).startswith("/"):
            line = (
                f"a client's key in ~/.postgresql cannot be read ({origin.strerror}): let this account read that folder"
            )
        case OSError():
            line = f"cannot reach {where} ({origin.strerror or type(origin).__name__}): check DB_HOST and that it is up"
        case asyncpg.ProtocolViolationError() if "startup parameter" in message:
            line = f"{where} is a pooler ({message}): let DB_HOST name PostgreSQL itself"
        case asyncpg.ConnectionDoesNotExistError():
            line = f"{where} hung up: check that it is PostgreSQL, and its log"
        case asyncpg.PostgresError():
            line = f"PostgreSQL refused ({origin.sqlstate}): {message}"
        case _:
            line = f"{type(origin).__name__}: {message}"
    return line


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """Closes without a goodbye: a server that froze or vanished would let us wait for its answer."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109  asyncpg's own signature
        self.terminate()


class Connector:
    """Opens connections with the password that the file holds now, and else with the one that was accepted last.

    A rotation changes the server and the file one after the other. Where the file comes first, every connection that
    is lost between them can be replaced only by the former password. After a refusal none is asked for during a
    moment: each place in the pool whose connection was lost would ask again for every statement.
    """

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._settings = settings
        self._limits = limits
        self.accepted: str | None = None
        self._uses_former = False
        self._rejection: Exception | None = None
        self._shut_until = 0.0

    async def open(self) -> asyncpg.Connection:
        """Open a connection; a refusal is remembered for `rejected_backoff`, and raised again until then."""
        loop = asyncio.get_running_loop()
        if self._rejection is not None and loop.time() < self._shut_until:
            raise self._rejection.with_traceback(None)
        try:
            connection = await self._log_in()
        except (asyncpg.PostgresError, OSError) as error:
            if is_rejection(error):
                if self._rejection is None:
                    log.warning("database refuses a connection", error=type(error).__name__, sqlstate=sqlstate(error))
                self._rejection, self._shut_until = error, loop.time() + self._limits.rejected_backoff
            raise
        if self._rejection is not None:
            self._rejection = None
            log.info("database accepts connections again")
        return connection

    async def _log_in(self) -> asyncpg.Connection:
        arguments = connect_arguments(self._settings, self._limits)
        password = arguments["password"]
        try:
            connection = await self._connect(arguments)
        except asyncpg.InvalidPasswordError:
            if self.accepted in {None, password}:
                raise
            connection = await self._connect({**arguments, "password": self.accepted})
            if not self._uses_former:
                self._uses_former = True
                log.warning("database rejects the password and accepts the former one", sqlstate="28P01")
            return connection
        if self._uses_former:
            self._uses_former = False
            log.info("database accepts the password")
        self.accepted = password
        return connection

    async def _connect(self, arguments: Mapping[str, Any]) -> asyncpg.Connection:
        connection = await asyncpg.connect(
            **arguments,
            command_timeout=self._limits.command_timeout,
            connection_class=_Connection,
            server_settings={
                "application_name": "goals",
                "jit": "off",
                "statement_timeout": str(int(self._limits.statement_timeout * 1000)),
                "lock_timeout": "0",  # a role may have one; a group of adds sets its own
            },
        )
        # part adoption
        await look_for_adopted(connection)
        return connection
        # end adoption
