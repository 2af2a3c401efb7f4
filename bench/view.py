"""Measures the cost of the view through which the original Go app reads an adopted table: `python -m bench.view`."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from anyio import to_thread

from goals import embedded
from goals.settings import Settings

ROUNDS = 15
READS = 200
"""Reads of each kind in each round."""
_TABLE = "CREATE TABLE goals (id SERIAL PRIMARY KEY, goal_name VARCHAR(255) NOT NULL)"
_FILL = "INSERT INTO goals (goal_name) SELECT 'Read book number ' || number FROM generate_series(1, 1000) AS number"


async def measure(socket: Path) -> list[float]:
    """Return, for each round, how many times as long the app's read of 1,000 goals takes through the view."""
    settings = Settings().model_copy(update=embedded.SETTINGS | {"db_host": str(socket)})
    connection = await asyncpg.connect(host=str(socket), user="goals_user", database="goals_database")
    for statement in (_TABLE, _FILL, "CREATE TABLE former AS SELECT * FROM goals"):
        await connection.execute(statement)
    await to_thread.run_sync(command.upgrade, Config("alembic.ini", attributes={"settings": settings}), "head")
    await connection.execute("ANALYZE")

    async def read(name: str) -> float:
        taken = []
        for _ in range(READS):
            began = time.perf_counter()
            assert len(await connection.fetch(f"SELECT * FROM public.{name}")) == 1000  # noqa: S101, S608  one of two names of ours
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    ratios = [(await read("goals")) / (await read("former")) for _ in range(ROUNDS)]
    await connection.close()
    return ratios


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="goals-bench-") as folder, embedded.run(Path(folder)) as socket:
        ratios = asyncio.run(measure(socket))
    print(f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}] times as long as from a plain table")
