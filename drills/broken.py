"""The service with one safeguard removed, to show that a drill detects the damage.

`python -m drills.broken NAME...` works like `python -m goals serve`. No setting of the service can do this: this
module changes the service's limits or replaces one of its functions before it serves.
"""

import asyncio
import contextlib
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from uuid import UUID

import structlog
import uuid_utils
from sqlalchemy import insert

from goals import app, connections, logs, sqlstates, store, writes
from goals.connections import Lineage
from goals.database import Database
from goals.errors import DatabaseUnavailableError, LockedError
from goals.limits import Limits
from goals.models import Goal, NewGoal, goals
from goals.settings import Settings, read_settings
from goals.standbys import Reply, Standbys

MODULE = "drills.broken"
FEW_WRITES = 48


def retry_without_a_key() -> None:
    """Statements are retried after a failure, but nothing distinguishes a retry from another goal with that name."""

    async def insert_goal(database: Database, values: Mapping[str, object], key: UUID, fingerprint: bytes) -> Goal:
        (row,) = await database.fetch(insert(goals).values(**values).returning(*store._COLUMNS))
        return Goal._make(row)

    store.insert_goal = insert_goal
    store.insert_goals = refuse_groups


async def refuse_groups(database: Database, new: Iterable[NewGoal], stall: float) -> NoReturn:
    """Refuse groups, because the variant changes single adds: each add then gets its own statement."""
    raise LockedError("There are no groups here.")


def answer_before_the_commit() -> None:
    """The adds of a group are acknowledged when their statement is sent."""
    insert_goals = store.insert_goals
    sent = set()

    async def answer(database: Database, new: Iterable[NewGoal], stall: float) -> tuple[dict[UUID, Goal], None]:
        adds = list(new)
        statement = asyncio.create_task(insert_goals(database, adds, stall))
        sent.add(statement)
        statement.add_done_callback(lambda done: done.cancelled() or done.exception())
        return {add.key: Goal(0, str(add.values["goal_name"]), None, 1) for add in adds}, None

    store.insert_goals = answer


def let_a_group_fail_together() -> None:
    """If one add of a group has to wait or is refused, all of them fail."""
    writes.UNDONE = ()  # type: ignore[assignment]  # that is the damage


def stop_without_a_drain() -> None:
    """SIGTERM stops the listeners immediately, and no client is asked to reconnect elsewhere."""
    os.environ["GOALS_DRAIN_SECONDS"] = "0"


def wait_without_a_gate() -> Limits:
    """Any number of callers may wait for the database, for any time: an unbounded queue."""
    return Limits(gate_queue=1_000_000, gate_timeout=60.0, retry_budget=60.0, request_deadline=60.0)


def read_the_password_once() -> None:
    """The password is read at start; later changes of the mounted file are ignored."""
    Settings.password = functools.cache(Settings.password)  # type: ignore[method-assign]  # that is the damage


def read_the_authority_once() -> None:
    """The CA is read at start; later changes of the mounted file are ignored."""
    connections._tls = functools.cache(connections._tls)


def forget_the_former_password() -> None:
    """Only the password that is in the file now is tried."""
    connections.Connector.accepted = property(lambda _: None, lambda _, _password: None)  # type: ignore[assignment]  # likewise


def wait_without_time_limits() -> Limits:
    """Statements and requests may take any time."""
    # 0 means no limit in PostgreSQL.
    return Limits(statement_timeout=0.0, command_timeout=60.0, retry_budget=60.0, request_deadline=60.0)


def send_nothing_again() -> None:
    """A statement that was interrupted is reported as an error immediately."""
    sqlstates.is_transient = lambda error: False  # noqa: ARG005  its type includes the name
    translate = sqlstates.translate

    def give_up(error: BaseException) -> BaseException:
        translated = translate(error)
        return DatabaseUnavailableError("It failed.") if isinstance(translated, OSError) else translated

    sqlstates.translate = give_up


