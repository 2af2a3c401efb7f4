"""Concurrent identical reads share one query, and each still sees everything committed before it was asked."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Answer = TypeVar("Answer")


class SharedReads(Generic[Key, Answer]):
    """At most one `load` for each key is under way; who comes meanwhile shares the next, which starts after it came.

    So no answer is older than the question, and nothing is kept between loads. Errors go to all who share: a read may
    be asked again. The answers are shared objects: treat them as frozen.
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
            # What the load logs and traces belongs to the first who asked for it.
            self._next[key] = shared, contextvars.copy_context()
            if key not in self._loading:
                self._start(key)
        # Without the shield, one cancelled request would cancel the answer of its peers.
        return await asyncio.shield(shared)

    def _start(self, key: Key) -> None:
        _, context = self._next[key]
        self._loading[key] = asyncio.create_task(self._answer(key), context=context)

    async def _answer(self, key: Key) -> None:
        shared, _ = self._next.pop(key)
        self.queries += 1
        try:
            answer = await self._load(key)
        except Exception as error:  # noqa: BLE001  handed to everyone who asked
            shared.set_exception(error)
            shared.exception()  # marks it as seen: all who asked may be gone
        else:
            shared.set_result(answer)
        del self._loading[key]
        if key in self._next:
            self._start(key)
