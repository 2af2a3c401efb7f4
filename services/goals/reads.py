"""Concurrent identical reads share one query; each still sees everything that was committed before it started."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Answer = TypeVar("Answer")


class SharedReads(Generic[Key, Answer]):
    """Runs at most one `load` per key at a time; callers that arrive meanwhile share the next load.

    No answer is older than its request, and nothing is cached between loads. An error is raised to all callers that
    share the load, since a read can be retried. The answers are shared objects: do not modify them.
    """

    def __init__(self, load: Callable[[Key], Awaitable[Answer]]) -> None:
        self._load = load
        self._next: dict[Key, tuple[asyncio.Future[Answer], contextvars.Context]] = {}
        self._loading: dict[Key, asyncio.Task[None]] = {}
        self.requests = 0
        self.queries = 0

    async def get(self, key: Key) -> Answer:
        self.requests += 1
        if key in self._next:
            shared, _ = self._next[key]
        else:
            shared = asyncio.get_running_loop().create_future()
            # The load's log lines and spans belong to the first request that shares it.
            self._next[key] = shared, contextvars.copy_context()
            if key not in self._loading:
                self._start(key)
        # Without the shield, cancelling one request would cancel the answer for all.
        return await asyncio.shield(shared)

    def _start(self, key: Key) -> None:
        _, context = self._next[key]
        self._loading[key] = asyncio.create_task(self._answer(key), context=context)

    async def _answer(self, key: Key) -> None:
        shared, _ = self._next.pop(key)
        self.queries += 1
        try:
            answer = await self._load(key)
        except Exception as error:  # noqa: BLE001  raised to all callers
            shared.set_exception(error)
            shared.exception()  # marks it as retrieved: all callers may be gone
        else:
            shared.set_result(answer)
        del self._loading[key]
        if key in self._next:
            self._start(key)