def jump_by_an_hour() -> None:
    """No safeguard is removed, but the machine misbehaves: SIGUSR1 moves Python's clocks an hour ahead, then back."""
    clock, clock_ns, make_uuid = time.time, time.time_ns, uuid_utils.uuid7
    ahead = 0

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # a plain one, as JSON needs it
            return datetime.now(tz) + timedelta(seconds=ahead)

    def jump(_number: int, _frame: object) -> None:
        nonlocal ahead
        ahead = 3600 - ahead

    time.time = lambda: clock() + ahead
    time.time_ns = lambda: clock_ns() + ahead * 1_000_000_000
    uuid_utils.uuid7 = lambda: make_uuid(nanoseconds=time.time_ns())  # type: ignore[assignment, misc]  # as it is called
    logs.datetime = Shifted  # type: ignore[attr-defined]  # what it imported
    structlog.processors.datetime = SimpleNamespace(datetime=Shifted, timezone=timezone)  # type: ignore[assignment, attr-defined]  # likewise
    signal.signal(signal.SIGUSR1, jump)


def accept_a_former_primary() -> None:
    """A server that says it is the primary is used for reads and writes, even if a newer timeline was seen."""
    Lineage.admit = lambda self, connection, timeline: None  # type: ignore[method-assign]  # noqa: ARG005  likewise
    Lineage.learn = lambda self, timeline: None  # type: ignore[method-assign]  # noqa: ARG005  likewise


def read_before_replay() -> None:
    """The standby that has received the most WAL is read immediately, although it has not replayed everything yet."""

    async def wait_for_nothing(self: Standbys, reply: Reply) -> None: ...

    Standbys._wait_for_replay = wait_for_nothing  # type: ignore[method-assign]  # likewise


def read_names_from_a_file() -> None:
    """No safeguard is removed, but names are resolved from the file DRILL_NAMES; without the file, no name resolves."""
    resolve = socket.getaddrinfo
    file = Path(os.environ["DRILL_NAMES"])

    def find(host: str, port: int, *arguments: int, **more: int) -> object:
        with contextlib.suppress(ValueError):
            ip_address(host)
            return resolve(host, port, *arguments, **more)
        try:
            lines = [line.split() for line in file.read_text().splitlines()]
        except FileNotFoundError:
            lines = []
        found = [address for name, *addresses in lines if name == host for address in addresses]
        if not found:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)) for address in found]

    socket.getaddrinfo = find  # type: ignore[assignment]  # as it is called


def let_few_writes_wait() -> Limits:
    """No safeguard is removed, but the queue is so short that a few programs fill it."""
    return Limits(write_queue=FEW_WRITES)


def stamp_goals_itself() -> None:
    """A goal's time comes from the replica's clock, which jumps as in `jump_by_an_hour`, instead of PostgreSQL's."""
    jump_by_an_hour()
    insert_goal = store.insert_goal

    async def stamp(database: Database, values: Mapping[str, object], key: UUID, fingerprint: bytes) -> Goal:
        now = logs.datetime.now(UTC)  # type: ignore[attr-defined]  # what it imported
        return await insert_goal(database, {**values, "created_at": now}, key, fingerprint)

    store.insert_goal = stamp
    store.insert_goals = refuse_groups


WAYS: dict[str, Callable[[], Limits | None]] = {
    way.__name__: way
    for way in (
        retry_without_a_key,
        answer_before_the_commit,
        let_a_group_fail_together,
        stop_without_a_drain,
        wait_without_a_gate,
        read_the_password_once,
        read_the_authority_once,
        forget_the_former_password,
        wait_without_time_limits,
        send_nothing_again,
        jump_by_an_hour,
        let_few_writes_wait,
        accept_a_former_primary,
        read_before_replay,
        read_names_from_a_file,
        stamp_goals_itself,
    )
}


if __name__ == "__main__":
    changed = [WAYS[way]() for way in sys.argv[1:]]
    limits = next((one for one in changed if one is not None), Limits())
    settings = read_settings()
    logs.configure(settings.goals_log_format)
    asyncio.run(app.serve(settings, limits))
