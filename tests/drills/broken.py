"""The service with one safety taken out, so that a drill can show it would see the damage.

`python -m tests.drills.broken NAME` serves like `python -m goals serve`. No setting of the product can do this: it is
done to the modules, here, before they serve.
"""

import functools
import os
import runpy
import sys
from uuid import UUID

from sqlalchemy import bindparam, insert

from goals import database as module, middleware, store
from goals.database import Database
from goals.models import goals
from goals.schemas import Goal
from goals.settings import Settings

MODULE = "tests.drills.broken"


def retry_without_a_key() -> None:
    """Statements are sent again after a failure, but nothing tells a second one from another goal of that name."""
    blind = (
        insert(goals).values(goal_name=bindparam("name")).returning(goals.c.id, goals.c.goal_name, goals.c.created_at)
    )

    async def insert_goal(database: Database, name: str, key: UUID) -> Goal:
        (row,) = await database.fetch(blind, {"name": name})
        return Goal(row.id, row.goal_name, row.created_at)

    store.insert_goal = insert_goal


def stop_without_a_drain() -> None:
    """SIGTERM stops the listeners at once, and nobody was told to reconnect elsewhere."""
    os.environ["GOALS_DRAIN_SECONDS"] = "0"


def wait_without_a_gate() -> None:
    """Everybody may wait for the database, as long as it takes: a pool's queue without a bound."""
    module.GATE_QUEUE = 1_000_000
    module.GATE_TIMEOUT = module.RETRY_BUDGET = 60.0
    middleware.REQUEST_DEADLINE = 60.0


def read_the_password_once() -> None:
    """Whatever the mounted file says later, the password is the one of the start."""
    Settings.password = functools.cache(Settings.password)  # type: ignore[method-assign]  # that is the damage


def forget_the_former_password() -> None:
    """Only what the file says now is tried."""
    module._Door.accepted = property(lambda _: None, lambda _, password: None)  # type: ignore[assignment]  # likewise


WAYS = {
    way.__name__: way
    for way in (
        retry_without_a_key,
        stop_without_a_drain,
        wait_without_a_gate,
        read_the_password_once,
        forget_the_former_password,
    )
}


if __name__ == "__main__":
    WAYS[sys.argv[1]]()
    sys.argv = ["goals", "serve"]
    runpy.run_module("goals", run_name="__main__", alter_sys=True)
