"""Classifies database errors: whether a statement may be retried, and which error its caller gets."""

import ssl

import asyncpg
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, StatementError, TimeoutError as PoolTimeoutError

from goals.errors import DatabaseUnavailableError, LockedError, OverloadedError, StatementRefusedError

# SQLSTATEs after which the connection must not return to the pool: a standby (25006) would answer pings forever, and
# a server that shuts down or starts up (57P0x) will not become the primary on this connection.
_DISCONNECTS = frozenset({"25006", "57P01", "57P02", "57P03"})
# Transient SQLSTATEs, after which the same statement may be retried: those above, lost connections (08), a rotated
# password (28P01), deadlocks (40), too many connections (53300), a plan that is older than a migration (0A000).
_TRANSIENT = _DISCONNECTS | {"0A000", "08000", "08001", "08003", "08004", "08006", "28P01", "40001", "40P01", "53300"}
# Refusals of a new connection that leave existing connections working: wrong password, too many connections.
_REJECTIONS = frozenset({"28P01", "53300"})
# Classes caused by our statement or its data: a bug of ours, never an outage. The exceptions within 42 are 42P01,
# 42703 and 42501: the table, a column or a privilege does not exist yet.
_DEFECTS = ("22", "23", "42")
_NOT_THERE_YET = frozenset({"42501", "42703", "42P01"})
LOCK_NOT_AVAILABLE = "55P03"
HELD = frozenset({LOCK_NOT_AVAILABLE, "57014"})
"""Another transaction, perhaps an earlier attempt, held a lock for longer than the statement could wait."""


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE (PostgreSQL, appendix A) of an error of SQLAlchemy or asyncpg, or None."""
    if not isinstance(error, DBAPIError):
        return getattr(error, "sqlstate", None)
    # For a plan that is older than a migration (0A000), only the driver's error has the code.
    return getattr(error.orig, "sqlstate", None) or getattr(getattr(error.orig, "__cause__", None), "sqlstate", None)


def error_type(error: BaseException) -> str:
    """Return an error's name for a metric: its SQLSTATE, or its class if it did not come from the server."""
    origin = origin_of(error)
    return sqlstate(origin) or type(origin).__qualname__


def origin_of(error: BaseException) -> BaseException:
    """Return the cause of a `DatabaseUnavailableError`, or any other error itself."""
    return (isinstance(error, DatabaseUnavailableError) and error.__cause__) or error


def is_rejection(error: BaseException) -> bool:
    """Whether the server refused a new connection, while existing connections may still work."""
    # An invalid certificate means that we do not trust the server.
    return sqlstate(error) in _REJECTIONS or isinstance(error, ssl.SSLCertVerificationError)


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed if it is retried."""
    return (
        # Refused, reset, unresolved, timed out, or lost during setup: asyncpg and SQLAlchemy do not wrap these.
        isinstance(error, (OSError, asyncpg.InterfaceError))
        or (isinstance(error, DBAPIError) and (error.connection_invalidated or sqlstate(error) in _TRANSIENT))
    )


def is_loss(error: BaseException) -> bool:
    """Whether there was no primary, rather than a primary that refused something."""
    if is_rejection(error):
        return False
    return (
        isinstance(error, (OSError, asyncpg.InterfaceError))
        or (isinstance(error, DBAPIError) and error.connection_invalidated)
        or (sqlstate(error) or "").startswith("08")
        or sqlstate(error) in _DISCONNECTS
    )


def drop_useless_connections(context: ExceptionContext) -> None:
    """Handle SQLAlchemy's `handle_error`: decide which connections of the pool to drop after this error."""
    error = context.original_exception
    if isinstance(error.__cause__, asyncpg.InternalClientError):
        # The connection was being closed, for example to a former primary; asyncpg has no other error for it.
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
    elif isinstance(error, OSError) or sqlstate(error) in _DISCONNECTS:
        # Drop the whole pool: a server that is silent, or a standby, is so for all connections.
        context.is_disconnect = context.invalidate_pool_on_disconnect = True
    else:
        # The driver notices each closed connection; the others work, and perhaps cannot be replaced now.
        context.invalidate_pool_on_disconnect = False


def translate(error: BaseException) -> BaseException:
    """Return the domain's error for one that is not retried; an unknown error is returned as it is."""
    if isinstance(error, PoolTimeoutError):
        return OverloadedError("No connection to the database became free.")
    if not isinstance(error, DBAPIError):
        if isinstance(error, StatementError):  # SQLAlchemy could not convert the values to parameters
            return StatementRefusedError(f"{type(error.orig).__name__}: {error.statement}")
        return error
    state = sqlstate(error) or ""
    if state == LOCK_NOT_AVAILABLE:
        return LockedError("Another transaction has locked what this one needs.")
    if state in _NOT_THERE_YET or not state.startswith(_DEFECTS):
        return DatabaseUnavailableError("The database cannot do this now.")
    origin = error.orig.__cause__ if error.orig is not None else None
    constraint = getattr(origin, "constraint_name", None)
    return StatementRefusedError(f"{type(origin).__name__} ({state}, constraint {constraint}): {error.statement}")
