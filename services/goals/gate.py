"""Who may use the database: as many as there are connections, the others in the order they came, and not too many."""

import asyncio
from collections import deque

from goals.errors import DatabaseUnavailableError, OverloadedError
from goals.limits import Limits


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
        self._queue: deque[asyncio.Future[None]] = deque()
        self.rejections = {"full": 0, "slow": 0, "down": 0}
        self._is_standing = False
        self._last_acceptable = 0.0
        self._answering_since = 0.0
        self._answered_at = 0.0

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return len(self._queue)

    def note_answer(self, now: float) -> None:
        """Tell that a statement has succeeded."""
        if now - self._answered_at > self._limits.unresponsive_after:
            self._answering_since = now
        self._answered_at = now

    async def enter(self, deadline: float) -> None:
        """Return when the caller may use the database; `deadline` is the event loop's time. `leave` must follow.

        `OverloadedError`: the wait is not worth it. `DatabaseUnavailableError`: the database is down until `deadline`.
        """
        limits, loop = self._limits, asyncio.get_running_loop()
        came_at = now = loop.time()
        if self._free:
            self._free -= 1
            self._last_acceptable = now
            return
        if len(self._queue) >= self._room(now):
            self.rejections["full"] += 1
            raise OverloadedError("Too many requests are waiting for the database.")
        turn = loop.create_future()
        self._queue.append(turn)
        try:
            while not turn.done():
                patience = max(came_at, self._answering_since) + limits.gate_timeout - now
                if now >= deadline:
                    self.rejections["down"] += 1
                    raise DatabaseUnavailableError("The database did not answer in time.")
                if patience <= 0 and now - self._answered_at <= limits.unresponsive_after:
                    self.rejections["slow"] += 1
                    raise OverloadedError("The database has more to do than it can.")
                wait = patience if patience > 0 else limits.unresponsive_after
                await asyncio.wait({turn}, timeout=min(wait, deadline - now))
                now = loop.time()
            if now - came_at <= limits.acceptable_wait:
                self._last_acceptable = now
        except BaseException:
            if turn.done():
                self.leave()
            else:
                self._queue.remove(turn)
            raise

    def leave(self) -> None:
        """Let the next one in."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._free += 1
            self._is_standing = False

    def _room(self, now: float) -> int:
        """How many may wait now."""
        is_answering = now - self._answered_at <= self._limits.unresponsive_after
        if is_answering and now - max(self._last_acceptable, self._answering_since) > self._limits.gate_timeout:
            self._is_standing = True
        return self._size // 2 if self._is_standing else self._limits.gate_queue
