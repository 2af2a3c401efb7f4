"""The service with the statements of the seed's application, which is what the first revisions find at work.

`python -m drills.seed` serves like `python -m goals serve`. The seed's own program is written in Go, and would
make Go a condition of the drill; what meets the schema are its statements: no key, no date, no write sent twice. They
return the new or the removed row's id here, and its page shows the first fifty goals: the seed's reads the whole table.
"""

import runpy
import sys
from uuid import UUID

from sqlalchemy import text

from goals import store
from goals.database import Database
from goals.models import COLUMN_TYPES, SCHEMA_REVISION, Goal, Page, Total

MODULE = "drills.seed"
TABLE = "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name VARCHAR(255) NOT NULL)"
"""One of the two forms in which the seed makes its table."""

_ALL = text("SELECT id, goal_name FROM goals LIMIT 50")
_INSERT = text("INSERT INTO goals (goal_name) VALUES (:name) RETURNING id")
_DELETE = text("DELETE FROM goals WHERE id = :goal_id RETURNING id")


async def select_page_and_total(
    database: Database,
    *,
    before: int | None,
    after: int | None,
    limit: int,
) -> tuple[Page, Total]:
    # May be sent again: our driver keeps plans, which a change of the column's type outdates; the seed's keeps none.
    rows = await database.fetch(_ALL)
    return Page([Goal(row.id, row.goal_name, None) for row in rows], more=False), Total(None, exact=False)


async def insert_goal(database: Database, name: str, key: UUID) -> Goal:
    (row,) = await database.fetch(_INSERT, {"name": name}, repeatable=False)
    return Goal(row.id, name, None)


async def delete_goal(database: Database, goal_id: int) -> None:
    await database.fetch(_DELETE, {"goal_id": goal_id}, repeatable=False)


async def select_revision(database: Database) -> str:
    """Say that all is well: the seed asks for no revision."""
    await database.fetch(text("SELECT 1"))
    return SCHEMA_REVISION


async def select_column_types(database: Database) -> dict[str, str]:
    """Say so of the columns as well."""
    await database.fetch(text("SELECT 1"))
    return COLUMN_TYPES


if __name__ == "__main__":
    for statement in (select_page_and_total, insert_goal, delete_goal, select_revision, select_column_types):
        setattr(store, statement.__name__, statement)
    sys.argv = ["goals", "serve"]
    runpy.run_module("goals", run_name="__main__", alter_sys=True)
