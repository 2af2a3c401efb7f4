"""The service with the original Go app's statements; it runs while the first revision is applied.

`python -m drills.seed` works like `python -m goals serve`. The drill does not require Go, because only the app's
statements matter to the schema. They have no keys, dates or retries, read rows by position, and use connections that
keep no plans, like those of the app's driver. If a row has a different number of columns, this service reports an
error, whereas the app shows its page without that row. The page shows the first fifty goals; the app reads the whole
table.
"""

import runpy
import sys
from collections.abc import Mapping
from typing import NoReturn
from uuid import UUID

from sqlalchemy import text

from goals import connections, store
from goals.database import Database
from goals.errors import LockedError
from goals.models import COLUMN_TYPES, SCHEMA_REVISION, Goal, Page, Total

MODULE = "drills.seed"
TABLE = "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name VARCHAR(255) NOT NULL)"
"""One of the two forms of the table in the app's documents."""

_ALL = text("SELECT * FROM goals LIMIT 50")
# The app requests no rows back, so a changed column type does not invalidate its statements; our driver needs a row.
_INSERT = text("INSERT INTO goals (goal_name) VALUES (:name) RETURNING 1 AS done")
_DELETE = text("DELETE FROM goals WHERE id = :goal_id RETURNING 1 AS done")


async def select_page_and_total(
    database: Database,
    *,
    before: int | None,
    after: int | None,
    limit: int,
) -> tuple[Page, Total]:
    # May be retried: our driver keeps plans, which a changed column type invalidates; the app's driver keeps none.
    rows = [tuple(row) for row in await database.fetch(_ALL)]
    return Page([Goal(goal_id, name, None, 1) for goal_id, name in rows], more=False), Total(None, exact=False)


async def insert_goal(database: Database, values: Mapping[str, object], key: UUID, fingerprint: bytes) -> Goal:
    await database.run(_INSERT, {"name": values["goal_name"]}, repeatable=False)
    return Goal(0, str(values["goal_name"]), None, 1)  # the form redirects to the page, which reads it


async def insert_goals(database: Database, new: object, stall: float) -> NoReturn:
    """Refuse groups: the app adds goals one at a time."""
    raise LockedError("The app adds one goal at a time.")


async def delete_goal(database: Database, goal_id: int) -> None:
    await database.run(_DELETE, {"goal_id": goal_id}, repeatable=False)


async def delete_old_keys(database: Database, kept: object, limit: int) -> int:
    """Remove none: the app has no keys."""
    return 0


async def select_revision(database: Database) -> str:
    """Report the current revision: the app checks none."""
    await database.fetch(text("SELECT 1"))
    return SCHEMA_REVISION


async def select_column_types(database: Database) -> dict[str, dict[str, str]]:
    """Report the expected column types: the app checks none."""
    await database.fetch(text("SELECT 1"))
    return COLUMN_TYPES


async def select_counts_changes(database: Database) -> bool:
    """Report that the trigger is enabled: the app does not check it."""
    return True


async def look_for_adopted(connection: object) -> None:
    """Do nothing: the app uses the default search path."""


if __name__ == "__main__":
    for statement in (
        select_page_and_total,
        insert_goal,
        insert_goals,
        delete_goal,
        delete_old_keys,
        select_revision,
        select_column_types,
        select_counts_changes,
    ):
        setattr(store, statement.__name__, statement)
    connections.look_for_adopted = look_for_adopted
    sys.argv = ["goals", "serve"]
    runpy.run_module("goals", run_name="__main__", alter_sys=True)
