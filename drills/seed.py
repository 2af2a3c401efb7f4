"""The service with the statements of the original Go app, which is what the first revision finds at work.

`python -m drills.seed` serves like `python -m goals serve`. The app's own program is written in Go, and would make Go a
condition of the drill; what meets the schema are its statements, on connections that keep no plans, as its driver's: no
key, no date, no write sent twice, and each row read by position. A row of another width is an error here, where the app
shows a page without it. Its page shows the first fifty goals: the app's reads the whole table.
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
"""One of the two forms in which the app's documents make its table."""

_ALL = text("SELECT * FROM goals LIMIT 50")
# The app asks for nothing back, so that no column's other type outdates what was prepared; our driver asks for rows.
_INSERT = text("INSERT INTO goals (goal_name) VALUES (:name) RETURNING 1 AS done")
_DELETE = text("DELETE FROM goals WHERE id = :goal_id RETURNING 1 AS done")


async def select_page_and_total(
    database: Database,
    *,
    before: int | None,
    after: int | None,
    limit: int,
) -> tuple[Page, Total]:
    # May be sent again: our driver keeps plans, which a change of the column's type outdates; the app's keeps none.
    rows = [tuple(row) for row in await database.fetch(_ALL)]
    return Page([Goal(goal_id, name, None, 1) for goal_id, name in rows], more=False), Total(None, exact=False)


async def insert_goal(database: Database, values: Mapping[str, object], key: UUID, fingerprint: bytes) -> Goal:
    await database.run(_INSERT, {"name": values["goal_name"]}, repeatable=False)
    return Goal(0, str(values["goal_name"]), None, 1)  # the form leads back to the page, which reads it


async def insert_goals(database: Database, new: object, stall: float) -> NoReturn:
    """Let each go alone, as in the app."""
    raise LockedError("The app adds one goal at a time.")


async def delete_goal(database: Database, goal_id: int) -> None:
    await database.run(_DELETE, {"goal_id": goal_id}, repeatable=False)


async def delete_old_keys(database: Database, kept: object, limit: int) -> int:
    """Remove none: the app has no keys."""
    return 0


async def select_revision(database: Database) -> str:
    """Say that all is well: the app asks for no revision."""
    await database.fetch(text("SELECT 1"))
    return SCHEMA_REVISION


async def select_column_types(database: Database) -> dict[str, dict[str, str]]:
    """Say so of the columns as well."""
    await database.fetch(text("SELECT 1"))
    return COLUMN_TYPES


async def select_counts_changes(database: Database) -> bool:
    """Say so of the trigger, too."""
    return True


async def look_for_adopted(connection: object) -> None:
    """Look where the app looks, whatever has become of the table."""


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
