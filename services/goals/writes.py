"""Lets adds that arrive while others are being committed share the next statement, and therefore one commit."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from goals import store
from goals.database import Database
from goals.errors import DatabaseUnavailableError, LockedError, OverloadedError, StatementRefusedError
from goals.gate import Turn
from goals.limits import Limits
from goals.models import Goal, NewGoal
from goals.telemetry import GroupMetrics

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from goals.traces import Traces

UNDONE = (LockedError, StatementRefusedError)
"""After these errors, none of the group's adds was done, and each is tried alone."""


@dataclass(slots=True, eq=False)
class _Add:
    new: NewGoal
    size: int
    turn: Turn
    goal: Goal | None = None
    """None after its turn means that it is tried alone: its group was undone, or its key was used before."""
    statement: "SpanContext | None" = None
    # The statement's log lines and spans belong to the request of the first add.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class Writes:
    """Adds goals, alone or in a group with those that arrive meanwhile; each call returns once its goal is committed.

    No group waits for a timer. At most `groups` statements run concurrently; one that takes longer than `group_turn` no
    longer counts, so that the next one need not wait for it. Groups grow while their statements are quick: if every
    row is slow, a big group would exceed the statement's time limit.
    """

    def __init__(
        self, database: Database, limits: Limits, metrics: GroupMetrics, traces: "Traces | None" = None
    ) -> None:
        self._database, self._gate, self._limits = database, database.gate, limits
        self._metrics, self._traces = metrics, traces
        self._waiting: deque[_Add] = deque()
        self._under_way: dict[object, asyncio.TimerHandle] = {}
        self._groups: set[asyncio.Task[None]] = set()
        self._most = 1
        self._alone = 0.0

    async def add(self, values: Mapping[str, object], key: UUID, fingerprint: bytes) -> Goal:
        """Add a goal like `store.insert_goal`, with the same errors."""
        loop, new = asyncio.get_running_loop(), NewGoal(values, key, fingerprint)
        if len(self._under_way) < self._limits.groups:
            return await self._add_alone(new)
        turn = self._gate.expect(self._database.deadline(write=True), write=True)
        add = _Add(new, sum(len(str(value).encode(errors="replace")) for value in values.values()), turn)
        self._waiting.append(add)
        try:
            await turn.future
        finally:
            self._gate.forget(turn)
        if add.goal is None:
            try:
                async with asyncio.timeout_at(turn.deadline):
                    return await self._insert(new)
            except (TimeoutError, OverloadedError):
                # The group may have been committed even if its answer was lost.
                raise self._database.unavailable("The database did not answer in time.", write=True) from None
        if self._traces is not None and add.statement is not None:
            self._traces.record_add(loop.time() - turn.came_at, add.statement)
        return add.goal

    async def _add_alone(self, new: NewGoal) -> Goal:
        began, me = asyncio.get_running_loop().time(), object()
        self._enter(me)
        try:
            goal = await self._insert(new)
        finally:
            self._leave(me)
        self._alone = asyncio.get_running_loop().time() - began
        return goal

    async def _insert(self, new: NewGoal) -> Goal:
        try:
            goal = await store.insert_goal(self._database, *new)
        except (DatabaseUnavailableError, LockedError, StatementRefusedError):
            self._metrics.record(1, "failed", 0.0)
            raise
        self._metrics.record(1, "committed", 0.0)
        return goal

    def _enter(self, statement: object) -> None:
        loop = asyncio.get_running_loop()
        self._under_way[statement] = loop.call_later(self._limits.group_turn, self._leave, statement)

    def _leave(self, statement: object) -> None:
        if statement in self._under_way:
            self._under_way.pop(statement).cancel()
        while len(self._under_way) < self._limits.groups and (adds := self._take()):
            group = asyncio.create_task(self._commit(adds), context=adds[0].context)
            self._enter(group)
            self._groups.add(group)  # the loop keeps no strong reference to a task
            group.add_done_callback(self._groups.discard)
            group.add_done_callback(self._leave)

    def _take(self) -> list[_Add]:
        """Take the adds that have waited longest: as many as fit, with the same columns as the first."""
        adds, size = list[_Add](), 0
        while self._waiting and len(adds) < self._most:
            add = self._waiting[0]
            size += add.size
            if adds and (size > self._limits.group_bytes or add.new.values.keys() != adds[0].new.values.keys()):
                break
            self._waiting.popleft()
            if not add.turn.future.done():  # else its client has left, or its deadline has passed
                self._gate.call(add.turn)
                adds.append(add)
        return adds

    async def _commit(self, adds: list[_Add]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        goals: dict[UUID, Goal] = {}
        span, error, outcome = None, None, "committed"
        one_each = {add.new.key: add.new for add in reversed(adds)}  # for equal keys, the first one
        try:
            goals, span = await store.insert_goals(self._database, one_each.values(), self._limits.group_stall)
            self._resize(len(adds), loop.time() - began)
        except UNDONE:
            outcome = "undone"
        except Exception as reason:  # noqa: BLE001  raised to the whole group
            error, outcome, self._most = reason, "failed", 1
        self._metrics.record(len(adds), outcome, began - adds[0].turn.came_at)
        for add in adds:
            add.goal, add.statement = goals.pop(add.new.key, None), span
            if add.turn.future.done():
                continue  # its client has left, or its deadline has passed
            if error is None:
                add.turn.future.set_result(None)
            else:
                add.turn.future.set_exception(error)

    def _resize(self, number: int, seconds: float) -> None:
        """Let the next group be bigger, or smaller if this one took too long for its size."""
        if number == 1:
            self._alone = seconds
        if seconds > max(self._limits.group_time, 1.5 * self._alone):
            self._most = max(1, self._most // 2)
        elif number == self._most:
            self._most = min(2 * self._most, self._limits.group_adds)
