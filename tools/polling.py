"""Poll for conditions that cannot be awaited: in other processes, in a database, behind a network."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], Awaitable[object]], what: str = "it", seconds: float = 100.0) -> None:
    """Poll every 20 ms until the condition is true; raise `TimeoutError`, which names `what`, after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not await holds():  # noqa: ASYNC110  the condition is outside this process, so there is no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimeoutError(f"{what}: not within {seconds:g} s") from None


def wait_until(holds: Callable[[], object], what: str = "it", seconds: float = 300.0) -> None:
    """Do the same in code without an event loop; poll every 100 ms."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
