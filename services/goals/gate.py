"""Admits callers to the database, one for each connection; the others wait in a bounded queue, in order."""

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field

from goals.errors import DatabaseUnavailableError, OverloadedError
from goals.limits import Limits


@dataclass(slots=True, eq=False)
class Turn:
    """A waiting caller: its future is done when its turn has come, and fails when waiting longer is pointless."""

    future: asyncio.Future[None]
    came_at: float
    deadline: float
    callers: int
    lane: "Lane"
    has_come: bool = False
    timer: asyncio.TimerHandle = field(init=False)


@dataclass(slots=True, eq=False)
class Lane:
    """One of the two lanes, reads and writes: writes may wait for a standby's confirmation while reads are answered."""

    kept: int
    """Places that are reserved for the other lane."""
    queue: deque[Turn] = field(default_factory=deque)
    """Turns that still wait."""
    waiting: int = 0
    under_way: int = 0
    busy_since: float = 0.0
    """When the lane last became busy; it is not updated until a statement has been answered."""
    answered_at: float = 0.0
    answering_since: float = 0.0
    last_acceptable: float = 0.0
    is_standing: bool = False


class Gate:
    """Admits `size` callers immediately, and the others in order of arrival (a connection pool alone is not fair).

    A caller waits at most `gate_timeout` while statements succeed, and until its own deadline while none does: then
    the database is down, perhaps only for a failover. Once it is back, the wait restarts from zero; for writes, once
    the writes that the failover delayed are done. While the primary is down, the gate is shut and admits nobody.
    Writes leave some places to reads, which continue while every commit waits for a standby.

    The queue absorbs bursts. If overload keeps it from emptying, it only adds delay: then only half of `size` may
    wait, until it has emptied (after Nichols and Jacobson: Controlling Queue Delay, 2012). In a failover, up to
    `write_queue` writes may wait in it for the primary.
    """

    def __init__(self, size: int, limits: Limits) -> None:
        self._limits = limits
        self._size = self._free = size
        self._reads, self._writes = Lane(kept=0), Lane(kept=min(limits.kept_for_reads, size - 1))
        self._turns: set[Turn] = set()
        self.is_shut = False
        """Whether the primary is down."""
        self._opened_at = -math.inf
        self._failing_since: float | None = None
        self._catching_up_until = -math.inf
        """After a failover, writes count as delayed until those that waited are done, but no later than this."""
        self._shutting: asyncio.Future[None] | None = None
        self.rejections = {"full": 0, "slow": 0, "down": 0}

    @property
    def waiting(self) -> int:
        """How many callers wait, including those in a group and those that wait for one."""
        return self._reads.waiting + self._writes.waiting

    @property
    def answered_at(self) -> float:
        """When the primary last answered a statement or a connection attempt."""
        return max(self._reads.answered_at, self._opened_at)

    def shut(self, now: float) -> None:
        """Stop admitting callers: the primary is down."""
        self.is_shut = True
        if self._shutting is not None:
            self._shutting.set_result(None)
            self._shutting = None
        if self._failing_since is None or now - self._failing_since > self._limits.failover_time:
            self._failing_since = now

    def shutting(self) -> asyncio.Future[None]:
        """Return a future that is done when the gate shuts; do not cancel it: others wait for it too."""
        if self._shutting is None:
            self._shutting = asyncio.get_running_loop().create_future()
        return self._shutting

    def open(self, now: float) -> None:
        """Admit the waiting callers: the primary answers."""
        self.is_shut = False
        self._opened_at = now
        self._let_in()

    def note_answer(self, now: float, *, write: bool = False) -> None:
        """Record that a statement has succeeded."""
        self._note(self._reads, now)
        if write:
            if self._failing_since is not None or self._is_stalled(self._writes, now):
                self._catching_up_until = now + self._limits.failover_time
            self._note(self._writes, now)
            self._failing_since = None

    def _note(self, lane: Lane, now: float) -> None:
        if now - lane.answered_at > self._limits.unresponsive_after:
            lane.answering_since = now
        lane.answered_at = now

    def retry_after(self, now: float, *, write: bool) -> int:
        """Return the seconds after which to retry a rejected request: by then a failover has usually ended."""
        if self._failing_since is None or not (write or self.is_shut):
            return 1
        left = math.ceil(self._failing_since + self._limits.failover_time - now)
        return left if left > 0 else math.ceil(self._limits.failover_time / 2)

    async def enter(self, deadline: float, admitted: int = 0, *, write: bool = False) -> None:
        """Wait until the caller may use the database; `deadline` is in the event loop's time. `leave` must follow.

        A caller that acts for others, which were `admitted` before, takes one place; a full queue does not reject it.
        `OverloadedError`: waiting is pointless. `DatabaseUnavailableError`: the database was down until `deadline`.
        """
        lane = self._writes if write else self._reads
        if self._has_place(lane) and not self.is_shut:
            self._take_place(lane)
            lane.last_acceptable = asyncio.get_running_loop().time()
            return
        turn = self.expect(deadline, admitted, write=write)
        lane.queue.append(turn)
        try:
            await turn.future
        except BaseException:
            if turn.has_come:
                self.leave(write=write)
            raise
        finally:
            self.forget(turn)
            if not turn.has_come:
                lane.queue.remove(turn)

    def expect(self, deadline: float, admitted: int = 0, *, write: bool) -> Turn:
        """Start waiting if the queue has room; `forget` must follow. The turn's future fails like `enter`."""
        loop, lane = asyncio.get_running_loop(), self._writes if write else self._reads
        now = loop.time()
        if not admitted and lane.waiting >= self._room(lane, now):
            self.rejections["full"] += 1
            again = self.retry_after(now, write=write)
            raise OverloadedError("Too many requests are waiting for the database.", again)
        turn = Turn(loop.create_future(), now, deadline, max(admitted, 1), lane)
        lane.waiting += turn.callers
        turn.timer = loop.call_at(min(now + self._limits.gate_timeout, deadline), self._review, turn)
        self._turns.add(turn)
        return turn

    def call(self, turn: Turn) -> None:
        """Record that the turn has come: it no longer counts as waiting, and may last until its deadline."""
        turn.has_come = True
        turn.lane.waiting -= turn.callers

    def forget(self, turn: Turn) -> None:
        """End the wait, whatever its outcome."""
        turn.timer.cancel()
        self._turns.discard(turn)
        if not turn.has_come:
            turn.lane.waiting -= turn.callers

    def hurry(self, deadline: float) -> None:
        """Bring the deadlines of all current turns forward to `deadline`."""
        for turn in self._turns:
            turn.deadline = min(turn.deadline, deadline)
            turn.timer.cancel()
            self._review(turn)

    def _review(self, turn: Turn) -> None:
        """Check whether waiting longer makes sense."""
        limits, lane, loop = self._limits, turn.lane, asyncio.get_running_loop()
        if turn.future.done():
            return
        now = loop.time()
        is_answering = now - lane.answered_at <= limits.unresponsive_after
        patience = max(turn.came_at, lane.answering_since) + limits.gate_timeout - now
        if now >= turn.deadline:
            self.rejections["down"] += not turn.has_come
            again = self.retry_after(now, write=lane is self._writes)
            turn.future.set_exception(DatabaseUnavailableError("The database did not answer in time.", again))
        elif turn.has_come or self._is_failing(lane, now):
            turn.timer = loop.call_at(turn.deadline, self._review, turn)
        elif patience <= 0 and is_answering and not self.is_shut:
            self.rejections["slow"] += 1
            turn.future.set_exception(OverloadedError("The database cannot keep up with the requests."))
        else:
            wait = patience if patience > 0 else limits.unresponsive_after
            turn.timer = loop.call_at(min(now + wait, turn.deadline), self._review, turn)

    def leave(self, *, write: bool = False) -> None:
        """Give up the caller's place, and admit the next one."""
        lane = self._writes if write else self._reads
        lane.under_way -= 1
        self._free += 1
        self._let_in()
        if not lane.queue:
            lane.is_standing = False
        if write and not lane.waiting:
            self._catching_up_until = -math.inf

    def _let_in(self) -> None:
        while self._free and not self.is_shut:
            firsts = [_first(lane) for lane in (self._reads, self._writes) if self._has_place(lane)]
            turn = min(filter(None, firsts), key=lambda turn: turn.came_at, default=None)
            if turn is None:
                return
            lane = turn.lane
            lane.queue.remove(turn)
            self._take_place(lane)
            self.call(turn)
            turn.future.set_result(None)
            now = asyncio.get_running_loop().time()
            if now - turn.came_at <= self._limits.acceptable_wait:
                lane.last_acceptable = now

    def _has_place(self, lane: Lane) -> bool:
        return self._free > 0 and lane.under_way < self._size - lane.kept

    def _take_place(self, lane: Lane) -> None:
        self._free -= 1
        if not lane.under_way and lane.answered_at >= lane.busy_since:
            lane.busy_since = asyncio.get_running_loop().time()
        lane.under_way += 1

    def _is_stalled(self, lane: Lane, now: float) -> bool:
        """Whether statements are under way but none has succeeded for longer than `command_timeout`."""
        return lane.under_way > 0 and now - max(lane.answered_at, lane.busy_since) > self._limits.command_timeout

    def _is_failing(self, lane: Lane, now: float) -> bool:
        """Whether a failover still delays writes: until one has succeeded and the earlier ones are done."""
        is_failing = self.is_shut or self._failing_since is not None or self._is_stalled(lane, now)
        return lane is self._writes and (is_failing or now < self._catching_up_until)

    def _room(self, lane: Lane, now: float) -> int:
        """Return how many callers may wait now."""
        limits = self._limits
        is_answering = now - lane.answered_at <= limits.unresponsive_after
        if self._is_failing(lane, now):
            return limits.write_queue
        if (
            is_answering
            and not self.is_shut
            and now - max(lane.last_acceptable, lane.answering_since) > limits.gate_timeout
        ):
            lane.is_standing = True
        return self._size // 2 if lane.is_standing else limits.gate_queue


def _first(lane: Lane) -> Turn | None:
    """Return the turn that has waited longest and still waits."""
    return next((turn for turn in lane.queue if not turn.future.done()), None)
