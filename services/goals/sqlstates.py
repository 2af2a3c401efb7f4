"""What an error of the database means: whether its statement may be sent again, and what its caller gets."""

import ssl

import asyncpg
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, StatementError, TimeoutError as PoolTimeoutError

from goals.errors import DatabaseUnavailableError, LockedError, OverloadedError, StatementRefusedError

# SQLSTATEs after which the connection must not go back to the pool: a standby (25006) answers pings forever, and a
# server that shuts down or starts up (57P0x) will not become the one we want.
_DISCONNECTS = frozenset({"25006", "57P01", "57P02", "57P03"})
# SQLSTATEs that pass by themselves, so that the same statement may be sent again: those, lost connections (08),
# a rotated password (28P01), deadlocks (40), too many connections (53300), a plan older than a migration (0A000).
_TRANSIENT = _DISCONNECTS | {"0A000", "08000", "08001", "08003", "08004", "08006", "28P01", "40001", "40P01", "53300"}
# How a new connection may be refused while those that exist go on: another password, too many connections.
_REJECTIONS = frozenset({"28P01", "53300"})
# Classes that blame our statement or the data in it: defects of ours, never an outage. 42P01 and 42703 are the
# exception within 42, with 42501: the table, a column or a right is not there yet.
_DEFECTS = ("22", "23", "42")
_NOT_THERE_YET = frozenset({"42501", "42703", "42P01"})
LOCK_NOT_AVAILABLE = "55P03"
HELD = frozenset({LOCK_NOT_AVAILABLE, "57014"})
"""Somebody held a lock for longer than the statement could wait: an earlier attempt of it, perhaps."""


def sqlstate(error: BaseException) -> str | None:
    """Give the SQLSTATE (PostgreSQL, appendix A) behind an error of SQLAlchemy or asyncpg, where there is one."""
    if not isinstance(error, DBAPIError):
        return getattr(error, "sqlstate", None)
    # For a plan that is older than a migration (0A000) SQLAlchemy leaves the code with the driver's error.
    return getattr(error.orig, "sqlstate", None) or getattr(getattr(error.orig, "__cause__", None), "sqlstate", None)


def error_type(error: BaseException) -> str:
    """Name an error for a metric: by its SQLSTATE, or by its class where it never came from the server."""
    origin = origin_of(error)
    return sqlstate(origin) or type(origin).__qualname__


def origin_of(error: BaseException) -> BaseException:
    """The error behind a `DatabaseUnavailableError`, or any other error itself."""
    return (isinstance(error, DatabaseUnavailableError) and error.__cause__) or error


def is_rejection(error: BaseException) -> bool:
    """Tell whether the server refused a new connection, while those that exist may go on."""
    # The certificate says that the server is not the one we trust.
    return sqlstate(error) in _REJECTIONS or isinstance(error, ssl.SSLCertVerificationError)


def is_transient(error: BaseException) -> bool:
    """Tell whether the same statement may succeed if it is sent again."""
    return (
        # Refused, reset, unresolved, timed out, or lost while it was set up: asyncpg and SQLAlchemy leave these bare.
        isinstance(error, (OSError, asyncpg.InterfaceError))
        or (isinstance(error, DBAPIError) and (error.connection_invalidated or sqlstate(error) in _TRANSIENT))
    )


def is_loss(error: BaseException) -> bool:
    """Tell whether there was no primary, rather than one that refused something."""
    if is_rejection(error):
        return False
    return (
        isinstance(error, (OSError, asyncpg.InterfaceError))
        or (isinstance(error, DBAPIError) and error.connection_invalidated)
        or (sqlstate(error) or "").startswith("08")
        or sqlstate(error) in _DISCONNECTS
    )


def drop_useless_connections(context: ExceptionContext) -> None:
    """SQLAlchemy's `handle_error`: which connections of the pool are given up after this error."""
    error = context.original_exception
    if isinstance(error.__cause__, asyncpg.InternalClientError):
        # It was being closed, as those to a former primary are; asyncpg has no other word for it.
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
    elif isinstance(error, OSError) or sqlstate(error) in _DISCONNECTS:
        # And the others of the pool with it: what is silent, or a standby, is so for all.
        context.is_disconnect = context.invalidate_pool_on_disconnect = True
    else:
        # The driver knows of each connection that was closed; the others work, and perhaps cannot be replaced now.
        context.invalidate_pool_on_disconnect = False


def translate(error: BaseException) -> BaseException:
    """The domain's error for one that is not sent again; an unknown one stays as it is."""
    if isinstance(error, PoolTimeoutError):
        return OverloadedError("No connection to the database became free.")
    if not isinstance(error, DBAPIError):
        if isinstance(error, StatementError):  # SQLAlchemy could not make parameters of the values
            return StatementRefusedError(f"{type(error.orig).__name__}: {error.statement}")
        return error
    state = sqlstate(error) or ""
    if state == LOCK_NOT_AVAILABLE:
        return LockedError("Another transaction holds what this one needs.")
    if state in _NOT_THERE_YET or not state.startswith(_DEFECTS):
        return DatabaseUnavailableError("The database cannot do this now.")
    origin = error.orig.__cause__ if error.orig is not None else None
    constraint = getattr(origin, "constraint_name", None)
    return StatementRefusedError(f"{type(origin).__name__} ({state}, constraint {constraint}): {error.statement}")
