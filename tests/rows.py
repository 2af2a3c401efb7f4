"""Rows and columns of the table, as the tests need them: past the service, by SQL."""

from collections.abc import Iterable

from sqlalchemy import text

from goals.database import Database


async def fill(database: Database, number: int, gaps: Iterable[int] = ()) -> list[int]:
    """Add goals of one moment, take those with the ids in `gaps` away, and return the ids, newest first."""
    statement = "INSERT INTO goals (goal_name) SELECT 'goal ' || number FROM generate_series(1, :number) AS number"
    await database.fetch(text(f"{statement} RETURNING id"), {"number": number})
    await database.fetch(text("DELETE FROM goals WHERE id = ANY(:gaps) RETURNING id"), {"gaps": list(gaps)})
    return sorted(set(range(1, number + 1)) - set(gaps), reverse=True)


async def alter(database: Database, statement: str) -> None:
    async with database.engine.connect() as connection:
        await connection.execute(text(statement))
