"""Who may use the database: as many as there are connections, the others in the order they came, and not too many."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from goals.errors import DatabaseUnavailableError, OverloadedError
from goals.limits import Limits


@dataclass(slots=True, eq=False)
class Turn:
    """A caller that waits: its future is done when its turn has come, and fails when the wait is not worth it."""

    future: asyncio.Future[None]
    came_at: float
    deadline: float
    callers: int
    has_come: bool = False
    timer: asyncio.TimerHandle = field(init=False)


class Gate:
    """Lets `size` callers in at once, the others in the order they came (a pool of connections is not fair by itself).

    A caller waits at most `gate_timeout` while statements succeed, and until its own deadline while none does: then it
    is the database that is down, perhaps only for a failover. Once it is back, the wait starts from zero.

    A queue is there for bursts. Where it stands, because more comes than can be done, everybody in it waits for
    nothing: then only half of `size` may wait, until it has emptied (after Nichols and Jacobson: Controlling Queue
    Delay, 2012).
    """

    def __init__(self, size: int, limits: Limits) -> None:
        self._limits = limits
        self._size = self._free = size
        self._queue: deque[Turn] = deque()
        self.waiting = 0
        """How many callers wait, also in groups and for them."""
        self.rejections = {"full": 0, "slow": 0, "down": 0}
        self._is_standing = False
        self._last_acceptable = 0.0
        self._answering_since = 0.0
        self._answered_at = 0.0

    def note_answer(self, now: float) -> None:
        """Tell that a statement has succeeded."""
        if now - self._answered_at > self._limits.unresponsive_after:
            self._answering_since = now
        self._answered_at = now

    async def enter(self, deadline: float, admitted: int = 0) -> None:
        """Return when the caller may use the database; `deadline` is the event loop's time. `leave` must follow.

        A caller that comes for others, who were `admitted` before, takes one place and is not refused for want of room.
        `OverloadedError`: the wait is not worth it. `DatabaseUnavailableError`: the database is down until `deadline`.
        """
        if self._free:
            self._free -= 1
            self._last_acceptable = asyncio.get_running_loop().time()
            return
        turn = self.expect(deadline, admitted)
        self._queue.append(turn)
        try:
            await turn.future
        except BaseException:
            if turn.has_come:
                self.leave()
            raise
        finally:
            self.forget(turn)

    def expect(self, deadline: float, admitted: int = 0) -> Turn:
        """Begin to wait, if the queue has room; `forget` must follow. The turn's future fails as `enter` does."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not admitted and self.waiting >= self._room(now):
            self.rejections["full"] += 1
            raise OverloadedError("Too many requests are waiting for the database.")
        turn = Turn(loop.create_future(), now, deadline, max(admitted, 1))
        self.waiting += turn.callers
        turn.timer = loop.call_at(min(now + self._limits.gate_timeout, deadline), self._review, turn)
        return turn

    def call(self, turn: Turn) -> None:
        """Mark the turn as come: from now on it has until its deadline, and takes up no room."""
        turn.has_come = True
        self.waiting -= turn.callers

    def forget(self, turn: Turn) -> None:
        """End the wait, whatever came of it."""
        turn.timer.cancel()
        if not turn.has_come:
            self.waiting -= turn.callers

    def _review(self, turn: Turn) -> None:
        """See whether a wait is still worth it."""
        limits, loop = self._limits, asyncio.get_running_loop()
        if turn.future.done():
            return
        now = loop.time()
        patience = max(turn.came_at, self._answering_since) + limits.gate_timeout - now
        if now >= turn.deadline:
            self.rejections["down"] += not turn.has_come
            turn.future.set_exception(DatabaseUnavailableError("The database did not answer in time."))
        elif turn.has_come:
            turn.timer = loop.call_at(turn.deadline, self._review, turn)
        elif patience <= 0 and now - self._answered_at <= limits.unresponsive_after:
            self.rejections["slow"] += 1
            turn.future.set_exception(OverloadedError("The database has more to do than it can."))
        else:
            wait = patience if patience > 0 else limits.unresponsive_after
            turn.timer = loop.call_at(min(now + wait, turn.deadline), self._review, turn)

    def leave(self) -> None:
        """Let the next one in."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.future.done():
                self.call(turn)
                turn.future.set_result(None)
                now = asyncio.get_running_loop().time()
                if now - turn.came_at <= self._limits.acceptable_wait:
                    self._last_acceptable = now
                return
        self._free += 1
        self._is_standing = False

    def _room(self, now: float) -> int:
        """How many may wait now."""
        is_answering = now - self._answered_at <= self._limits.unresponsive_after
        if is_answering and now - max(self._last_acceptable, self._answering_since) > self._limits.gate_timeout:
            self._is_standing = True
        return self._size // 2 if self._is_standing else self._limits.gate_queue
