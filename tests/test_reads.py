"""Shared reads: one query for those who ask together, never an answer older than the question."""

import asyncio

import pytest

from goals.reads import SharedReads


class Loader:
    """Counts its loads and lets the test decide when each ends."""

    def __init__(self) -> None:
        self.count = 0
        self.turns: asyncio.Queue[Exception | None] = asyncio.Queue()

    async def load(self, key: str) -> tuple[str, int]:
        self.count += 1
        number = self.count
        failure = await self.turns.get()
        if failure is not None:
            raise failure
        return key, number

    def finish(self, failure: Exception | None = None) -> None:
        self.turns.put_nowait(failure)


async def asked(reads: SharedReads[str, tuple[str, int]], key: str = "page") -> asyncio.Task[tuple[str, int]]:
    """Somebody who has asked."""
    before = reads.requests
    task = asyncio.create_task(reads.get(key))
    while reads.requests == before:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_who_comes_while_a_query_runs_shares_the_next_one() -> None:
    loader = Loader()
    reads = SharedReads(loader.load)
    first = await asked(reads)
    others = [await asked(reads) for _ in range(10)]
    loader.finish()
    assert await first == ("page", 1)
    loader.finish()
    assert await asyncio.gather(*others) == [("page", 2)] * 10
    assert (reads.requests, reads.queries) == (11, 2)


async def test_keys_do_not_wait_for_one_another() -> None:
    loader = Loader()
    reads = SharedReads(loader.load)
    one, other = await asked(reads, "one"), await asked(reads, "other")
    loader.finish()
    loader.finish()
    assert await one == ("one", 1)
    assert await other == ("other", 2)


async def test_nothing_is_kept_between_loads() -> None:
    loader = Loader()
    reads = SharedReads(loader.load)
    for number in (1, 2):
        loader.finish()
        assert await reads.get("page") == ("page", number)


async def test_who_leaves_does_not_take_the_answer_from_the_others() -> None:
    loader = Loader()
    reads = SharedReads(loader.load)
    leaving, staying = await asked(reads), await asked(reads)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    loader.finish()
    loader.finish()
    assert await staying == ("page", 2)


async def test_an_error_goes_to_all_who_share_and_is_not_kept() -> None:
    loader = Loader()
    reads = SharedReads(loader.load)
    first, second, third = await asked(reads), await asked(reads), await asked(reads)
    loader.finish()
    loader.finish(OSError("gone"))
    assert await first == ("page", 1)
    for task in (second, third):
        with pytest.raises(OSError, match="gone"):
            await task
    loader.finish()
    assert await reads.get("page") == ("page", 3)


async def test_an_error_that_nobody_waits_for_is_silent() -> None:
    loader = Loader()
    reads = SharedReads(loader.load)
    task = await asked(reads)
    task.cancel()
    await asyncio.wait({task})
    loader.finish(OSError("gone"))
    loader.finish()
    assert await reads.get("page") == ("page", 2)  # warnings are errors: an exception never retrieved would fail here
